"""From generation_config.json to what `serving_default` does."""

import json
import types

import pytest
import tensorflow as tf

import tfgpt.export.saved_model
from tests.export.served_model import DEFAULTS, strings
from tfgpt.cli.main import main
from tfgpt.errors import UserError
from tfgpt.export import export_release
from tfgpt.export.release import served_settings
from tfgpt.export.signatures import TextSignatures, TokenSignatures
from tfgpt.generation_settings import GenerationSettings
from tfgpt.runtime.runner import with_stop
from tfgpt.text.in_graph_tokenizer import in_graph_tokenizer

SETTINGS = {
    "do_sample": True,
    "max_new_tokens": 5,
    "temperature": 1.5,
    "top_k": 5,
    "top_p": 0.8,
    "repetition_penalty": 1.2,
    "eos_token_id": [1, 3],
}


@pytest.fixture
def directory(tmp_path):
    """Writes generation_config.json and nothing else."""

    def write(config):
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "generation_config.json").write_text(text)
        return tmp_path

    return write


@pytest.fixture(scope="module")
def of_six_tokens():
    return types.SimpleNamespace(backbone=types.SimpleNamespace(vocabulary_size=6))


# === serving_default ===


def test_serving_default_does_what_it_was_exported_with(served_characters, character_settings, character_model):
    texts = [first + second for first in "abcdef" for second in "abcdef"]
    names = [name for name in DEFAULTS if name != "first_index"]
    baked = {name: getattr(character_settings, name) for name in names}
    default = served_characters("serving_default", text=texts)
    explicit = served_characters("generate_text", text=texts, **baked)
    assert strings(default.text) == strings(explicit.text)
    assert {b"stop", b"length"} == set(explicit.finish_reason)
    assert max(explicit.num_new_tokens) == 5
    # Each of the settings matters: with another in its place the text is another.
    for name in names:
        other = served_characters("generate_text", text=texts, **{**baked, name: DEFAULTS[name]})
        assert strings(other.text) != strings(default.text)
    # And it is what Keras makes of them, each row with the same seed, as each would have it alone.
    stops = character_settings.stop_token_ids
    seeds = (baked.pop("seed"),) * len(texts)
    assert strings(default.text) == character_model.generate(texts, seed=seeds, stop_token_ids=stops, **baked)


def test_the_settings_of_a_file(directory, of_six_tokens, character_settings):
    found = served_settings(directory({**SETTINGS, "seed": 2**40 + 5, "transformers_version": "4"}), of_six_tokens)
    assert found == character_settings


def test_an_export_bakes_in_the_model_directorys_settings(model_directory, tmp_path, monkeypatch):
    class Reached(Exception):
        pass

    def export(model, path, settings=None):
        raise Reached(settings)

    monkeypatch.setattr(tfgpt.export.saved_model, "export_saved_model", export)
    copy = copy_with(model_directory, tmp_path / "model", {"do_sample": True, "top_k": 7, "eos_token_id": 256})
    with pytest.raises(Reached) as reached:
        export_release(copy, tmp_path / "release", ["saved_model"])
    assert reached.value.args == (GenerationSettings(temperature=1.0, top_k=7, stop_token_ids=(256,)),)


def copy_with(model_directory, copy, config):
    copy.mkdir()
    for path in model_directory.iterdir():
        (copy / path.name).symlink_to(path)
    (copy / "generation_config.json").unlink()
    (copy / "generation_config.json").write_text(json.dumps(config))
    return copy


# === Stop tokens ===


def finish_reasons(signatures, text, **settings):
    settings = {name: value for name, value in {**DEFAULTS, **settings}.items() if name != "first_index"}
    dtypes = {"seed": tf.int64, "max_new_tokens": tf.int32, "top_k": tf.int32}
    tensors = {name: tf.constant([value] * len(text), dtypes.get(name, tf.float32)) for name, value in settings.items()}
    return signatures.generate_text(tf.constant(text), **tensors)["finish_reason"].numpy().tolist()


