"""A training run from text to model directory."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import signal

import keras
import tensorflow as tf

from tfgpt.atomic import write_text
from tfgpt.errors import Terminated, UserError, WorkerLostError
from tfgpt.models.gpt2 import GPT2Backbone, preset_config
from tfgpt.models.gpt2.model_directory import read_weights
from tfgpt.text import sequential_windows, training_windows
from tfgpt.training.arrangement import arrange
from tfgpt.training.callbacks import NonFiniteLoss
from tfgpt.training.distributed_fit import (
    distributed_model_class,
    separate_random_streams,
    steps_per_execution,
    sum_gradients_first,
)
from tfgpt.training.distribution import Distribution, check_compile
from tfgpt.training.divergence import explain_divergence
from tfgpt.training.losses import TokenLoss
from tfgpt.training.optimizer import make_optimizer
from tfgpt.training.recompute import recompute_blocks
from tfgpt.training.resume import as_begun, is_unfinished, open_tokens, remove_leftovers
from tfgpt.training.run_callbacks import RunCallbacks
from tfgpt.training.run_config import PRECISIONS, RunConfig
from tfgpt.training.run_data import open_run_data
from tfgpt.training.run_directory import replace_run, staging
from tfgpt.training.run_report import RunObserver, TrainingResult, report
from tfgpt.training.train_step import TrainingCausalLM
from tfgpt.training.utilization import utilization_of
from tfgpt.training.wandb_log import WandbLog


def train(config: RunConfig, observer: RunObserver | None = None) -> TrainingResult | None:
    """Trains a GPT-2 on text by `model.fit`, and writes a model directory.

    The directory's top holds the best weights by validation loss; `training/` the run's configuration, token shards,
    metrics.csv, loss.png, samples.txt, TensorBoard logs, summary.json, checkpoints, and the last weights in `last`.

    The same configuration continues a run that was ended at any moment, to the weights that it would have had
    (see `tfgpt.training.resume`).

    In a cluster every worker calls this; the chief alone writes, and the others return None.

    Raises:
        UserError: for bad input; the directory is then as it was, or holds the last checkpoint.
        Terminated: when SIGTERM ended the run, after the steps under way and a checkpoint.
        WorkerLostError: when another worker of the cluster is gone.
    """
    distribution = Distribution.open(config.strategy, config.batch_size, config.compile, config.accumulate_steps)
    with distribution.private_directory(config) as private:
        return _train(private, observer or RunObserver(), distribution)


def _train(config, observer, distribution):
    directory = pathlib.Path(config.out)
    WandbLog.check(config)
    unfinished = is_unfinished(config)
    with distribution.scope():
        config = arrange(as_begun(config) if unfinished else config, _model_config(config)["hidden_dim"])
    # The chief alone knows how an unfinished run began, and workers' machines may differ.
    precision = PRECISIONS[distribution.from_chief(PRECISIONS.index(config.precision))]
    config = dataclasses.replace(config, precision=precision)
    check_compile(config.compile, distribution.name)
    remove_leftovers(directory)
    keras.utils.set_random_seed(config.seed)
    model, train_split, validation_split = (_reopen if unfinished else _begin)(config, observer, distribution)
    utilization = None
    if config.measure_peak:
        observer.stage("measuring matrix products")
        utilization = utilization_of(model)
    prompt = model.tokenizer.decode(validation_split.read(0, 16).tolist())
    callbacks = RunCallbacks(config, model, prompt, observer, distribution, utilization)
    if unfinished:
        callbacks.restore(model, observer.note)
        observer.note(f"the run in {directory} goes on after step {callbacks.checkpoints.step}")
    step = callbacks.share(model)
    with distribution.scope():
        separate_random_streams(model)
    observer.distribution(distribution.describe(config))
    observer.begin(config, model.count_params())
    try:
        _fit(config, model, train_split, validation_split, callbacks, step)
    except NonFiniteLoss as error:
        raise explain_divergence(error, model, train_split, config, callbacks.checkpoints, observer) from None
    except OSError as error:
        raise UserError(f"cannot write {directory}: {(error.strerror or str(error)).lower()}") from error
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        step = callbacks.records.step
        raise WorkerLostError(f"another worker was lost after step {step}; all have to start again") from error
    finally:
        callbacks.close()
        observer.end()
    interrupted = _was_interrupted(config, callbacks)
    if not distribution.chief:
        return None

    if callbacks.checkpoints.best_step != callbacks.records.step:
        observer.stage("reading the best weights back")
        read_weights(model.backbone, directory / "model.safetensors")
    observer.stage("evaluating the whole validation split")
    return report(directory, model, validation_split, callbacks, utilization, interrupted)


def _begin(config, observer, distribution):
    """The model of a new run, whose directory then holds nothing of an older one; its training and validation data."""
    directory = pathlib.Path(config.out)
    training = directory / "training"
    observer.stage("reading text")
    data = open_run_data(config)
    model_config = _model_config(config)
    observer.stage("tokenizing")
    tokenizer = data.tokenizer(config.vocabulary_size or model_config["vocabulary_size"])
    with distribution.scope():
        model = make_model(config, model_config, tokenizer)
    window = model.backbone.max_sequence_length
    # Tokens come to their place, and an older model goes, only when nothing that was given can be wrong any more.
    with staging(directory) as tokens:
        train_split, validation_split = data.splits(tokenizer, tokens)
        training_windows(train_split, window, config.batch_size, config.seed)  # for their checks
        sequential_windows(validation_split, window, config.batch_size)
        replace_run(directory, tokens)
    tokenizer.save(training / "tokenizer")
    data.remember(training)
    write_text(training / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    return model, train_split, validation_split


def _reopen(config, observer, distribution):
    """The model of an unfinished run, with weights to be restored; its training and validation data."""
    observer.stage("checking the tokens of the unfinished run")
    tokenizer, train_split, validation_split = open_tokens(config, pathlib.Path(config.out) / "training")
    with distribution.scope():
        model = make_model(config, _model_config(config), tokenizer)
    return model, train_split, validation_split


def _model_config(config):
    return preset_config(config.preset) | config.model_overrides()


def make_model(config, model_config, tokenizer):
    """The model, randomly initialized under the run's seed and compiled."""
    if model_config["hidden_dim"] % model_config["num_heads"]:
        raise UserError(
            f"hidden_dim is {model_config['hidden_dim']}, expected a multiple of num_heads {model_config['num_heads']}"
        )
    config = arrange(config, model_config["hidden_dim"])
    model_config["vocabulary_size"] = tokenizer.vocabulary_size
    model_config["intermediate_dim"] = config.intermediate_dim or 4 * model_config["hidden_dim"]
    if config.compile == "kernels":
        # TensorFlow's fusion of product and bias takes a kernel that lays the weights out anew in every step.
        tf.config.optimizer.set_experimental_options({"remapping": False})
    backbone = GPT2Backbone(**model_config, dtype=config.precision)
    if config.recompute:
        if backbone.dropout:
            raise UserError(
                f"dropout is {backbone.dropout}, expected 0 with recompute: it would drop other places the second time"
            )
        recompute_blocks(backbone)
    model = distributed_model_class(TrainingCausalLM)(
        backbone,
        tokenizer,
        label_smoothing=config.label_smoothing,
        z_loss=config.z_loss,
        fused=config.compile == "kernels",
        accumulate_steps=config.accumulate_steps,
        log_gradients=config.log_gradients,
    )
    model.compile(
        optimizer=make_optimizer(config, model.trainable_variables, fused=config.compile != "none"),
        loss=TokenLoss(),  # of validation, whatever training adds to it
        steps_per_execution=steps_per_execution(config),
        jit_compile=config.compile == "step",
    )
    # Variables made in the first step would have it traced twice, and a checkpoint before it would lack them. Built
    # here, because `compile` puts loss scaling around the optimizer, which has variables of its own.
    model.optimizer.build(model.trainable_variables)
    sum_gradients_first(model.optimizer)
    return model


