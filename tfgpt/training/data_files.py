"""A run's files of examples: which of them are held out, and whether they are still the same when it goes on."""

from __future__ import annotations

import json
import pathlib

import numpy as np

from tfgpt.atomic import write_text
from tfgpt.checksum import sha256_of_file
from tfgpt.errors import UserError
from tfgpt.json_file import read_json
from tfgpt.text import KeyedPermutation

SPLIT = 3  # beside the seed, keys which examples are held out


def hold_out(examples, fraction, seed, files):
    """The examples to train on and those to validate on, drawn by the seed, each in their order.

    Raises:
        UserError: if there are too few of them.
    """
    count = round(len(examples) * fraction)
    if not 0 < count < len(examples):
        raise UserError(
            f"{', '.join(files)} has {len(examples)} texts, expected enough to hold out {fraction:.0%} of them, or "
            "validation_data"
        )
    order = KeyedPermutation(len(examples), (seed, SPLIT))(np.arange(len(examples)))
    return [examples[i] for i in sorted(order[count:])], [examples[i] for i in sorted(order[:count])]


def remember_files(training, files, **more):
    """Writes training/data.json, by which `check_files` tells whether files are still the same."""
    write_text(pathlib.Path(training) / "data.json", json.dumps({"files": _checksums(files), **more}, indent=2) + "\n")


def check_files(training, files, out):
    """The contents of training/data.json, if the files are those that a run began with.

    Raises:
        UserError: if one is another or missing.
    """
    before = read_json(pathlib.Path(training) / "data.json")
    for path, checksum in _checksums(files).items():
        if before["files"].get(path) != checksum:
            raise UserError(
                f"{path} has changed, expected it as the unfinished run in {out} began with it; --overwrite starts anew"
            )
    return before


def _checksums(files):
    for path in files:
        if not pathlib.Path(path).is_file():
            raise UserError(f"{path} is missing, expected a file of examples")
    return {str(path): sha256_of_file(pathlib.Path(path)) for path in files}
