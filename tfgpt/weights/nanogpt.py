"""nanoGPT's ckpt.pt (github.com/karpathy/nanoGPT, `model.py` and `train.py`)."""

from __future__ import annotations

import pathlib

import numpy as np

from tfgpt.errors import UserError
from tfgpt.models.gpt2.hugging_face import ACTIVATIONS, EMBEDDING, OUTPUT_PROJECTION, canonical_names, tensor_shapes
from tfgpt.models.gpt2.model_directory import check_tied
from tfgpt.text import load_tokenizer
from tfgpt.weights.checkpoint import (
    DEFAULTS,
    Checkpoint,
    check_tensors,
    expect_values,
    read_sizes,
)
from tfgpt.weights.torch_files import import_torch, load_torch_file, to_numpy, to_torch

NAME = "nanoGPT checkpoint"
FILE = "ckpt.pt"

MODEL_ARGS = {
    "vocabulary_size": "vocab_size",
    "max_sequence_length": "block_size",
    "hidden_dim": "n_embd",
    "num_heads": "n_head",
    "num_layers": "n_layer",
}


def read(path):
    """The `Checkpoint` of a ckpt.pt, or of the directory that holds it; a tokenizer that stands beside it is read, too.

    nanoGPT computes GELU exactly, unless the file's `config` has an `activation_function`, which `write` leaves there.
    A model without biases gets biases of zero, which compute the same.

    Raises:
        UserError: if the file is missing, damaged, would execute code, or its tensors contradict its model_args.
    """
    path = pathlib.Path(path)
    path = path / FILE if path.is_dir() else path
    contents = load_torch_file(path)
    if not isinstance(contents, dict) or not all(
        isinstance(contents.get(key), dict) for key in ("model", "model_args")
    ):
        raise UserError(f"{path} lacks model or model_args, expected a checkpoint of nanoGPT")
    config, has_bias = _read_config(contents, path)
    prefix = "_orig_mod."  # left by torch.compile
    tensors = {name.removeprefix(prefix): t for name, t in to_numpy(contents["model"], path).items()}
    stored = {full: tensors[name] for full, name in canonical_names(tensors, path).items()}
    if OUTPUT_PROJECTION in stored:
        check_tied(stored.pop(OUTPUT_PROJECTION), stored.get(EMBEDDING), path)
    shapes, notes = tensor_shapes(config), []
    biases = {} if has_bias else {name: shape for name, shape in shapes.items() if name.endswith(".bias")}
    expected = {name: _their_layout(name, shape) for name, shape in shapes.items() if name not in biases}
    check_tensors(stored, expected, path)
    dtype = stored[EMBEDDING].dtype
    stored |= {name: np.zeros(shape, dtype) for name, shape in biases.items()}
    if biases:
        notes.append("its bias is False: the biases are zeros, which compute the same")
    tensors = {name: stored[name].T if _is_kernel(name, shape) else stored[name] for name, shape in shapes.items()}
    has_tokenizer = any((path.parent / name).exists() for name in ("tokenizer.json", "vocab.json"))
    return Checkpoint(config, tensors, load_tokenizer(path.parent) if has_tokenizer else None, notes=notes)


def write(checkpoint, directory):
    """Writes ckpt.pt, which nanoGPT's sample.py opens with --init_from=resume, and the tokenizer's files beside it.

    Raises:
        UserError: if PyTorch is not installed, or nanoGPT's code would compute something else.
    """
    torch = import_torch("to write nanoGPT's checkpoint")
    directory, config = pathlib.Path(directory), checkpoint.config
    whose = "nanoGPT's code"
    expect_values(config, whose, intermediate_dim=4 * config["hidden_dim"], layer_norm_epsilon=1e-5)
    if config["activation"] == "gelu_tanh":
        checkpoint.notes.append(
            "nanoGPT computes GELU exactly where this model has GPT-2's approximation, as when it opens GPT-2 itself: "
            "logits there differ in the third decimal"
        )
    else:
        expect_values(config, whose, activation="gelu")
    state = {
        name: to_torch(tensor.T if _is_kernel(name, tensor.shape) else tensor)
        for name, tensor in checkpoint.tensors.items()
    }
    state[OUTPUT_PROJECTION] = state[EMBEDDING]  # one storage, as nanoGPT saves it
    model_args = {theirs: config[ours] for ours, theirs in MODEL_ARGS.items()}
    contents = {
        "model": state,
        "model_args": model_args | {"bias": True, "dropout": config["dropout"]},
        "iter_num": 0,
        "best_val_loss": 1e9,
        "config": {"activation_function": ACTIVATIONS[config["activation"]]},
    }
    try:
        torch.save(contents, directory / FILE)
    except RuntimeError as error:  # how its writer reports a full disk
        raise UserError(f"cannot write {directory / FILE}: {error}") from error
    if checkpoint.tokenizer is not None:
        checkpoint.tokenizer.save(directory, model_max_length=config["max_sequence_length"])


def _read_config(contents, path):
    """The `GPT2Backbone` arguments, and whether there are biases."""
    found, trained = contents["model_args"], contents.get("config") or {}
    known = {*MODEL_ARGS.values(), "bias", "dropout"}
    if unknown := sorted(set(found) - known):
        raise UserError(f"{path} has unknown model_args {', '.join(unknown)}, expected {', '.join(sorted(known))}")
    names = {theirs: ours for ours, theirs in ACTIVATIONS.items()}
    activation = trained.get("activation_function", "gelu")
    if activation not in names:
        raise UserError(f"{path} has activation_function {activation!r}, expected one of {', '.join(names)}")
    config = DEFAULTS | read_sizes(found, MODEL_ARGS, path)
    config |= {"dropout": found.get("dropout", 0.0), "activation": names[activation]}
    return config, bool(found.get("bias", True))


def _is_kernel(name, shape):
    return len(shape) == 2 and not name.endswith(("wte.weight", "wpe.weight"))


def _their_layout(name, shape):
    """PyTorch's linear layers hold their kernels as (out, in)."""
    return shape[::-1] if _is_kernel(name, shape) else shape
