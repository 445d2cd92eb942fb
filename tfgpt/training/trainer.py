"""A training run from data to model directory, for every task."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pathlib
import signal

import keras
import tensorflow as tf

from tfgpt.errors import Terminated, UserError, WorkerLostError
from tfgpt.training.arrangement import arrange
from tfgpt.training.callbacks import NonFiniteLoss
from tfgpt.training.distributed_fit import separate_random_streams
from tfgpt.training.distribution import Distribution, check_compile
from tfgpt.training.divergence import explain_divergence
from tfgpt.training.fit_config import PRECISIONS, FitConfig
from tfgpt.training.resume import as_begun, is_unfinished, remove_leftovers
from tfgpt.training.run_callbacks import RunCallbacks
from tfgpt.training.run_report import RunObserver, TrainingResult
from tfgpt.training.wandb_log import WandbLog

# Where each task is: the module of this room, and the class.
TASKS = {
    "language_modeling": ("language_modeling", "LanguageModeling"),
    "translation": ("translation", "Translation"),
    "classification": ("classification", "Classification"),
}


def train(config: FitConfig, observer: RunObserver | None = None) -> TrainingResult | None:
    """Trains a model by `model.fit`, and writes a model directory.

    The directory's top holds the best weights by validation loss, unless the task has another score; `training/` the
    run's configuration, metrics.csv, loss.png, TensorBoard logs, summary.json, checkpoints, the last weights in `last`,
    and what the task adds.

    The same configuration continues a run that was ended at any moment, to the weights that it would have had
    (see `tfgpt.training.resume`).

    In a cluster every worker calls this; the chief alone writes, and the others return None.

    Args:
        config: a `RunConfig`, for a GPT-2 on text, or that of another task.
        observer: is told how it goes.

    Raises:
        UserError: for bad input; the directory is then as it was, or holds the last checkpoint.
        Terminated: when SIGTERM ended the run, after the steps under way and a checkpoint.
        WorkerLostError: when another worker of the cluster is gone.
    """
    distribution = Distribution.open(config.strategy, config.batch_size, config.compile, config.accumulate_steps)
    with distribution.private_directory(config) as private:
        return _train(private, observer or RunObserver(), distribution)


def open_task(config):
    """The `Task` of a configuration."""
    module, name = TASKS[config.task]
    return getattr(importlib.import_module(f"tfgpt.training.{module}"), name)(config)


def _train(config, observer, distribution):
    directory = pathlib.Path(config.out)
    WandbLog.check(config)
    unfinished = is_unfinished(config)
    task = open_task(config)
    with distribution.scope():
        config = arrange(as_begun(config) if unfinished else config, task.hidden_dim)
    # The chief alone knows how an unfinished run began, and workers' machines may differ.
    precision = PRECISIONS[distribution.from_chief(PRECISIONS.index(config.precision))]
    config = dataclasses.replace(config, precision=precision)
    check_compile(config.compile, distribution.name)
    remove_leftovers(directory)
    keras.utils.set_random_seed(config.seed)
    model = (task.reopen if unfinished else task.begin)(config, observer, distribution)
    utilization = None
    if config.measure_peak:
        observer.stage("measuring matrix products")
        utilization = task.utilization(model)
    callbacks = RunCallbacks(config, task, model, observer, distribution, utilization)
    if unfinished:
        callbacks.restore(model, observer.note)
        observer.note(f"the run in {directory} goes on after step {callbacks.checkpoints.step}")
    step = callbacks.share(model)
    with distribution.scope():
        separate_random_streams(model)
    observer.distribution(distribution.describe(config))
    observer.begin(config, model.count_params())
    try:
        _fit(config, task, model, callbacks, step)
    except NonFiniteLoss as error:
        raise explain_divergence(error, model, task, config, callbacks.checkpoints, observer) from None
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
        task.read_weights(model, directory)
    observer.stage("evaluating the whole validation split")
    return task.report(directory, model, callbacks, utilization, interrupted)


def _fit(config, task, model, callbacks, step):
    """Takes the steps after `step`; an epoch of Keras' is a row of the records (see `tfgpt.training.callbacks`)."""
    batch_size, distribution = config.batch_size, callbacks.distribution
    begun, epochs = step // config.log_every, config.steps // config.log_every
    model.fit(
        distribution.dataset(functools.partial(task.training, step), batch_size),
        initial_epoch=begun,
        epochs=begun if distribution.any_worker(callbacks.stopping.stopped) else epochs,
        steps_per_epoch=config.log_every,
        validation_data=distribution.dataset(task.validation, batch_size),
        validation_steps=int(task.validation().cardinality()),  # a distributed dataset does not tell
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