@pytest.mark.parametrize(
    "eos_token_id, stops",
    [("missing", ()), (None, ()), ([], ()), (3, (3,)), ([3, 1, 5], (3, 1, 5))],
    ids=str,
)
def test_stop_tokens_of_a_file(directory, of_six_tokens, character_model, eos_token_id, stops):
    """Without the key it is the tokenizer's end token, which there is none of here."""
    config = {} if eos_token_id == "missing" else {"eos_token_id": eos_token_id}
    settings = with_stop(served_settings(directory(config), of_six_tokens), character_model.tokenizer)
    signatures = TextSignatures(character_model, in_graph_tokenizer(character_model.tokenizer), settings)
    texts = list("abcdef")
    whole = character_model.generate([[i] for i in range(6)], max_new_tokens=10, return_prompt=False, stop_token_ids=())
    expected = [b"stop" if set(stops) & set(tokens) else b"length" for tokens in whole]
    if stops:
        assert b"stop" in expected
    assert finish_reasons(signatures, texts, max_new_tokens=10) == expected


@pytest.mark.parametrize(
    "stop_token_ids, found", [(None, [5]), ((), []), ((2,), [2])], ids=["none given", "none wanted", "given"]
)
def test_the_end_token_stops_unless_the_settings_say_otherwise(character_model, stop_token_ids, found):
    settings = with_stop(GenerationSettings(stop_token_ids=stop_token_ids), types.SimpleNamespace(end_token_id=5))
    assert TextSignatures(character_model, None, settings).stop_token_ids.numpy().tolist() == found


def test_without_a_tokenizer_only_given_tokens_stop(token_model):
    assert TokenSignatures(token_model).stop_token_ids.shape == (0,)
    assert TokenSignatures(token_model, (7,)).stop_token_ids.numpy().tolist() == [7]


# === Files that are wrong ===


def test_no_file_is_the_default(tmp_path, of_six_tokens):
    assert served_settings(tmp_path, of_six_tokens) == GenerationSettings()


@pytest.mark.parametrize(
    "config, message",
    [
        ("{", "is not JSON: Expecting property name"),
        ("[1, 2]", "holds a JSON list, expected an object"),
        ('"greedy"', "holds a JSON str, expected an object"),
        ({"do_sample": True, "temperature": -1}, "temperature is -1, expected a finite number from 0"),
        ('{"do_sample": true, "temperature": NaN}', "temperature is nan, expected a finite number from 0"),
        ({"top_p": 0}, "top_p is 0, expected above 0 and at most 1"),
        ({"top_k": -5}, "top_k is -5, expected 0 (all tokens) or more"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
        ({"top_k": "forty"}, "top_k is 'forty', expected a number"),
        ({"temperature": True}, "temperature is True, expected a number"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5, expected an integer"),
        ({"seed": 0.5}, "seed is 0.5, expected an integer"),
        ({"top_k": 2**31}, "top_k is 2147483648, expected less than 2^31"),
        ({"max_new_tokens": 2**40}, "max_new_tokens is 1099511627776, expected less than 2^31"),
        ({"num_beams": 4}, "num_beams is 4, expected 1: a SavedModel takes no beams"),
        ({"eos_token_id": 6}, "eos_token_id is 6, expected 0 to 5"),
        ({"eos_token_id": [0, -1]}, "eos_token_id is -1, expected 0 to 5"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>', expected a token id, a list of them, or null"),
        ({"eos_token_id": [1, None]}, "eos_token_id is [1, None], expected a token id, a list of them, or null"),
        ({"eos_token_id": True}, "eos_token_id is True, expected a token id, a list of them, or null"),
    ],
    ids=str,
)
def test_a_bad_file_is_named(directory, of_six_tokens, config, message):
    folder = directory(config)
    with pytest.raises(UserError) as error:
        served_settings(folder, of_six_tokens)
    assert str(error.value).startswith(f"{folder / 'generation_config.json'}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bad_file_ends_the_export(model_directory, tmp_path, capsys):
    copy = copy_with(model_directory, tmp_path / "model", {"do_sample": True, "top_p": 1.5})
    assert main(["export", str(copy), "--out", str(tmp_path / "release"), "--formats", "saved_model"]) == 2
    expected = f"tfgpt: {copy / 'generation_config.json'}: top_p is 1.5, expected above 0 and at most 1\n"
    assert capsys.readouterr().err.endswith(expected)
    assert not (tmp_path / "release").exists()
