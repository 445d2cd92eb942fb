"""A training run from text to model directory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil

import keras

from tfgpt.atomic import write_text
from tfgpt.errors import UserError
from tfgpt.models.gpt2 import GPT2Backbone, preset_config
from tfgpt.models.gpt2.model_directory import read_weights
from tfgpt.text import sequential_windows, training_windows
from tfgpt.training.averaging import AveragedValidation
from tfgpt.training.callbacks import Checkpoints, Records, Samples, StopOnInterrupt, WeightHistograms
from tfgpt.training.evaluation import evaluate_tokens
from tfgpt.training.loss_curve import plot_loss_curve
from tfgpt.training.losses import TokenLoss
from tfgpt.training.measures import make_measures
from tfgpt.training.optimizer import make_optimizer, make_schedule
from tfgpt.training.run_config import RunConfig
from tfgpt.training.run_data import open_run_data
from tfgpt.training.tensorboard import TensorBoardLog
from tfgpt.training.train_step import TrainingCausalLM
from tfgpt.training.utilization import utilization_of
from tfgpt.training.wandb_log import WandbLog


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a run came to.

    Args:
        directory: the model directory, with the best weights; the last ones are in `training/last`.
        parameters: of the model.
        steps: that were taken.
        loss: over the whole validation split, of the best weights, in windows that share nothing.
        perplexity: exp(loss).
        bits_per_byte: over the whole validation split.
        best_step: when the best weights were written.
        tokens_per_second: of training, the median.
        samples: (step, text) pairs.
        interrupted: whether Ctrl-C ended the run.
        utilization: model FLOPs utilization at that speed; None where no peak was measured, as for the next.
        peak: FLOP/s of matrix products on this machine.
    """

    directory: str
    parameters: int
    steps: int
    loss: float
    perplexity: float
    bits_per_byte: float
    best_step: int
    tokens_per_second: float
    samples: list
    interrupted: bool
    utilization: float | None = None
    peak: float | None = None


class RunObserver:
    """What a run tells whoever watches it; the command line draws a progress bar."""

    def stage(self, text):
        """A stage begins."""

    def begin(self, config, parameters):
        """Training begins."""

    def row(self, row):
        """A row of metrics: see `tfgpt.training.callbacks.COLUMNS`."""

    def sample(self, step, text):
        """A sample was taken."""

    def end(self):
        """Training has ended."""


