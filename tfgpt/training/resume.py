"""Whether a run goes on: what its directory holds, whether the same run was asked for, and its tokens as they were."""

import dataclasses
import json
import pathlib
import shutil

from tfgpt.errors import UserError
from tfgpt.models.gpt2.model_directory import read_json
from tfgpt.text import TokenShards, load_tokenizer
from tfgpt.training.run_data import PreparedData
from tfgpt.training.run_state import list_checkpoints

# What may differ from the run that is continued: it changes no weight. The directory may have been moved.
FREE = {"out", "overwrite", "checkpoint_every", "keep_checkpoints", "tensorboard", "wandb", "measure_peak"}
CHOSEN = ("precision", "compile")  # which a run writes down as its device made them


def is_unfinished(config):
    """Whether `config.out` holds a run that this one continues, to the same weights as if it had never stopped.

    A run whose process ended before its first checkpoint has nothing to continue: it begins again.

    Raises:
        UserError: if the directory holds a finished run or a model without resume state, or an unfinished run with
            another configuration.
    """
    directory = pathlib.Path(config.out)
    if config.overwrite:
        return False
    checkpoints = list_checkpoints(directory / "training" / "checkpoints")
    if not checkpoints or _is_finished(directory / "training"):
        if (directory / "config.json").exists():
            raise UserError(f"{directory} holds a model already, expected a new directory or --overwrite")
        return False
    _check_config(config, directory / "training" / "config.json")
    return True


def as_begun(config):
    """The configuration of an unfinished run with what it has chosen for its device, which this one may leave open."""
    stored = read_json(pathlib.Path(config.out) / "training" / "config.json")
    return dataclasses.replace(config, **{name: stored[name] for name in CHOSEN if name in stored})


def open_tokens(config, training):
    """The tokenizer of an unfinished run, and what it trains on and validates on, checked; no text is read again.

    Raises:
        UserError: if a file has changed since the run began, or if `config.tokenizer` names a tokenizer that has.
    """
    tokenizer = load_tokenizer(training / "tokenizer")
    named = pathlib.Path(config.tokenizer)
    if named.is_dir() and load_tokenizer(named).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"the tokenizer in {named} is not the one that the unfinished run in {config.out} began with, expected "
            f"that of {training / 'tokenizer'}; --overwrite starts anew"
        )
    if (training / "tokens").is_symlink():  # to tokens that were prepared before the run
        data = PreparedData(config)
        data.check_tokenizer(tokenizer)
        data.check_unchanged(training)
        return tokenizer, *data.parts()
    shards = TokenShards.open(training / "tokens")
    shards.check_contents()
    shards.check_tokenizer(tokenizer)
    return tokenizer, shards.split("train"), shards.split("validation")


def remove_leftovers(directory):
    """Removes temporary files that a killed process left in a model directory and beside it."""
    beside = directory.absolute().parent.glob(f".{directory.name}.*.partial*")
    for path in (*beside, *directory.glob(".*.partial*"), *(directory / "training").rglob(".*.partial*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_run(training):
    """Removes an older run from `training`; its checkpoints first, so that no other run can go on from them."""
    names = ("checkpoints", "summary.json", "config.json", "data.json", "tokens", "tokenizer", "last", "tensorboard")
    names += ("validation.source.txt", "validation.target.txt", "validation.jsonl")
    for name in names:
        path = training / name
        if path.is_dir() and not path.is_symlink():  # a link to prepared tokens goes, not what it points to
            doomed = path.with_name(f".{name}.old.partial")
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            shutil.rmtree(doomed)
        else:
            path.unlink(missing_ok=True)


def _is_finished(training):
    path = training / "summary.json"
    return path.exists() and not read_json(path).get("interrupted", False)


def _check_config(config, path):
    stored = read_json(path)
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, value in dataclasses.asdict(config).items():
        # A field that is newer than the run had its default in it.
        expected = stored.get(name, defaults[name])
        chosen = value == "auto" and name in CHOSEN  # as the run chose
        if not chosen and name not in FREE and json.loads(json.dumps(value)) != expected:
            raise UserError(
                f"{name} is {value!r}, expected {expected!r} as in the unfinished run in {config.out}, which goes on "
                "with the settings it began with; --overwrite starts anew"
            )
