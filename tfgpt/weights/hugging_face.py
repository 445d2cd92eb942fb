"""Hugging Face's GPT-2 directories; what is written is tfgpt's own model directory (see DESIGN.md)."""

from __future__ import annotations

import pathlib
import types

import numpy as np

from tfgpt.errors import UserError
from tfgpt.json_file import read_json
from tfgpt.models.gpt2 import hugging_face
from tfgpt.models.gpt2.model_directory import check_tied, write_files
from tfgpt.safetensors_file import SafetensorsFile
from tfgpt.text import load_tokenizer
from tfgpt.weights.checkpoint import Checkpoint, check_tensors
from tfgpt.weights.torch_files import load_torch_file, to_numpy

NAME = "Hugging Face model directory"

# A directory's weights, by the file that lists or holds them; the first that is there counts.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def read(directory):
    """The `Checkpoint` of a directory with config.json, weights in any of `WEIGHTS` and, if there, a tokenizer.

    Raises:
        UserError: if a file is missing or damaged, config.json asks for something that tfgpt does not do, or tensors
            contradict it.
    """
    directory = pathlib.Path(directory)
    path = directory / "config.json"
    contents = read_json(path)
    stored, source = _read_tensors(directory)
    names = hugging_face.canonical_names(stored, source)
    tensors = {full: stored[name] for full, name in names.items()}
    if hugging_face.OUTPUT_PROJECTION in tensors:
        output = tensors.pop(hugging_face.OUTPUT_PROJECTION)
        check_tied(output, tensors.get(hugging_face.EMBEDDING), source)
        contents["tie_word_embeddings"] = True  # whatever was said: the two are equal
    config = hugging_face.from_config(contents, path)
    config = {"initializer_range": 0.02, "layer_norm_epsilon": 1e-5, **config}
    shapes = hugging_face.tensor_shapes(config)
    check_tensors({names[full]: tensor for full, tensor in tensors.items()}, _as_stored(shapes, names), source)
    notes = []
    if contents.get("reorder_and_upcast_attn"):
        notes.append("its reorder_and_upcast_attn is what tfgpt does in float32 anyway: it changes rounding alone")
    end_token_id = contents.get("eos_token_id")
    return Checkpoint(
        config,
        {name: tensors[name] for name in shapes},
        _read_tokenizer(directory),
        end_token_id if type(end_token_id) is int else None,
        notes,
    )


def write(checkpoint, directory):
    """Writes a model directory into an existing directory, tensors in the dtype that they have.

    Raises:
        UserError: if a file cannot be written.
    """
    config = types.SimpleNamespace(**checkpoint.config)
    words = hugging_face.to_config(config, checkpoint.end_token_id, checkpoint.dtype)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in checkpoint.tensors.items()}
    write_files(directory, words, tensors, checkpoint.tokenizer)


def _as_stored(shapes, names):
    """Expected shapes under the names that the files use; tensors that are missing are named in the same style."""
    prefix = "transformer." if any(name.startswith("transformer.") for name in names.values()) else ""
    return {names.get(full, prefix + full.removeprefix("transformer.")): shape for full, shape in shapes.items()}


def _read_tensors(directory):
    """Arrays by the names that they are stored under, and the file that lists them."""
    found = [directory / name for name in WEIGHTS if (directory / name).is_file()]
    if not found:
        raise UserError(f"{directory} holds no weights, expected one of {', '.join(WEIGHTS)}")
    path = found[0]
    if path.suffix != ".json":
        return _read_file(path), path
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise UserError(f"{path} lacks a weight_map, expected the file of each tensor")
    files = sorted(set(shards.values()))
    if outside := [file for file in files if pathlib.PurePath(file).name != file]:
        raise UserError(f"{path} names {', '.join(outside)}, expected files beside it")
    if missing := [file for file in files if not (directory / file).is_file()]:
        raise UserError(f"{directory} lacks {', '.join(missing)}, expected every file that {path.name} names")
    tensors = {}
    for file in files:
        tensors |= {name: array for name, array in _read_file(directory / file).items() if shards.get(name) == file}
    if missing := sorted(set(shards) - set(tensors)):
        raise UserError(f"{path} names {', '.join(missing)}, expected these tensors in the files that it gives")
    return tensors, path


def _read_file(path):
    if path.suffix == ".bin":
        contents = load_torch_file(path)
        if not isinstance(contents, dict):
            raise UserError(f"{path} holds a {type(contents).__name__}, expected tensors by name")
        return to_numpy(contents, path)
    with SafetensorsFile(path) as file:
        return {name: file[name] for name in file.tensors}


def _read_tokenizer(directory):
    path = directory / "added_tokens.json"
    if not any((directory / name).exists() for name in ("tokenizer.json", "vocab.json", "merges.txt")):
        return None
    tokenizer = load_tokenizer(directory)
    if path.exists() and not (directory / "tokenizer.json").exists():
        added = [token for token, token_id in read_json(path).items() if tokenizer.encode(token) != [token_id]]
        if added:
            raise UserError(f"{path} adds {', '.join(added)}, expected these tokens in a tokenizer.json")
    return tokenizer
