"""OpenAI's TensorFlow checkpoints (github.com/openai/gpt-2, `src/model.py`), read and written without a TF1 graph."""

from __future__ import annotations

import json
import pathlib
import re
import tempfile

import numpy as np
import tensorflow as tf

from tfgpt.atomic import write_text
from tfgpt.errors import UserError
from tfgpt.json_file import read_json
from tfgpt.models.gpt2.hugging_face import tensor_shapes
from tfgpt.text import BytePairTokenizer
from tfgpt.weights.checkpoint import (
    DEFAULTS,
    Checkpoint,
    check_tensors,
    expect_byte_pairs,
    expect_values,
    read_sizes,
)

NAME = "TensorFlow checkpoint of OpenAI"

HPARAMS = {
    "vocabulary_size": "n_vocab",
    "max_sequence_length": "n_ctx",
    "hidden_dim": "n_embd",
    "num_heads": "n_head",
    "num_layers": "n_layer",
}


def read(directory):
    """The `Checkpoint` of a directory with checkpoint, model.ckpt.*, hparams.json and, if there, the tokenizer's files.

    Raises:
        UserError: if a file is missing or damaged, or if tensors contradict hparams.json.
    """
    directory = pathlib.Path(directory)
    path = directory / "hparams.json"
    hparams = read_json(path)
    if unknown := sorted(set(hparams) - set(HPARAMS.values())):
        raise UserError(f"{path} has unknown {', '.join(unknown)}, expected {', '.join(HPARAMS.values())}")
    config = DEFAULTS | read_sizes(hparams, HPARAMS, path)
    shapes = tensor_shapes(config)
    stored = _read_tensors(directory)
    check_tensors(stored, {their_name(name): _their_shape(name, shape) for name, shape in shapes.items()}, directory)
    tensors = {name: stored[their_name(name)].reshape(shape) for name, shape in shapes.items()}
    return Checkpoint(config, tensors, read_tokenizer(directory))


def read_tokenizer(directory):
    """The tokenizer of encoder.json and vocab.bpe, or None where neither is."""
    vocabulary, merges = directory / "encoder.json", directory / "vocab.bpe"
    if not vocabulary.exists() and not merges.exists():
        return None
    return BytePairTokenizer.from_files(vocabulary, merges)


def write(checkpoint, directory):
    """Writes OpenAI's files into an existing directory.

    Raises:
        UserError: if OpenAI's code would compute something else of them.
    """
    directory, config = pathlib.Path(directory), checkpoint.config
    expect_values(
        config,
        "OpenAI's code",
        intermediate_dim=4 * config["hidden_dim"],
        activation="gelu_tanh",
        layer_norm_epsilon=1e-5,
    )
    expect_byte_pairs(checkpoint.tokenizer, "OpenAI's format")
    _write_tensors(checkpoint.tensors, directory)
    hparams = {theirs: config[ours] for ours, theirs in HPARAMS.items()}
    write_text(directory / "hparams.json", json.dumps(hparams, indent=2) + "\n")
    if checkpoint.tokenizer is not None:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.tokenizer.save(folder)
            for ours, theirs in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
                write_text(directory / theirs, (pathlib.Path(folder) / ours).read_text(encoding="utf-8"))


def their_name(name):
    """OpenAI's name of a tensor.

    Example:

    >>> their_name("transformer.h.0.attn.c_attn.weight"), their_name("transformer.ln_f.bias")
    ('model/h0/attn/c_attn/w', 'model/ln_f/b')
    """
    name = name.replace("transformer.", "model/").replace(".h.", "/h").replace("/h.", "/h")
    if name.endswith(("wte.weight", "wpe.weight")):
        return name.removesuffix(".weight")
    is_norm = re.search(r"ln_\w+\.weight$", name)
    return name.replace(".weight", "/g" if is_norm else "/w").replace(".bias", "/b").replace(".", "/")


def _their_shape(name, shape):
    """Kernels are those of convolutions of width 1, (1, in, out)."""
    is_kernel = len(shape) == 2 and not name.endswith(("wte.weight", "wpe.weight"))
    return (1, *shape) if is_kernel else shape


def _read_tensors(directory):
    try:
        reader = tf.train.load_checkpoint(str(directory))
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except (ValueError, RuntimeError, IndexError, tf.errors.OpError) as error:  # its words for missing or damaged files
        said = " ".join(str(error).split())
        raise UserError(f"{directory} is not a whole TensorFlow checkpoint: {said}") from error


def _write_tensors(tensors, directory):
    stored = {
        their_name(name): np.reshape(tensor, _their_shape(name, tensor.shape)) for name, tensor in tensors.items()
    }
    try:
        # What TF1's Saver does; tf.train.Checkpoint would write names of its own.
        tf.raw_ops.SaveV2(
            prefix=str(directory / "model.ckpt"),
            tensor_names=list(stored),
            shape_and_slices=[""] * len(stored),
            tensors=[tf.constant(tensor) for tensor in stored.values()],
        )
    except tf.errors.OpError as error:
        raise UserError(f"cannot write {directory}/model.ckpt: {error.message}") from error
    text = 'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n'
    write_text(directory / "checkpoint", text)
