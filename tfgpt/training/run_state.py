"""Resume state: everything that training changes, in directories that are whole or recognized as damaged.

A checkpoint is a directory `training/checkpoints/NNNNNN`, named after the step:

    model.safetensors       the model's variables in order: weights, states of seed generators
    optimizer.safetensors   the optimizer's in order: step, moments, loss scale, averages
    state.json              the step and what the callbacks remember
    SHA256SUMS              of these three, as `sha256sum -c` reads them
"""

import json
import os
import pathlib
import shutil

import numpy as np
import safetensors
import safetensors.numpy

from tfgpt.atomic import atomic_directory
from tfgpt.checksum import sha256_of_file
from tfgpt.errors import UserError

STATE = "state.json"
CHECKSUMS = "SHA256SUMS"


class DamagedCheckpoint(Exception):
    """A checkpoint is not what was written; the message says which file and how."""


# === One checkpoint ===


def save_state(path, model, extra):
    """Writes the state of a compiled model: aside, flushed to the disk, then renamed.

    Args:
        path: the checkpoint's directory; one that is there is replaced.
        model: a Keras model whose optimizer is built.
        extra: what else is to be remembered, a dictionary for JSON.

    Raises:
        UserError: if it cannot be written; what `path` held is then still there.
    """
    path = pathlib.Path(path)
    with atomic_directory(path, overwrite=True) as temporary:
        for name, variables in state_variables(model).items():
            tensors = {_tensor_name(i, v): np.asarray(v.numpy()) for i, v in enumerate(variables)}
            try:
                safetensors.numpy.save_file(tensors, temporary / name)
            except safetensors.SafetensorError as error:  # how its writer reports a full disk
                raise UserError(f"cannot write {path}: {error}") from error
        (temporary / STATE).write_text(json.dumps(extra, indent=2) + "\n", encoding="utf-8")
        sums = [f"{sha256_of_file(file)}  {file.name}\n" for file in sorted(temporary.iterdir())]
        (temporary / CHECKSUMS).write_text("".join(sums), encoding="utf-8")
        sync_tree(temporary)
    _sync(path.parent)  # the rename


def restore_state(path, model):
    """Assigns what `save_state` wrote to a model of the same architecture and optimizer.

    Nothing is assigned before every checksum, name and shape was found right.

    Returns:
        The `extra` of `save_state`.

    Raises:
        DamagedCheckpoint: if a file is missing or has changed.
        UserError: if the checkpoint is another model's or another optimizer's.
    """
    path = pathlib.Path(path)
    extra = read_extra(path)
    for assigns in (False, True):
        for name, variables in state_variables(model).items():
            with safetensors.safe_open(path / name, framework="numpy") as tensors:
                _check_names(path / name, tensors.keys(), variables)
                for i, variable in enumerate(variables):
                    shape = tuple(tensors.get_slice(_tensor_name(i, variable)).get_shape())
                    if shape != tuple(variable.shape):
                        raise UserError(
                            f"{path / name} has {_tensor_name(i, variable)} of shape {shape}, expected "
                            f"{tuple(variable.shape)}, as this run's configuration makes it"
                        )
                    if assigns:
                        variable.assign(tensors.get_tensor(_tensor_name(i, variable)))
    return extra


def read_extra(path):
    """Checks the checksums of a checkpoint and returns what was remembered in it beside tensors.

    Raises:
        DamagedCheckpoint: if a file is missing or has changed.
    """
    path = pathlib.Path(path)
    try:
        lines = (path / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        expected = {name: digest for digest, name in (line.split("  ") for line in lines)}
        for name in (STATE, *FILES):
            found = sha256_of_file(path / name)
            if found != expected.get(name):
                raise DamagedCheckpoint(f"{path / name} has changed: found SHA-256 {found}, expected {expected[name]}")
        return json.loads((path / STATE).read_text(encoding="utf-8"))
    except OSError as error:
        raise DamagedCheckpoint(f"cannot read {error.filename}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, KeyError) as error:  # also of bytes that are not UTF-8
        raise DamagedCheckpoint(f"{path / CHECKSUMS} is not a list of the checkpoint's files") from error


FILES = ("model.safetensors", "optimizer.safetensors")


def state_variables(model):
    """Variables by file. Seed generators are among the model's variables; its metrics, which each epoch resets, not."""
    metrics = {id(v) for v in model.metrics_variables}
    return dict(zip(FILES, ([v for v in model.variables if id(v) not in metrics], model.optimizer.variables)))


def variable_names(model):
    """The model's variables by the names that they have in a checkpoint's first file."""
    return {_tensor_name(i, v): v for i, v in enumerate(state_variables(model)[FILES[0]])}


def _tensor_name(number, variable):
    # Keras' names have counters in them that depend on what else the process has made; order and last words do not.
    return f"{number:04d}.{variable.name.rstrip('_0123456789').rpartition('_')[2]}"


def _check_names(path, found, variables):
    expected = {_tensor_name(i, v) for i, v in enumerate(variables)}
    if set(found) != expected:
        odd = sorted(set(found) ^ expected)
        raise UserError(
            f"{path} has {len(set(found))} tensors, expected the {len(expected)} of this run's configuration; the "
            f"first that only one of them has is {odd[0]}"
        )


# === A run's checkpoints ===


def checkpoint_path(directory, step):
    """Where the checkpoint of a step lies in a run's checkpoint directory."""
    return pathlib.Path(directory) / f"{step:06d}"


def list_checkpoints(directory):
    """The checkpoints of a run, oldest first, damaged ones among them."""
    directory = pathlib.Path(directory)
    paths = [path for path in directory.iterdir() if path.name.isdecimal()] if directory.is_dir() else []
    return sorted(paths, key=lambda path: int(path.name))


def restore_newest(directory, model, on_warning):
    """Restores the newest whole checkpoint; damaged ones that are newer are set aside as `NNNNNN.damaged`.

    Args:
        directory: of the checkpoints.
        model: see `restore_state`.
        on_warning: called with a sentence for each damaged checkpoint.

    Returns:
        The checkpoint's path and its `extra`.

    Raises:
        UserError: if there is no whole checkpoint, or if it is another model's.
    """
    paths = list_checkpoints(directory)
    for i, path in reversed(list(enumerate(paths))):
        try:
            return path, restore_state(path, model)
        except DamagedCheckpoint as error:
            if i == 0:
                raise UserError(
                    f"{directory} has no whole checkpoint, expected one to continue from ({error}); --overwrite starts "
                    "the run anew"
                ) from error
            on_warning(f"checkpoint {path} is damaged, so the run goes on from {paths[i - 1].name}: {error}")
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
    raise UserError(f"{directory} has no checkpoint, expected one to continue from; --overwrite starts the run anew")


def prune_checkpoints(directory, keep):
    """Removes all checkpoints but the newest ones, the oldest first."""
    for path in list_checkpoints(directory)[:-keep]:
        # Renamed first, so that a kill leaves no half of a checkpoint under its name.
        doomed = path.with_name(f".{path.name}.pruned.partial")
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)
        shutil.rmtree(doomed)


def sync_tree(directory):
    """Flushes a directory's files to the disk, and their names."""
    for path in (*pathlib.Path(directory).rglob("*"), pathlib.Path(directory)):
        _sync(path)


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
