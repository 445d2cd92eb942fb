"""Translations by ONNX Runtime are the Keras model's, token for token, and need neither TensorFlow nor Keras."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest

from tests.export.test_onnx_encoder_decoder import MASK, SOURCES, TARGETS
from tests.generation.test_translation import BOS, EOS, made, sources_of
from tfgpt.errors import UserError
from tfgpt.export.onnx_encoder_decoder import export_encoder_decoder_onnx
from tfgpt.generation import translate_token_ids
from tfgpt.models.encoder_decoder.model_directory import to_config
from tfgpt.runtime import open_runner, open_translator
from tfgpt.runtime.translator import default_settings
from tfgpt.text import train_joint_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:You are using a softmax over axis")  # of a single key: right so


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A model of random weights, and what its release has of ONNX."""
    model = made(300, seed=1)
    tokenizer = train_joint_tokenizer(["some words to merge", "einige wörter zu mischen"] * 3, 300, lowercase=True)
    folder = tmp_path_factory.mktemp("release")
    export_encoder_decoder_onnx(model, folder / "onnx")
    (folder / "config.json").write_text(json.dumps(to_config(model.backbone, tokenizer)))
    tokenizer.save(folder)
    model.tokenizer = tokenizer
    return types.SimpleNamespace(model=model, path=folder, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def translator(release):
    return open_translator(release.path, "onnx")


def test_logits(release, translator):
    expected = release.model({"source_ids": SOURCES, "source_padding_mask": MASK, "target_ids": TARGETS})
    np.testing.assert_allclose(translator.logits(SOURCES, MASK, TARGETS), expected, atol=1e-5)
    for prefix in (1, 4, 7):
        np.testing.assert_allclose(translator.cached_logits(SOURCES, MASK, TARGETS, prefix), expected, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 1},
        {"num_beams": 4},
        {"num_beams": 5, "length_penalty": 0.0, "max_new_tokens": 9},
        {"num_beams": 2, "length_penalty": 2.0},
        {"num_beams": 1, "temperature": 1.3, "top_k": 20, "seed": 7},
    ],
    ids=str,
)
def test_translations(release, translator, settings):
    sources = [[token % 300 for token in source] for source in sources_of(30, seed=5, longest=20)]
    expected = translate_token_ids(release.model, sources, BOS, EOS, **settings)
    found = translator.translate_token_ids(sources, **settings)
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    if settings["num_beams"] > 1:
        np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], rtol=1e-5)
    else:
        assert {score for _, score in found} == {None}


def test_texts(release, translator):
    texts = ["Some words", "  to MERGE\n", "wörter"]
    assert translator.translate(release.tokenizer, texts, num_beams=3) == release.model.translate(texts, num_beams=3)


@pytest.mark.parametrize(
    "texts, settings, sentence",
    [
        (["fine", "  "], {}, "text 1 is '  ', expected a sentence"),
        (["a" * 30], {}, "text 0 has .* tokens with its end, expected 1 to the window's 24"),
        (["fine"], {"max_new_tokens": 25}, "max_new_tokens is 25, expected at most the window's 24"),
        (["fine"], {"num_beams": 0}, "num_beams is 0, expected at least 1"),
    ],
)
def test_bad_input_is_one_sentence(release, translator, texts, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        translator.translate(release.tokenizer, texts, **settings)


def test_a_release_that_lacks_a_file(release, tmp_path):
    (tmp_path / "config.json").write_bytes((release.path / "config.json").read_bytes())
    with pytest.raises(UserError, match="encoder_model.onnx is missing, expected the file beside the others"):
        open_translator(tmp_path, "onnx")


def test_releases_of_other_kinds_are_told_apart(release, tmp_path):
    with pytest.raises(UserError, match="a translation model's release, expected it with `tfgpt translate`"):
        open_runner(release.path, "onnx")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="model_type 'gpt2', expected 'tfgpt_encoder_decoder'"):
        open_translator(tmp_path, "onnx")


@pytest.mark.parametrize(
    "config, found",
    [
        (None, (1, 1.0, None)),
        ({"num_beams": 4, "length_penalty": 0.6, "max_new_tokens": 9, "eos_token_id": 2}, (4, 0.6, 9)),
    ],
)
def test_default_settings(tmp_path, config, found):
    if config is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert tuple(default_settings(tmp_path).values()) == found


@pytest.mark.parametrize("config", [{"do_sample": True}, {"num_beams": 0}, {"repetition_penalty": 1.2}])
def test_default_settings_that_a_release_cannot_have(tmp_path, config):
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="generation_config.json"):
        default_settings(tmp_path)


def test_without_tensorflow(release):
    code = (
        "import sys; from tfgpt.runtime import open_translator; from tfgpt.text import load_tokenizer\n"
        "folder = sys.argv[1]\n"
        "print(open_translator(folder, 'onnx').translate(load_tokenizer(folder), ['Some words'], num_beams=3))\n"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, release.path], capture_output=True, text=True)
    expected = release.model.translate(["Some words"], num_beams=3)
    assert done.stdout.splitlines() == [str(expected), "[]"], done.stderr