def train(config: RunConfig, observer: RunObserver | None = None) -> TrainingResult:
    """Trains a GPT-2 on text by `model.fit`, and writes a model directory.

    The directory's top holds the best weights by validation loss; `training/` the run's configuration, token shards,
    metrics.csv, loss.png, samples.txt, TensorBoard logs, summary.json, and the last weights in `last`.

    Raises:
        UserError: for bad input; the directory is then as it was, or holds the last checkpoint.
    """
    observer = observer or RunObserver()
    directory = pathlib.Path(config.out)
    training = directory / "training"
    if (directory / "config.json").exists() and not config.overwrite:
        raise UserError(f"{directory} holds a model already, expected a new directory or --overwrite")
    WandbLog.check(config)
    keras.utils.set_random_seed(config.seed)
    observer.stage("reading text")
    data = open_run_data(config)
    model_config = preset_config(config.preset) | config.model_overrides()
    observer.stage("tokenizing")
    tokenizer = data.tokenizer(config.vocabulary_size or model_config["vocabulary_size"])
    model = make_model(config, model_config, tokenizer)
    window = model.backbone.max_sequence_length
    # Tokens come to their place, and an older model goes, only when nothing that was given can be wrong any more.
    with _staging(directory) as staging:
        train_split, validation_split = data.splits(tokenizer, staging)
        dataset = training_windows(train_split, window, config.batch_size, config.seed)
        validation = sequential_windows(validation_split, window, config.batch_size, config.validation_batches)
        _replace_run(directory, staging)

    write_text(training / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    schedule = make_schedule(config)
    utilization = None
    if config.measure_peak:
        observer.stage("measuring matrix products")
        utilization = utilization_of(model)
    loggers = _loggers(config, training)
    records = Records(
        training / "metrics.csv",
        config.batch_size * window,
        lambda step: float(schedule(step)),
        on_row=[observer.row, *(logger.add_row for logger in loggers)],
        measures=make_measures(config, model, utilization),
    )
    checkpoints = Checkpoints(directory)
    interrupt = StopOnInterrupt()
    callbacks = [
        AveragedValidation(),
        checkpoints,
        records,
        interrupt,
    ]  # checkpoints first: a record that fails must not cost one
    if config.sample_tokens:
        prompt = config.sample_prompt or tokenizer.decode(validation_split.read(0, 16).tolist())
        samples = Samples(
            training / "samples.txt",
            prompt,
            config.sample_tokens,
            config.seed,
            on_sample=[observer.sample, *(logger.add_sample for logger in loggers)],
        )
        callbacks.append(samples)
    if config.log_gradients:
        callbacks.append(WeightHistograms([logger.add_weights for logger in loggers]))
    if config.patience:
        callbacks.append(keras.callbacks.EarlyStopping("val_loss", patience=config.patience))
    observer.begin(config, model.count_params())
    try:
        model.fit(
            dataset,
            epochs=config.steps // config.evaluate_every,
            steps_per_epoch=config.evaluate_every,
            validation_data=validation,
            callbacks=callbacks,
            verbose=0,
            shuffle=False,  # the windows are shuffled already
        )
    except OSError as error:
        raise UserError(f"cannot write {training}: {(error.strerror or str(error)).lower()}") from error
    finally:
        interrupt.restore()
        observer.end()
        for logger in loggers:
            logger.close()

    if checkpoints.best_step != records.step:
        observer.stage("reading the best weights back")
        read_weights(model.backbone, directory / "model.safetensors")
    observer.stage("evaluating the whole validation split")
    tokens = validation_split.read(0, validation_split.num_tokens)
    evaluation = evaluate_tokens(model, tokens, validation_split.num_bytes, stride=window)
    plot_loss_curve(training / "loss.png", records.losses("loss"), records.losses("validation_loss"))
    speeds = sorted(row["tokens_per_second"] for row in records.rows if "tokens_per_second" in row)
    speed = speeds[len(speeds) // 2]
    result = TrainingResult(
        directory=str(directory),
        parameters=model.count_params(),
        steps=records.step,
        loss=evaluation.loss,
        perplexity=evaluation.perplexity,
        bits_per_byte=evaluation.bits_per_byte,
        best_step=checkpoints.best_step,
        tokens_per_second=speed,
        samples=samples.samples if config.sample_tokens else [],
        interrupted=interrupt.interrupted,
        utilization=utilization and utilization({"tokens_per_second": speed})["utilization"],
        peak=utilization and utilization.peak,
    )
    write_text(training / "summary.json", json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    return result


def make_model(config, model_config, tokenizer):
    """The model, randomly initialized under the run's seed and compiled."""
    if model_config["hidden_dim"] % model_config["num_heads"]:
        raise UserError(
            f"hidden_dim is {model_config['hidden_dim']}, expected a multiple of num_heads {model_config['num_heads']}"
        )
    model_config["vocabulary_size"] = tokenizer.vocabulary_size
    model_config["intermediate_dim"] = config.intermediate_dim or 4 * model_config["hidden_dim"]
    model = TrainingCausalLM(
        GPT2Backbone(**model_config, dtype=config.precision),
        tokenizer,
        label_smoothing=config.label_smoothing,
        z_loss=config.z_loss,
        accumulate_steps=config.accumulate_steps,
        log_gradients=config.log_gradients,
    )
    optimizer = make_optimizer(config, model.trainable_variables)
    optimizer.build(model.trainable_variables)  # variables made in the first step would have it traced twice
    jit_compile = config.jit_compile
    if jit_compile is None:
        # XLA fuses the chains between products, but on a CPU it does not use the bfloat16 units, as oneDNN does.
        jit_compile = config.precision != "mixed_bfloat16"
    model.compile(
        optimizer=optimizer,
        loss=TokenLoss(),  # of validation, whatever training adds to it
        steps_per_execution=config.steps_per_execution,
        jit_compile=jit_compile,
    )
    return model


@contextlib.contextmanager
def _staging(directory):
    """The path of a hidden sibling of the model directory, gone when the block ends."""
    staging = directory.absolute().with_name(f".{directory.absolute().name}.{os.getpid()}.partial")
    try:
        yield staging
    finally:
        _remove(staging)


def _remove(path):
    """Removes a directory, or a link to one, if it is there."""
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _replace_run(directory, tokens):
    """Makes room for a new run in a model directory, and moves its tokens there."""
    training = directory / "training"
    try:
        training.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "model.safetensors"):  # no whole model until the first checkpoint
            (directory / name).unlink(missing_ok=True)
        for name in ("tokens", "last"):
            _remove(training / name)
        tokens.rename(training / "tokens")
    except OSError as error:
        raise UserError(f"cannot write {directory}: {(error.strerror or str(error)).lower()}") from error


def _loggers(config, training):
    loggers = []
    if config.tensorboard and TensorBoardLog.available():
        loggers.append(TensorBoardLog(training / "tensorboard"))
    if config.wandb is not None:
        loggers.append(WandbLog(config, training))
    return loggers
