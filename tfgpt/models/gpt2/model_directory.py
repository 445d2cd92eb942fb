"""The model directory: a GPT-2 on disk in Hugging Face's layout, written and read."""

from __future__ import annotations

import json
import math
import pathlib

import safetensors
import safetensors.numpy
import tensorflow as tf

from tfgpt.atomic import atomic_file, write_text
from tfgpt.errors import UserError
from tfgpt.models.gpt2 import hugging_face

WEIGHTS = "model.safetensors"
ASSIGNED_AT_ONCE = 2**24  # bytes


def write_model_files(model, directory):
    """Writes config.json, generation_config.json, the tokenizer's files and model.safetensors, each atomically.

    config.json comes last: a directory that has one is whole.

    Args:
        model: a `GPT2CausalLM`; its `tokenizer` is written if it has one.
        directory: an existing directory.
    """
    directory = pathlib.Path(directory)
    tokenizer, backbone = model.tokenizer, model.backbone
    end_token_id = None if tokenizer is None else tokenizer.end_token_id
    if tokenizer is not None:
        tokenizer.save(directory, model_max_length=backbone.max_sequence_length)
    generation_config = {"do_sample": False, "eos_token_id": end_token_id}
    write_text(directory / "generation_config.json", json.dumps(generation_config, indent=2) + "\n")
    write_weights(backbone, directory / WEIGHTS)
    config = hugging_face.to_config(backbone, end_token_id)
    write_text(directory / "config.json", json.dumps(config, indent=2) + "\n")


def write_weights(backbone, path):
    """Writes the weights as safetensors under Hugging Face's names."""
    tensors = {name: variable.numpy() for name, variable in hugging_face.named_variables(backbone).items()}
    with atomic_file(path) as temporary:
        try:
            safetensors.numpy.save_file(tensors, temporary, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:  # how its writer reports a full disk
            raise UserError(f"cannot write {path}: {error}") from error


def read_config(directory):
    """The `GPT2Backbone` arguments in a model directory's config.json.

    Raises:
        UserError: if it is missing, not JSON, or not a GPT-2.
    """
    path = pathlib.Path(directory) / "config.json"
    return hugging_face.from_config(read_json(path), path)


def read_json(path):
    """A JSON object read from a file.

    Raises:
        UserError: if the file is missing or holds anything else.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing, expected a model directory with a {path.name}")
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:  # also of bytes that are not UTF-8
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(contents, dict):
        raise UserError(f"{path} holds a JSON {type(contents).__name__}, expected an object")
    return contents


def read_weights(backbone, path):
    """Assigns the tensors of a safetensors file to the backbone, one at a time from the mapped file.

    Raises:
        UserError: if the file is missing, truncated, or its tensors are not this model's, naming them.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing, expected the model's weights")
    variables = hugging_face.named_variables(backbone)
    try:
        with safetensors.safe_open(path, framework="numpy") as tensors:
            stored = set(tensors.keys())
            _check_names(path, stored, set(variables))
            for name, variable in variables.items():
                shape = tuple(tensors.get_slice(name).get_shape())
                if shape != tuple(variable.shape):
                    raise UserError(f"{path} has {name} of shape {shape}, expected {tuple(variable.shape)}")
        for name, variable in variables.items():
            # Opened anew, the file's pages that were read before do not stay in this process's memory.
            with safetensors.safe_open(path, framework="numpy") as tensors:
                _assign(variable, tensors.get_slice(name))
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from error


def _assign(variable, stored):
    """Assigns a stored tensor some rows at a time: whole, a copy of it would stay in TensorFlow's pool of memory."""
    length, rows = variable.shape[0], max(1, ASSIGNED_AT_ONCE // (4 * math.prod(variable.shape[1:])))
    for start in range(0, length, rows):
        end = min(start + rows, length)
        # In place; `variable[start:end].assign` would hold the variable, and so copy it.
        tf.raw_ops.ResourceStridedSliceAssign(
            ref=variable.value.handle,
            begin=[start],
            end=[end],
            strides=[1],
            value=tf.cast(stored[start:end], variable.dtype),
        )


def _check_names(path, stored, expected):
    if stored != expected:
        missing, unknown = sorted(expected - stored), sorted(stored - expected)
        found = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise UserError(f"{path} {' and '.join(found)}, expected the {len(expected)} tensors of config.json's model")
