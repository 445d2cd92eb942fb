"""nanoGPT's ckpt.pt, against nanoGPT's arithmetic in plain PyTorch; and the pytorch_model.bin of old."""

import json

import numpy as np
import pytest

from tests.models import gpt2_numpy
from tests.weights.checkpoints import (
    CONFIG,
    DTYPES,
    HEADS,
    LAYERS,
    TOKENIZER,
    VOCABULARY,
    WIDTH,
    WINDOW,
    same,
    weights,
    write_hugging_face,
)
from tfgpt.errors import UserError
from tfgpt.weights import convert, load
from tfgpt.weights.origins import read
from tfgpt.weights.torch_files import to_torch

pytestmark = pytest.mark.interop

torch = pytest.importorskip("torch")

IDS = np.random.default_rng(0).integers(0, VOCABULARY, (2, WINDOW))
MODEL_ARGS = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "block_size": WINDOW, "vocab_size": VOCABULARY}
KERNELS = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def logits(state, token_ids, approximate="none"):
    """What nanoGPT computes with a state dictionary, whose biases may be missing."""
    functional = torch.nn.functional

    def linear(name, x):
        return functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name, x):
        return functional.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state.get(f"{name}.bias"), 1e-5)

    x = state["transformer.wte.weight"][token_ids] + state["transformer.wpe.weight"][: token_ids.shape[1]]
    for i in range(LAYERS):
        block = f"transformer.h.{i}"
        q, k, v = linear(f"{block}.attn.c_attn", norm(f"{block}.ln_1", x)).split(WIDTH, dim=2)
        heads = [part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (q, k, v)]
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        x = x + linear(f"{block}.attn.c_proj", mixed)
        inner = linear(f"{block}.mlp.c_fc", norm(f"{block}.ln_2", x))
        x = x + linear(f"{block}.mlp.c_proj", functional.gelu(inner, approximate=approximate))
    return (norm("transformer.ln_f", x) @ state["lm_head.weight"].T).numpy()


def state_dict(dtype="float32", bias=True):
    """Weights under nanoGPT's names; its linear layers hold (out, in)."""
    state = {}
    for name, tensor in weights(dtype).items():
        if bias or not name.endswith(".bias"):
            state[name] = to_torch(tensor.T if name.endswith(KERNELS) else tensor)
    return state | {"lm_head.weight": state["transformer.wte.weight"]}


def write_nanogpt(directory, state, bias=True, **contents):
    directory.mkdir(exist_ok=True)
    model_args = MODEL_ARGS | {"bias": bias, "dropout": 0.0}
    best = torch.tensor(1.5)  # as train.py saves it
    rest = {"optimizer": {"state": {}, "param_groups": []}, "iter_num": 3, "best_val_loss": best, "config": {"a": 1}}
    torch.save({"model": state, "model_args": model_args, **rest, **contents}, directory / "ckpt.pt")
    return directory


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_tensors(dtype, prefix, tmp_path):
    state = {prefix + name: tensor for name, tensor in state_dict(dtype).items()}
    directory = write_nanogpt(tmp_path / "out", state)
    for path in (directory, directory / "ckpt.pt"):
        checkpoint, _ = read(path)
        same(checkpoint.tensors, weights(dtype))
        assert (checkpoint.config["activation"], checkpoint.config["dropout"]) == ("gelu", 0.0)


@pytest.mark.parametrize("bias", [True, False])
def test_logits(bias, tmp_path):
    state = state_dict(bias=bias)
    directory = write_nanogpt(tmp_path / "out", state, bias)
    assert gpt2_numpy.relative_error(load(directory)(IDS), logits(state, torch.tensor(IDS))) < 1e-5
    notes = read(directory)[0].notes
    assert [note.startswith("its bias is False: the biases are zeros") for note in notes] == ([] if bias else [True])


