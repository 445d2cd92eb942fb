"""The model directory: a GPT-2 on disk in Hugging Face's layout, written and read."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import safetensors
import safetensors.numpy
import tensorflow as tf

from tfgpt.atomic import atomic_file, write_text
from tfgpt.errors import UserError
from tfgpt.json_file import read_json
from tfgpt.models.gpt2 import hugging_face
from tfgpt.safetensors_file import SLICE, SafetensorsFile, forget_pages

WEIGHTS = "model.safetensors"
FLOATS = ("F32", "F16", "BF16")  # what weights are stored in


def write_model_files(model, directory):
    """Writes the files of a model directory, each atomically.

    Args:
        model: a `GPT2CausalLM`; its `tokenizer` is written if it has one.
        directory: an existing directory.
    """
    backbone, tokenizer = model.backbone, model.tokenizer
    end_token_id = None if tokenizer is None else tokenizer.end_token_id
    tensors = {name: variable.numpy() for name, variable in hugging_face.named_variables(backbone).items()}
    config = hugging_face.to_config(backbone, end_token_id, backbone.variable_dtype)
    write_files(directory, config, tensors, tokenizer)


def write_files(directory, config, tensors, tokenizer, generation_config=None):
    """Writes config.json, generation_config.json, the tokenizer's files and model.safetensors, each atomically.

    config.json comes last: a directory that has one is whole.

    Args:
        directory: an existing directory.
        config: the contents of config.json.
        tensors: NumPy arrays under Hugging Face's names.
        tokenizer: see `tfgpt.text`, or None.
        generation_config: the contents of generation_config.json; by default those of a GPT-2.

    Raises:
        UserError: if a file cannot be written.
    """
    directory = pathlib.Path(directory)
    if tokenizer is not None:
        window = config["n_positions"] if "n_positions" in config else config["max_position_embeddings"]
        tokenizer.save(directory, model_max_length=window)
    if generation_config is None:
        generation_config = {"do_sample": False, "eos_token_id": config["eos_token_id"]}
    write_text(directory / "generation_config.json", json.dumps(generation_config, indent=2) + "\n")
    write_weights(directory / WEIGHTS, tensors)
    write_text(directory / "config.json", json.dumps(config, indent=2) + "\n")


def write_weights(path, tensors):
    """Writes a safetensors file, atomically.

    Args:
        path: a `pathlib.Path`.
        tensors: NumPy arrays by name.

    Raises:
        UserError: if it cannot be written.
    """
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


def read_tokenizer(directory, vocabulary_size):
    """The tokenizer of a model directory, or None where there is none.

    Raises:
        UserError: if it is damaged, or has tokens without an embedding.
    """
    directory = pathlib.Path(directory)
    if not (directory / "tokenizer.json").exists() and not (directory / "vocab.json").exists():
        return None
    from tfgpt.text import load_tokenizer  # up the table of rooms: the tokenizer comes with the directory

    tokenizer = load_tokenizer(directory)
    check_vocabulary(tokenizer, vocabulary_size, directory)
    return tokenizer


def check_vocabulary(tokenizer, vocabulary_size, source):
    """Raises a `UserError` if the tokenizer has tokens without an embedding; embeddings without a token are padding."""
    tokens = 0 if tokenizer is None else tokenizer.vocabulary_size
    if tokens > vocabulary_size:
        raise UserError(
            f"the tokenizer of {source} has {tokens} tokens, expected at most the embedding's {vocabulary_size}"
        )


def read_weights(backbone, path):
    """Assigns the tensors of a safetensors file to the backbone, some rows at a time from the mapped file.

    Raises:
        UserError: if the file is missing, damaged, or its tensors are not this model's, naming them.
    """
    variables = hugging_face.named_variables(backbone)
    with SafetensorsFile(path) as file:
        names = hugging_face.canonical_names(file.tensors, path)
        if output := names.pop(hugging_face.OUTPUT_PROJECTION, None):
            embedding = names.get(hugging_face.EMBEDDING)
            check_tied(file[output], None if embedding is None else file[embedding], path)
        assign_stored(variables, names, file)


def assign_stored(variables, names, file, transposed=()):
    """Assigns a file's tensors to variables, when all of them are there and fit.

    Args:
        variables: by full name.
        names: the name in the file by full name.
        file: a `SafetensorsFile`.
        transposed: full names of matrices that the file has transposed.

    Raises:
        UserError: if the tensors are not those of the variables, naming them.
    """
    _check_names(file.path, set(names), set(variables))
    for full, variable in variables.items():
        name = names[full]
        found, shape = file.tensors[name], tuple(variable.shape)
        shape = shape[::-1] if full in transposed else shape
        if found.shape != shape:
            raise UserError(f"{file.path} has {name} of shape {found.shape}, expected {shape}")
        if found.dtype not in FLOATS:
            raise UserError(f"{file.path} has {name} of dtype {found.dtype}, expected one of {', '.join(FLOATS)}")
    for full, variable in variables.items():
        if full in transposed:
            assign_tensor(variable, file[names[full]].T)
            continue
        for start, rows in file.slices(names[full]):
            _assign(variable, start, rows)


def check_tied(output, embedding, source):
    """Expects a stored output projection to be the token embedding, bit for bit.

    Raises:
        UserError: if it is a matrix of its own.
    """
    if embedding is not None and output.shape == embedding.shape and output.dtype == embedding.dtype:
        bits = [np.ascontiguousarray(matrix).view(np.uint8) for matrix in (output, embedding)]
        if np.array_equal(*bits):
            return
    raise UserError(
        f"{source} has an lm_head.weight of its own, expected the token embedding's: untied output projections are not "
        "supported"
    )


def assign_tensor(variable, tensor):
    """Assigns a NumPy array, some rows at a time: whole, a copy of it would stay in TensorFlow's pool of memory."""
    rows = max(1, SLICE // max(1, tensor[:1].nbytes))
    for start in range(0, len(tensor), rows):
        _assign(variable, start, tensor[start : start + rows])
        forget_pages(tensor)


def _assign(variable, start, rows):
    """Assigns some rows in place; `variable[start:end].assign` would hold the variable, and so copy it."""
    tf.raw_ops.ResourceStridedSliceAssign(
        ref=variable.value.handle,
        begin=[start],
        end=[start + len(rows)],
        strides=[1],
        value=tf.cast(rows, variable.dtype),
    )


def _check_names(path, stored, expected):
    if stored != expected:
        missing, unknown = sorted(expected - stored), sorted(stored - expected)
        found = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise UserError(f"{path} {' and '.join(found)}, expected the {len(expected)} tensors of config.json's model")