def _fit(config, model, train_split, validation_split, callbacks, step):
    """Takes the steps after `step`; an epoch of Keras' is a row of the records (see `tfgpt.training.callbacks`)."""
    window, batch_size, distribution = model.backbone.max_sequence_length, config.batch_size, callbacks.distribution
    batches = functools.partial(training_windows, train_split, window, batch_size, config.seed, step)
    validation = functools.partial(sequential_windows, validation_split, window, batch_size, config.validation_batches)
    begun, epochs = step // config.log_every, config.steps // config.log_every
    model.fit(
        distribution.dataset(batches, batch_size),
        initial_epoch=begun,
        epochs=begun if distribution.any_worker(callbacks.stopping.stopped) else epochs,
        steps_per_epoch=config.log_every,
        validation_data=distribution.dataset(validation, batch_size),
        validation_steps=int(validation().cardinality()),  # a distributed dataset does not tell
        validation_freq=config.evaluate_every // config.log_every,
        callbacks=callbacks.in_order(),
        verbose=0,
        shuffle=False,  # the windows are shuffled already
    )


def _was_interrupted(config, callbacks):
    """Whether Ctrl-C ended the run; SIGTERM, to this worker or to another one, raises an exception."""
    step, received = callbacks.records.step, callbacks.interrupt.signal
    if received is signal.SIGINT:
        return True
    others = step < config.steps and not callbacks.stopping.stopped and callbacks.distribution.chief
    if received or others:
        raise Terminated(
            f"terminated after step {step}: the same command continues from "
            f"{callbacks.checkpoints.newest or 'the checkpoint of the first worker'}"
        )
    return False
