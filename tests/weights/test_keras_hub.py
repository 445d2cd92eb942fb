"""keras-hub's own code opens what is written, and its own files are read."""

import json

import keras_hub
import numpy as np
import pytest

from tests.models import gpt2_numpy
from tests.weights.checkpoints import (
    CONFIG,
    DTYPES,
    HEADS,
    TOKENIZER,
    VOCABULARY,
    WINDOW,
    same,
    weights,
    write_hugging_face,
)
from tfgpt.errors import UserError
from tfgpt.text import CharacterTokenizer
from tfgpt.weights import Checkpoint, convert, load
from tfgpt.weights import keras_hub as ours
from tfgpt.weights.origins import read

IDS = np.random.default_rng(0).integers(0, VOCABULARY, (2, WINDOW))


@pytest.fixture
def source(tmp_path):
    directory = write_hugging_face(tmp_path / "source", weights())
    TOKENIZER.save(directory)
    return directory


def their_model(dtype="float32", tokenizer=None):
    backbone = keras_hub.models.GPT2Backbone(VOCABULARY, 2, HEADS, 8, 32, max_sequence_length=WINDOW, dtype=dtype)
    for variable in backbone.weights:
        variable.assign(np.random.default_rng(len(variable.path)).normal(size=variable.shape))
    return keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=None)


def test_keras_hub_opens_a_preset(source, tmp_path):
    convert(source, tmp_path / "preset", to="keras_hub")
    model = keras_hub.models.GPT2CausalLM.from_preset(str(tmp_path / "preset"))
    found = model({"token_ids": IDS, "padding_mask": np.ones_like(IDS)})
    assert gpt2_numpy.relative_error(found, gpt2_numpy.forward(weights(), IDS, HEADS)) < 1e-5
    tokenizer = model.preprocessor.tokenizer
    for text in ("the cat sat", "the rat, ate\n naïve "):
        assert list(np.asarray(tokenizer(text))) == TOKENIZER.encode(text)
    assert (tokenizer.end_token_id, model.preprocessor.sequence_length) == (TOKENIZER.end_token_id, WINDOW)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_preset_of_keras_hub(dtype, tmp_path):
    theirs = their_model(dtype)
    theirs.save_to_preset(str(tmp_path / "preset"))
    checkpoint, _ = read(tmp_path / "preset")
    assert checkpoint.dtype == dtype
    same(checkpoint.tensors, ours.checkpoint_of(theirs).tensors)
    expected = theirs({"token_ids": IDS, "padding_mask": np.ones_like(IDS)})
    if dtype == "float32":
        assert gpt2_numpy.relative_error(load(tmp_path / "preset")(IDS), np.asarray(expected)) < 1e-5


def test_a_preset_of_a_mixed_policy_holds_float32(tmp_path):
    theirs = their_model("mixed_bfloat16")
    theirs.save_to_preset(str(tmp_path / "preset"))
    same(read(tmp_path / "preset")[0].tensors, ours.checkpoint_of(theirs).tensors)
    assert read(tmp_path / "preset")[0].dtype == "float32"


def test_objects(source):
    theirs = their_model()
    model = load(theirs)
    expected = theirs({"token_ids": IDS, "padding_mask": np.ones_like(IDS)})
    assert gpt2_numpy.relative_error(model(IDS), np.asarray(expected)) < 1e-5
    again = ours.model_of(Checkpoint.from_model(model))
    for before, after in zip(theirs.weights, again.weights):
        np.testing.assert_array_equal(before, after)
    with_tokenizer = load(ours.model_of(read(source)[0]))
    assert with_tokenizer.tokenizer.fingerprint == TOKENIZER.fingerprint
    with pytest.raises(UserError, match="the model is a object, expected keras-hub's GPT2CausalLM"):
        load(object())


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"activation_function": "gelu"}, "activation 'gelu', expected 'gelu_tanh': keras-hub's code computes nothing"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon 1e-06, expected 1e-05: keras-hub's code computes nothing"),
    ],
)
def test_what_keras_hub_would_compute_otherwise_is_not_written(change, expected, tmp_path):
    directory = write_hugging_face(tmp_path / "model", weights(), config=CONFIG | change)
    with pytest.raises(UserError, match=expected):
        convert(directory, tmp_path / "preset", to="keras_hub")
    assert not (tmp_path / "preset").exists()


def test_tokenizers_that_it_has_no_word_for(source, tmp_path):
    CharacterTokenizer.train(["abc"]).save(tmp_path / "characters")
    for to in ("keras_hub", "openai"):
        with pytest.raises(UserError, match="tokenizer is a CharacterTokenizer, expected GPT-2's byte pairs"):
            convert(source, tmp_path / "out", to=to, tokenizer=tmp_path / "characters")


def change_config(directory, change):
    path = directory / "config.json"
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda c: c.update(class_name="BertBackbone"), "class_name 'BertBackbone', expected 'GPT2Backbone'"),
        (lambda c: c["config"].update(dtype="int8"), "dtype 'int8', expected one of float32"),
        (lambda c: c["config"].update(num_layers=3), "keras-hub cannot open"),
        (lambda c: c["config"].update(vocabulary_size=301), "keras-hub cannot open"),
        (lambda c: c.update(config=None), "dtype None, expected one of"),
    ],
)
def test_damaged_presets(change, expected, source, tmp_path):
    convert(source, tmp_path / "preset", to="keras_hub")
    change_config(tmp_path / "preset", change)
    with pytest.raises(UserError, match=expected) as error:
        load(tmp_path / "preset")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:999])])
def test_damaged_weights(damage, source, tmp_path):
    convert(source, tmp_path / "preset", to="keras_hub")
    damage(tmp_path / "preset/model.weights.h5")
    with pytest.raises(UserError, match="keras-hub cannot open") as error:
        load(tmp_path / "preset")
    assert "\n" not in str(error.value)
