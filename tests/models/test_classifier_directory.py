import json

import numpy as np
import pytest
import safetensors.numpy

from tests.models.test_classifiers import LABELS, ROW, encoder, gpt2
from tests.models.test_model_directory import change_config, change_tensors
from tfgpt.errors import UserError
from tfgpt.models import EncoderClassifier, GPT2CausalLM, GPT2Classifier, load_classifier
from tfgpt.text import BytePairTokenizer

MAKERS = {
    "encoder": lambda: encoder(vocabulary_size=262, dropout=0.25),
    "post": lambda: encoder("post", "sinusoidal", "first", vocabulary_size=262),
    "gpt2": lambda: gpt2(vocabulary_size=262),
}


@pytest.fixture(scope="module")
def tokenizer():
    return BytePairTokenizer.train(["the cat sat on the mat, the cat ate"], vocabulary_size=262)


@pytest.fixture
def saved(tokenizer, tmp_path):
    def save(kind, with_tokenizer=True):
        model = MAKERS[kind]()
        model.tokenizer = tokenizer if with_tokenizer else None
        model.save_to_preset(tmp_path / kind)
        return model, tmp_path / kind

    return save


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_round_trip(saved, kind, with_tokenizer):
    model, directory = saved(kind, with_tokenizer)
    loaded = load_classifier(directory)
    assert type(loaded) is type(model)
    mine, theirs = (
        {**each.get_config(), "name": 0, "backbone": {**each.backbone.get_config(), "name": 0}}
        for each in (model, loaded)
    )
    assert mine == theirs
    np.testing.assert_array_equal(loaded(np.array([ROW])), model(np.array([ROW])))
    if with_tokenizer:
        assert loaded.classify("the cat") == model.classify("the cat")


def test_gpt2s_files_are_hugging_faces(saved):
    model, directory = saved("gpt2")
    config = json.loads((directory / "config.json").read_text())
    assert {
        "model_type": "gpt2",
        "architectures": ["GPT2ForSequenceClassification"],
        "num_labels": 3,
        "id2label": {"0": "bad", "1": "fair", "2": "good"},
        "label2id": {"bad": 0, "fair": 1, "good": 2},
        "problem_type": "single_label_classification",
        "pad_token_id": 261,
        "eos_token_id": 261,
    }.items() <= config.items()
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    assert tensors["score.weight"].shape == (3, 16)
    np.testing.assert_array_equal(tensors["score.weight"].T, model.score.kernel)
    assert json.loads((directory / "tokenizer_config.json").read_text())["pad_token"] == "<|endoftext|>"
    names = {"config.json", "model.safetensors", "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"}
    assert {path.name for path in directory.iterdir()} == names


def test_a_directory_of_transformers(saved):
    """It says nothing of classes that have no names, and names tensors without the prefix or with it."""
    model, directory = saved("gpt2", with_tokenizer=False)
    change_config(directory, id2label=..., label2id=..., num_labels=3, classifier_dropout=...)
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    safetensors.numpy.save_file(bare, directory / "model.safetensors")
    loaded = load_classifier(directory)
    assert loaded.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    np.testing.assert_array_equal(loaded(np.array([ROW])), model(np.array([ROW])))


def test_from_preset_takes_a_classifier(saved):
    model, directory = saved("gpt2")
    assert GPT2Classifier.from_preset(directory, LABELS, freeze_backbone=True).freeze_backbone
    np.testing.assert_array_equal(GPT2Classifier.from_preset(directory)(np.array([ROW])), model(np.array([ROW])))
    other = GPT2Classifier.from_preset(directory, ["yes", "no"], seed=0)
    assert other.labels == ("yes", "no") and other.score.kernel.shape == (16, 2)
    np.testing.assert_array_equal(other.backbone(np.array([ROW])), model.backbone(np.array([ROW])))


@pytest.mark.parametrize("kind", ["encoder", "gpt2"])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "has architectures .*, expected GPT2ForSequenceClassification or"),
        ({"id2label": {"0": "a", "2": "b"}}, "has id2label .*, expected a name for each class from 0 on"),
        ({"id2label": {"0": "a"}}, r"has 1 label \(a\), expected at least 2 classes"),
        ({"id2label": {"0": "a", "1": "a"}}, "has the label 'a' twice"),
        ({"id2label": {"0": "a", "1": "b"}}, r"score.weight of shape \(3, 16\), expected \(2, 16\)"),
        ({"vocab_size": 100}, "has 262 tokens, expected at most the embedding's 100"),
        ({"vocab_size": "big"}, "has vocab_size 'big', expected a positive integer"),
    ],
)
def test_bad_config(saved, kind, change, message):
    _, directory = saved(kind)
    change_config(directory, **change)
    with pytest.raises(UserError, match=message):
        load_classifier(directory)


@pytest.mark.parametrize("kind", ["encoder", "gpt2"])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"score.weight": None}, "lacks score.weight, expected the"),
        ({"extra": np.zeros(3, "float32")}, "has unknown .*extra, expected the"),
        ({"score.weight": np.zeros((16, 3), "float32")}, r"score.weight of shape \(16, 3\), expected \(3, 16\)"),
        ({"score.weight": np.zeros((3, 16), "int32")}, "score.weight of dtype I32"),
    ],
)
def test_bad_tensors(saved, kind, change, message):
    _, directory = saved(kind)
    change_tensors(directory, **change)
    with pytest.raises(UserError, match=message):
        load_classifier(directory)


def test_another_class_than_expected(saved):
    _, directory = saved("encoder")
    with pytest.raises(UserError, match="holds an EncoderClassifier, expected a GPT2Classifier"):
        GPT2Classifier.from_preset(directory)
    assert isinstance(load_classifier(directory, expected=EncoderClassifier), EncoderClassifier)


def test_a_language_model_is_not_read_from_a_classifier(saved):
    _, directory = saved("gpt2")
    with pytest.raises(UserError, match=r"has unknown transformer\.score\.weight"):
        GPT2CausalLM.from_preset(directory)
