import json

import keras
import numpy as np
import pytest

from tfgpt.errors import UserError
from tfgpt.models import PRESETS, GPT2CausalLM
from tfgpt.models.gpt2 import preset_config
from tfgpt.text import BytePairTokenizer, CharacterTokenizer

IDS = np.random.default_rng(0).integers(0, 300, (2, 9))


@pytest.fixture
def model():
    return GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0)


@pytest.fixture
def saved(model, tmp_path):
    model.save_to_preset(tmp_path / "model")
    return tmp_path / "model"


# === Names ===


@pytest.mark.parametrize("name, near", [("gpt-2", "gpt2"), ("gpt2_medium", "gpt2-medium"), ("gtp2-xl", "gpt2-xl")])
def test_unknown_name(name, near):
    for make in (preset_config, GPT2CausalLM.from_preset):
        with pytest.raises(UserError, match=f"unknown preset '{name}'.*gpt2-large.*did you mean '{near}'"):
            make(name)


def test_unknown_name_that_is_near_to_none():
    with pytest.raises(UserError, match="unknown preset 'llama'") as error:
        preset_config("llama")
    assert "did you mean" not in str(error.value)


def test_a_name_has_no_weights():
    with pytest.raises(UserError, match="'gpt2' is a size without weights.*load_weights=False"):
        GPT2CausalLM.from_preset("gpt2")


def test_configurations_are_copies():
    preset_config("gpt2")["num_layers"] = 1
    assert PRESETS["gpt2"]["num_layers"] == preset_config("gpt2")["num_layers"] == 12


def test_overrides_and_dtype():
    model = GPT2CausalLM.from_preset(
        "gpt2-test", load_weights=False, dtype="mixed_bfloat16", num_layers=1, max_sequence_length=7, dropout=0.2
    )
    backbone = model.backbone
    assert (backbone.num_layers, backbone.max_sequence_length, backbone.dropout) == (1, 7, 0.2)
    assert model.dtype_policy.name == backbone.dtype_policy.name == "mixed_bfloat16"
    assert backbone.hidden_dim == PRESETS["gpt2-test"]["hidden_dim"]


def test_seed():
    def logits(seed):
        return GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=seed)(IDS)

    np.testing.assert_array_equal(logits(3), logits(3))
    assert not np.allclose(logits(3), logits(4), atol=1e-3)


# === Directories ===


def test_round_trip_is_exact(model, saved):
    for path in (saved, str(saved)):
        loaded = GPT2CausalLM.from_preset(path)
        assert len(loaded.weights) == len(model.weights)
        for before, after in zip(model.weights, loaded.weights, strict=True):
            np.testing.assert_array_equal(before, after)
        np.testing.assert_array_equal(loaded(IDS), model(IDS))
        ours, theirs = loaded.backbone.get_config(), model.backbone.get_config()
        assert {**ours, "name": None} == {**theirs, "name": None}


def test_every_setting_survives(tmp_path):
    settings = {"dropout": 0.2, "activation": "relu", "layer_norm_epsilon": 1e-3, "initializer_range": 0.1}
    settings |= {"intermediate_dim": 20, "num_heads": 4}
    GPT2CausalLM.from_preset("gpt2-test", load_weights=False, **settings).save_to_preset(tmp_path / "model")
    backbone = GPT2CausalLM.from_preset(tmp_path / "model").backbone
    assert {key: getattr(backbone, key) for key in settings} == settings


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_keeps_float32_weights(policy, tmp_path):
    model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, dtype=policy)
    model.save_to_preset(tmp_path / "model")
    for before, after in zip(model.weights, GPT2CausalLM.from_preset(tmp_path / "model").weights, strict=True):
        assert after.dtype == "float32"
        np.testing.assert_array_equal(before, after)
    half = GPT2CausalLM.from_preset(tmp_path / "model", dtype=policy)
    np.testing.assert_array_equal(half(IDS), model(IDS))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights(dtype, tmp_path):
    model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, dtype=dtype)
    model.save_to_preset(tmp_path / "model")
    for again in (dtype, "float32"):
        loaded = GPT2CausalLM.from_preset(tmp_path / "model", dtype=again)
        for before, after in zip(model.weights, loaded.weights, strict=True):
            assert after.dtype == again
            np.testing.assert_array_equal(keras.ops.cast(before, "float32"), keras.ops.cast(after, "float32"))


