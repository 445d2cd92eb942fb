"""A training run from text to model directory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal

import keras

from tfgpt.atomic import write_text
from tfgpt.errors import UserError
from tfgpt.models.gpt2 import GPT2Backbone, GPT2CausalLM, preset_config
from tfgpt.models.gpt2.model_directory import read_weights
from tfgpt.text import (
    BytePairTokenizer,
    CharacterTokenizer,
    TokenShards,
    read_documents,
    sequential_windows,
    training_windows,
    write_token_shards,
)
from tfgpt.training.callbacks import (
    Checkpoints,
    EarlyStopping,
    NonFiniteLoss,
    Records,
    Samples,
    StopOnInterrupt,
    Terminated,
)
from tfgpt.training.divergence import explain_divergence
from tfgpt.training.evaluation import evaluate_tokens
from tfgpt.training.loss_curve import plot_loss_curve
from tfgpt.training.optimizer import learning_rate_schedule, make_optimizer
from tfgpt.training.resume import is_unfinished, open_tokens, remove_leftovers, remove_run
from tfgpt.training.run_config import TOKENIZERS, RunConfig
from tfgpt.training.run_state import restore_newest
from tfgpt.training.tensorboard import TensorBoardLog


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


class RunObserver:
    """What a run tells whoever watches it; the command line draws a progress bar."""

    def stage(self, text):
        """A stage begins."""

    def begin(self, config, parameters):
        """Training begins."""

    def row(self, row):
        """A row of metrics: see `tfgpt.training.callbacks.COLUMNS`."""

    def note(self, text):
        """Something to be known: the run is a continued one, a checkpoint is damaged."""

    def sample(self, step, text):
        """A sample was taken."""

    def end(self):
        """Training has ended."""


def train(config: RunConfig, observer: RunObserver | None = None) -> TrainingResult:
    """Trains a GPT-2 on text by `model.fit`, and writes a model directory.

    The directory's top holds the best weights by validation loss; `training/` the run's configuration, token shards,
    metrics.csv, loss.png, samples.txt, TensorBoard logs, summary.json, and the last weights in `last`.

    The same configuration continues a run that was ended at any moment, to the weights that it would have had
    (see `tfgpt.training.resume`).

    Raises:
        UserError: for bad input; the directory is then as it was, or holds the last checkpoint.
        Terminated: when SIGTERM ended the run, after the step under way and a checkpoint.
    """
    observer = observer or RunObserver()
    directory = pathlib.Path(config.out)
    training = directory / "training"
    unfinished = is_unfinished(config)
    remove_leftovers(directory)
    keras.utils.set_random_seed(config.seed)
    model, shards = (_reopen if unfinished else _begin)(config, observer)
    tokenizer, window = model.tokenizer, model.backbone.max_sequence_length
    validation_split = shards.split("validation")
    validation = sequential_windows(validation_split, window, config.batch_size, config.validation_batches)
    schedule = learning_rate_schedule(config.learning_rate, config.min_learning_rate, config.warmup_steps, config.steps)
    tensorboard = TensorBoardLog(training / "tensorboard") if _wants_tensorboard(config) else None
    records = Records(
        training / "metrics.csv",
        config.batch_size * window,
        lambda step: float(schedule(step)),
        on_row=[observer.row, *([tensorboard.add_row] if tensorboard else [])],
    )
    interrupt, stopping = StopOnInterrupt(), EarlyStopping(config.patience)
    prompt = config.sample_prompt or tokenizer.decode(validation_split.read(0, 16).tolist())
    samples = Samples(
        training / "samples.txt",
        prompt,
        config.sample_tokens,
        config.seed,
        on_sample=[observer.sample, *([tensorboard.add_sample] if tensorboard else [])],
    )
    remembered = {"records": records, "samples": samples, "early_stopping": stopping}
    checkpoints = Checkpoints(directory, config.checkpoint_every, config.keep_checkpoints, remembered)
    if unfinished:
        path, state = restore_newest(checkpoints.checkpoints, model, observer.note)
        checkpoints.restore(path, state)
        observer.note(f"the run in {directory} goes on after step {checkpoints.step}")
    dataset = training_windows(shards.split("train"), window, config.batch_size, config.seed, checkpoints.step)
    observer.begin(config, model.count_params())
    begun = checkpoints.step // config.steps_per_execution
    try:
        model.fit(
            dataset,
            initial_epoch=begun,
            epochs=begun if stopping.stopped else config.steps // config.steps_per_execution,
            steps_per_epoch=config.steps_per_execution,
            validation_data=validation,
            validation_freq=config.evaluate_every // config.steps_per_execution,
            callbacks=[records, interrupt, samples, stopping, checkpoints],
            verbose=0,
            shuffle=False,  # the windows are shuffled already
        )
    except NonFiniteLoss as error:
        raise explain_divergence(error, model, shards, config, checkpoints, observer) from None
    except OSError as error:
        raise UserError(f"cannot write {training}: {(error.strerror or str(error)).lower()}") from error
    finally:
        interrupt.restore()
        observer.end()
        if tensorboard:
            tensorboard.close()
    if interrupt.signal is signal.SIGTERM:
        raise Terminated(records.step, checkpoints.newest)

    if checkpoints.best_step != records.step:
        observer.stage("reading the best weights back")
        read_weights(model.backbone, directory / "model.safetensors")
    observer.stage("evaluating the whole validation split")
    tokens = validation_split.read(0, validation_split.num_tokens)
    evaluation = evaluate_tokens(model, tokens, validation_split.num_bytes, stride=window)
    plot_loss_curve(training / "loss.png", records.losses("loss"), records.losses("validation_loss"))
    speeds = sorted(row["tokens_per_second"] for row in records.rows if "tokens_per_second" in row)
    result = TrainingResult(
        directory=str(directory),
        parameters=model.count_params(),
        steps=records.step,
        loss=evaluation.loss,
        perplexity=evaluation.perplexity,
        bits_per_byte=evaluation.bits_per_byte,
        best_step=checkpoints.best_step,
        tokens_per_second=speeds[len(speeds) // 2],
        samples=samples.samples,
        interrupted=interrupt.signal is not None,
    )
    write_text(training / "summary.json", json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    return result


def _begin(config, observer):
    """The model and the tokens of a new run, whose directory then holds nothing of an older one."""
    directory = pathlib.Path(config.out)
    training = directory / "training"
    observer.stage("reading text")
    documents = list(read_documents(config.data, max_bytes=config.max_bytes))
    model_config = preset_config(config.preset) | config.model_overrides()
    observer.stage("tokenizing")
    tokenizer = make_tokenizer(config, documents, config.vocabulary_size or model_config["vocabulary_size"])
    model = make_model(config, model_config, tokenizer)
    window = model.backbone.max_sequence_length
    # Tokens come to their place, and an older model goes, only when nothing that was given can be wrong any more.
    with _staging(directory) as staging:
        shards = write_token_shards(staging, documents, tokenizer, config.validation_fraction, config.seed)
        training_windows(shards.split("train"), window, config.batch_size, config.seed)  # for their checks
        sequential_windows(shards.split("validation"), window, config.batch_size)
        _replace_run(directory, staging)
    tokenizer.save(training / "tokenizer")
    write_text(training / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    return model, TokenShards.open(training / "tokens")


def _reopen(config, observer):
    """The model, with weights to be restored, and the tokens of an unfinished run."""
    observer.stage("checking the tokens of the unfinished run")
    tokenizer, shards = open_tokens(config, pathlib.Path(config.out) / "training")
    return make_model(config, preset_config(config.preset) | config.model_overrides(), tokenizer), shards


def make_tokenizer(config, documents, vocabulary_size):
    """The tokenizer that the run names: trained on the documents, or read from a directory."""
    if config.tokenizer == "character":
        return CharacterTokenizer.train(documents)
    if config.tokenizer == "bpe":
        return BytePairTokenizer.train(documents, vocabulary_size)
    directory = pathlib.Path(config.tokenizer)
    if not directory.is_dir():
        raise UserError(
            f"tokenizer is {config.tokenizer!r}, expected {', '.join(TOKENIZERS)} or a directory with vocab.json and "
            "merges.txt"
        )
    return BytePairTokenizer.from_files(directory / "vocab.json", directory / "merges.txt")


def make_model(config, model_config, tokenizer):
    """The model, randomly initialized under the run's seed and compiled."""
    if model_config["hidden_dim"] % model_config["num_heads"]:
        raise UserError(
            f"hidden_dim is {model_config['hidden_dim']}, expected a multiple of num_heads {model_config['num_heads']}"
        )
    model_config["vocabulary_size"] = tokenizer.vocabulary_size
    model_config["intermediate_dim"] = config.intermediate_dim or 4 * model_config["hidden_dim"]
    model = GPT2CausalLM(GPT2Backbone(**model_config, dtype=config.precision), tokenizer=tokenizer)
    optimizer = make_optimizer(config, model.trainable_variables)
    jit_compile = config.jit_compile
    if jit_compile is None:
        # XLA fuses the chains between products, but on a CPU it does not use the bfloat16 units, as oneDNN does.
        jit_compile = config.precision != "mixed_bfloat16"
    model.compile(
        optimizer=optimizer,
        # Validation batches are padded with rows of weight 0, which must not count in the mean.
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight"),
        steps_per_execution=config.steps_per_execution,
        jit_compile=jit_compile,
    )
    # Variables made in the first step would have it traced twice, and a checkpoint before it would lack them. Built
    # here, because `compile` puts loss scaling around the optimizer, which has variables of its own.
    model.optimizer.build(model.trainable_variables)
    return model


@contextlib.contextmanager
def _staging(directory):
    """The path of a hidden sibling of the model directory, gone when the block ends."""
    staging = directory.absolute().with_name(f".{directory.absolute().name}.{os.getpid()}.partial")
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace_run(directory, tokens):
    """Makes room for a new run in a model directory, and moves its tokens there."""
    training = directory / "training"
    try:
        training.mkdir(parents=True, exist_ok=True)
        remove_run(training)
        for name in ("config.json", "model.safetensors"):  # no whole model until the first checkpoint
            (directory / name).unlink(missing_ok=True)
        tokens.rename(training / "tokens")
    except OSError as error:
        raise UserError(f"cannot write {directory}: {(error.strerror or str(error)).lower()}") from error


def _wants_tensorboard(config):
    return config.tensorboard and TensorBoardLog.available()
