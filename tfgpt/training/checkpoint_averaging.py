"""The mean of the weights of a run's last checkpoints (Vaswani et al. 2017, section 6.1)."""

from __future__ import annotations

import pathlib

import numpy as np

from tfgpt.safetensors_file import SafetensorsFile
from tfgpt.training.run_state import FILES, DamagedCheckpoint, list_checkpoints, read_extra, variable_names


def average_last_checkpoints(model, directory, count):
    """Assigns a model the mean of its trainable variables over a run's last checkpoints that are whole.

    Args:
        model: the run's.
        directory: of its checkpoints.
        count: how many, at most: there may be fewer.

    Returns:
        The steps of those that the mean is of; with none the model stays as it is.
    """
    paths = [path for path in list_checkpoints(directory) if int(path.name) > 0 and _is_whole(path)][-count:]
    sums = dict.fromkeys(variable_names(model), 0.0)
    for path in paths:
        with SafetensorsFile(pathlib.Path(path) / FILES[0]) as file:
            for name in sums:
                sums[name] = sums[name] + np.asarray(file[name], np.float64)
    trainable = {id(variable) for variable in model.trainable_variables}
    for name, variable in variable_names(model).items():
        if id(variable) in trainable and paths:
            variable.assign((sums[name] / len(paths)).astype(variable.dtype))
    return [int(path.name) for path in paths]


def _is_whole(path):
    try:
        read_extra(path)  # which compares its checksums
    except DamagedCheckpoint:
        return False
    return True