def test_a_directory_without_its_weights(saved):
    (saved / "model.safetensors").unlink()
    model = GPT2CausalLM.from_preset(saved, load_weights=False)
    assert model.backbone.num_layers == 2
    with pytest.raises(UserError, match="model.safetensors is missing"):
        GPT2CausalLM.from_preset(saved)


def test_a_directory_with_the_name_of_a_preset(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save_to_preset("gpt2")
    loaded = GPT2CausalLM.from_preset("gpt2")
    assert loaded.count_params() == model.count_params()


def test_a_directory_that_is_not_there(tmp_path):
    for path in ("nowhere/model", tmp_path / "gpt2", str(tmp_path)):
        with pytest.raises(UserError, match="config.json is missing, expected a model directory"):
            GPT2CausalLM.from_preset(path)


TEXT = ["the cat sat on the mat, the cat ate the rat\n"]
TOKENIZERS = pytest.mark.parametrize(
    "tokenizer", [BytePairTokenizer.train(TEXT, vocabulary_size=270), CharacterTokenizer.train(TEXT)]
)


@TOKENIZERS
def test_the_tokenizer_comes_along(tokenizer, tmp_path):
    model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, vocabulary_size=tokenizer.vocabulary_size)
    model.tokenizer = tokenizer
    model.save_to_preset(tmp_path / "model")
    loaded = GPT2CausalLM.from_preset(tmp_path / "model").tokenizer
    assert type(loaded) is type(tokenizer)
    assert loaded.encode(TEXT[0]) == tokenizer.encode(TEXT[0])
    for file in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "model" / file).read_text())["eos_token_id"] == tokenizer.end_token_id
    tokenizer_config = json.loads((tmp_path / "model/tokenizer_config.json").read_text())
    assert tokenizer_config["model_max_length"] == model.backbone.max_sequence_length


def test_no_tokenizer(saved):
    assert GPT2CausalLM.from_preset(saved).tokenizer is None


def test_overwriting_is_asked_for(model, saved):
    before = sorted(path.name for path in saved.iterdir())
    other = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=1)
    with pytest.raises(UserError, match="exists already"):
        other.save_to_preset(saved)
    np.testing.assert_array_equal(GPT2CausalLM.from_preset(saved)(IDS), model(IDS))
    other.save_to_preset(saved, overwrite=True)
    np.testing.assert_array_equal(GPT2CausalLM.from_preset(saved)(IDS), other(IDS))
    assert sorted(path.name for path in saved.iterdir()) == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_an_empty_directory_is_filled(model, tmp_path):
    (tmp_path / "model").mkdir()
    model.save_to_preset(tmp_path / "model")
    assert (tmp_path / "model/config.json").exists()


def test_a_file_in_the_place_of_the_directory(model, tmp_path):
    (tmp_path / "model").write_text("of some use")
    with pytest.raises(UserError, match="exists already"):
        model.save_to_preset(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "of some use"
    model.save_to_preset(tmp_path / "model", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    np.testing.assert_array_equal(GPT2CausalLM.from_preset(tmp_path / "model")(IDS), model(IDS))


def test_a_link_to_the_directory(model, tmp_path):
    (tmp_path / "disk/model").mkdir(parents=True)
    (tmp_path / "model").symlink_to(tmp_path / "disk/model")
    for overwrite in (False, True):
        model.save_to_preset(tmp_path / "model", overwrite=overwrite)
        assert (tmp_path / "model").is_symlink() and (tmp_path / "disk/model/config.json").exists()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["model"]


def test_an_activation_that_hugging_face_has_not(tmp_path):
    model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, activation="elu")
    with pytest.raises(UserError, match="'elu', expected one of gelu_tanh"):
        model.save_to_preset(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
