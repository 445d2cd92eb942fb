"""Whether a run goes on: what its directory holds, whether the same run was asked for, and its tokens as they were."""

import dataclasses
import json
import pathlib
import shutil

from tfgpt.errors import UserError
from tfgpt.models.gpt2.model_directory import read_json
from tfgpt.text import TokenShards, load_tokenizer
from tfgpt.training.run_config import RunConfig
from tfgpt.training.run_state import list_checkpoints

# What may differ from the run that is continued: it changes no weight. The directory may have been moved.
FREE = {"out", "overwrite", "checkpoint_every", "keep_checkpoints", "tensorboard"}


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


def open_tokens(config, training):
    """The tokenizer and the token shards of an unfinished run, checked; its text is not read again.

    Raises:
        UserError: if a file has changed since the run began, or if `config.tokenizer` names a tokenizer that has.
    """
    shards = TokenShards.open(training / "tokens")
    shards.check_contents()
    tokenizer = load_tokenizer(training / "tokenizer")
    shards.check_tokenizer(tokenizer)
    named = pathlib.Path(config.tokenizer)
    if named.is_dir() and load_tokenizer(named).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"the tokenizer in {named} is not the one that the unfinished run in {config.out} began with, expected "
            f"that of {training / 'tokenizer'}; --overwrite starts anew"
        )
    return tokenizer, shards


def remove_leftovers(directory):
    """Removes temporary files that a killed process left in a model directory and beside it."""
    beside = directory.absolute().parent.glob(f".{directory.name}.*.partial*")
    for path in (*beside, *directory.glob(".*.partial*"), *(directory / "training").rglob(".*.partial*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_run(training):
    """Removes an older run from `training`; its checkpoints first, so that no other run can go on from them."""
    for name in ("checkpoints", "summary.json", "config.json", "tokens", "tokenizer", "last", "tensorboard"):
        path = training / name
        if path.is_dir():
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
    defaults = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    for name, value in dataclasses.asdict(config).items():
        # A field that is newer than the run had its default in it.
        expected = stored.get(name, defaults[name])
        if name not in FREE and json.loads(json.dumps(value)) != expected:
            raise UserError(
                f"{name} is {value!r}, expected {expected!r} as in the unfinished run in {config.out}, which goes on "
                "with the settings it began with; --overwrite starts anew"
            )
