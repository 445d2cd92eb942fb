"""A run's place in its model directory: tokens are written beside it, and an older run goes when they are there."""

import contextlib
import os
import shutil

from tfgpt.errors import UserError
from tfgpt.training.resume import remove_run


@contextlib.contextmanager
def staging(directory):
    """The path of a hidden sibling of the model directory, gone when the block ends.

    Args:
        directory: a `pathlib.Path`.
    """
    path = directory.absolute().with_name(f".{directory.absolute().name}.{os.getpid()}.partial")
    try:
        yield path
    finally:
        if path.is_symlink():  # to tokens that were prepared before the run
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)


def replace_run(directory, tokens=None):
    """Makes room for a new run in a model directory, and moves its tokens there.

    Args:
        directory: a `pathlib.Path`.
        tokens: the path of its tokens, a directory or a link to one; None where a run keeps none.
    """
    training = directory / "training"
    try:
        training.mkdir(parents=True, exist_ok=True)
        remove_run(training)
        for name in ("config.json", "model.safetensors"):  # no whole model until the first checkpoint
            (directory / name).unlink(missing_ok=True)
        if tokens is not None:
            tokens.rename(training / "tokens")
    except OSError as error:
        raise UserError(f"cannot write {directory}: {(error.strerror or str(error)).lower()}") from error
