"""OpenAI's TensorFlow checkpoints, written here as TF1's Saver wrote them."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tests.models import gpt2_numpy
from tests.weights.checkpoints import (
    CONFIG,
    DTYPES,
    HEADS,
    HPARAMS,
    TOKENIZER,
    VOCABULARY,
    WINDOW,
    openai_tensors,
    same,
    weights,
    write_hugging_face,
    write_openai,
)
from tfgpt.errors import UserError
from tfgpt.weights import convert, load
from tfgpt.weights.origins import read

IDS = np.random.default_rng(0).integers(0, VOCABULARY, (2, WINDOW))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors(dtype, tmp_path):
    directory = write_openai(tmp_path / "model", openai_tensors(weights(dtype)), tokenizer=TOKENIZER)
    checkpoint, _ = read(directory)
    same(checkpoint.tensors, weights(dtype))
    assert checkpoint.tokenizer.fingerprint == TOKENIZER.fingerprint
    assert checkpoint.config | {"dropout": None} == {
        "vocabulary_size": VOCABULARY,
        "num_layers": 2,
        "num_heads": HEADS,
        "hidden_dim": 8,
        "intermediate_dim": 32,
        "max_sequence_length": WINDOW,
        "dropout": None,
        "activation": "gelu_tanh",
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
    }


def test_logits(tmp_path):
    model = load(write_openai(tmp_path / "model", openai_tensors(weights())))
    assert model.tokenizer is None
    assert gpt2_numpy.relative_error(model(IDS), gpt2_numpy.forward(weights(), IDS, HEADS)) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written(dtype, tmp_path):
    directory = write_hugging_face(tmp_path / "model", weights(dtype))
    TOKENIZER.save(directory)
    convert(directory, tmp_path / "openai", to="openai")
    files = {path.name for path in (tmp_path / "openai").iterdir()}
    stored = {"checkpoint", "model.ckpt.index", "model.ckpt.data-00000-of-00001"}
    assert files == stored | {"hparams.json", "encoder.json", "vocab.bpe"}
    assert json.loads((tmp_path / "openai/hparams.json").read_text()) == HPARAMS
    reader = tf.train.load_checkpoint(str(tmp_path / "openai"))
    names = reader.get_variable_to_shape_map()
    same({name: reader.get_tensor(name) for name in names}, openai_tensors(weights(dtype)))
    assert reader.get_tensor("model/h1/attn/c_attn/w").shape == (1, 8, 24)


def test_the_newest_of_several_steps(tmp_path):
    """Of fine-tuning, which numbers its checkpoints: the one that `checkpoint` names."""
    directory = write_openai(tmp_path / "model", openai_tensors(weights()))
    for file in list(directory.glob("model.ckpt*")):
        file.rename(directory / file.name.replace("model.ckpt", "model-1000"))
    (directory / "checkpoint").write_text('model_checkpoint_path: "model-1000"\n')
    same(read(directory)[0].tensors, weights())


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"activation_function": "relu"}, "activation 'relu', expected 'gelu_tanh': OpenAI's code computes nothing"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon 1e-06, expected 1e-05: OpenAI's code computes nothing else"),
    ],
)
def test_what_openai_would_compute_otherwise_is_not_written(change, expected, tmp_path):
    directory = write_hugging_face(tmp_path / "model", weights(), config=CONFIG | change)
    with pytest.raises(UserError, match=expected):
        convert(directory, tmp_path / "openai", to="openai")
    assert not (tmp_path / "openai").exists()


# === Bad input ===


def test_hparams(tmp_path):
    for hparams, expected in (
        (HPARAMS | {"n_layer": None}, "n_layer None, expected a positive integer"),
        (HPARAMS | {"n_layer": 1.0}, "n_layer 1.0, expected a positive integer"),
        (HPARAMS | {"n_head": 3}, "n_embd 8, expected a multiple of n_head 3"),
        (HPARAMS | {"n_experts": 2}, "has unknown n_experts, expected n_vocab"),
        (HPARAMS | {"n_ctx": 17}, r"model/wpe of shape \(16, 8\), expected \(17, 8\) by its configuration"),
    ):
        with pytest.raises(UserError, match=expected):
            load(write_openai(tmp_path / "model", openai_tensors(weights()), hparams))


def test_all_missing_and_unknown_tensors_are_named(tmp_path):
    tensors = openai_tensors(weights()) | {"global_step": np.zeros((), "int64")}
    del tensors["model/h1/mlp/c_fc/w"], tensors["model/ln_f/b"]
    with pytest.raises(UserError, match="lacks model/h1/mlp/c_fc/w, model/ln_f/b and has unknown global_step,"):
        load(write_openai(tmp_path / "model", tensors))


@pytest.mark.parametrize("file", ["checkpoint", "model.ckpt.index", "model.ckpt.data-00000-of-00001"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_files_that_are_not_whole(file, damage, tmp_path):
    path = write_openai(tmp_path / "model", openai_tensors(weights())) / file
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="is not a whole TensorFlow checkpoint") as error:
        load(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_half_a_tokenizer(tmp_path):
    directory = write_openai(tmp_path / "model", openai_tensors(weights()), tokenizer=TOKENIZER)
    (directory / "vocab.bpe").unlink()
    with pytest.raises(UserError, match="vocab.bpe does not exist"):
        load(directory)
