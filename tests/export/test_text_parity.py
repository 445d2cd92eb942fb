import json

import pytest

from tests.export.served_model import random_model, stdlib_text
from tfgpt.export.release import ParityError, export_release, prove_release
from tfgpt.runtime.saved_model import SavedModelRunner
from tfgpt.text import BytePairTokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return BytePairTokenizer.train([stdlib_text()], 400)


@pytest.fixture
def directory(tokenizer, tmp_path):
    """A function that writes a model directory of a random model."""

    def write(vocabulary_size=400, **generation_config):
        model = random_model(tokenizer, vocabulary_size=vocabulary_size, hidden_dim=32, max_sequence_length=64)
        model.save_to_preset(tmp_path / "model")
        if generation_config:
            (tmp_path / "model" / "generation_config.json").write_text(json.dumps(generation_config))
        return tmp_path / "model"

    return write


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(stdlib_text()[:20_000])
    return path


def test_a_model_whose_vocabulary_was_padded(directory, text, tmp_path):
    """Ids that no token has are no text, as in the library; random weights give many of them."""
    [report] = export_release(directory(450), tmp_path / "release", formats=("saved_model",), text=text)
    assert report.texts == report.identical_texts + report.near_ties > 10
    runner = SavedModelRunner(tmp_path / "release")
    assert any(
        token >= 400 for row in runner.complete(["import os", "def f(", "class"], 32) for token in row["token_ids"]
    )


@pytest.mark.parametrize("stops", [[369, 328, 112, 35, 45], None, 7], ids=str)
def test_stop_tokens_of_the_generation_config(directory, text, tmp_path, stops):
    model = directory(eos_token_id=stops)
    [report] = export_release(model, tmp_path / "release", formats=("saved_model",), text=text)
    assert report.texts == report.identical_texts + report.near_ties > 10
    assert prove_release(tmp_path / "release", model, text=text)[0].passed


@pytest.mark.parametrize("wrong", [{"num_prompt_tokens": 99}, {"text": "something else"}, {"token_ids": [1, 2, 3]}])
def test_another_text_stops_the_export(directory, text, tmp_path, monkeypatch, wrong):
    complete = SavedModelRunner.complete

    def damaged(self, texts, max_new_tokens):
        first, *others = complete(self, texts, max_new_tokens)
        return [{**first, **wrong}, *others]

    monkeypatch.setattr(SavedModelRunner, "complete", damaged)
    with pytest.raises(ParityError, match="saved_model, text, prompt 0"):
        export_release(directory(), tmp_path / "release", formats=("saved_model",), text=text)
    assert not (tmp_path / "release").exists()