def test_masks_of_old_versions_are_left_out(tmp_path):
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, WINDOW, WINDOW).tril() for i in range(LAYERS)}
    same(read(write_nanogpt(tmp_path / "out", state_dict() | masks))[0].tensors, weights())


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written(dtype, tmp_path):
    source = write_hugging_face(tmp_path / "source", weights(dtype), config=CONFIG | {"activation_function": "gelu"})
    TOKENIZER.save(source)
    checkpoint, _ = convert(source, tmp_path / "out", to="nanogpt")
    assert checkpoint.notes == []
    contents = torch.load(tmp_path / "out/ckpt.pt", weights_only=True)
    assert contents["model_args"] == MODEL_ARGS | {"bias": True, "dropout": 0.1}
    state = state_dict(dtype)
    assert contents["model"].keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(contents["model"][name], tensor), name
    assert contents["model"]["lm_head.weight"].data_ptr() == contents["model"]["transformer.wte.weight"].data_ptr()
    found, expected = logits(state_dict(), torch.tensor(IDS)), load(source)
    if dtype == "float32":
        assert gpt2_numpy.relative_error(expected(IDS), found) < 1e-5
    assert read(tmp_path / "out")[0].tokenizer.fingerprint == TOKENIZER.fingerprint


def test_the_difference_in_gelu_is_said_aloud_and_kept(tmp_path):
    source = write_hugging_face(tmp_path / "source", weights())
    [note] = convert(source, tmp_path / "out", to="nanogpt")[0].notes
    assert note.startswith("nanoGPT computes GELU exactly")
    state = torch.load(tmp_path / "out/ckpt.pt", weights_only=True)["model"]
    error = gpt2_numpy.relative_error(load(source)(IDS), logits(state, torch.tensor(IDS)))
    assert 1e-5 < error < 1e-2  # there; and here the model is still the same one
    np.testing.assert_array_equal(load(tmp_path / "out")(IDS), load(source)(IDS))


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"model_args": MODEL_ARGS | {"n_kv_head": 1}}, "unknown model_args n_kv_head, expected"),
        ({"model_args": MODEL_ARGS | {"n_head": 0}}, "n_head 0, expected a positive integer"),
        ({"model_args": MODEL_ARGS | {"vocab_size": 299}}, r"wte.weight of shape \(300, 8\), expected \(299, 8\)"),
        ({"model_args": None}, "lacks model or model_args"),
        ({"config": {"activation_function": "relu6"}}, "activation_function 'relu6', expected one of"),
        (
            {"model": state_dict(bias=False)},
            "lacks transformer.h.0.ln_1.bias, transformer.h.0.attn.c_attn.bias, .*transformer.ln_f.bias, expected",
        ),
        (
            {"model": state_dict() | {"lm_head.weight": torch.zeros(VOCABULARY, WIDTH)}},
            "lm_head.weight of its own, expected the token embedding's",
        ),
    ],
)
def test_bad_input(changes, expected, tmp_path):
    with pytest.raises(UserError, match=expected):
        load(write_nanogpt(tmp_path / "out", state_dict(), **changes))


def test_what_nanogpt_would_compute_otherwise_is_not_written(tmp_path):
    source = write_hugging_face(tmp_path / "source", weights(), config=CONFIG | {"activation_function": "relu"})
    with pytest.raises(UserError, match="activation 'relu', expected 'gelu': nanoGPT's code computes nothing else"):
        convert(source, tmp_path / "out", to="nanogpt")


# === pytorch_model.bin ===


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zip_file", [True, False])
@pytest.mark.parametrize("shards", [1, 2])
def test_pytorch_model_bin(dtype, zip_file, shards, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    state = {name.removeprefix("transformer."): to_torch(tensor) for name, tensor in weights(dtype).items()}
    state |= {f"h.{i}.attn.bias": torch.ones(1, 1, WINDOW, WINDOW).tril().byte() for i in range(LAYERS)}
    files = ["pytorch_model.bin"] if shards == 1 else ["pytorch_model-1.bin", "pytorch_model-2.bin"]
    weight_map = {name: files[i % shards] for i, name in enumerate(state)}
    for file in files:
        part = {name: state[name] for name in state if weight_map[name] == file}
        torch.save(part, tmp_path / file, _use_new_zipfile_serialization=zip_file)
    if shards > 1:
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    same(read(tmp_path)[0].tensors, weights(dtype))
