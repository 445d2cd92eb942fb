"""transformers opens a GPT-2 classifier's directory as it is, and the reverse."""

import numpy as np
import pytest

from tests.models import encoder_numpy, gpt2_numpy
from tfgpt.models import GPT2Backbone, GPT2Classifier
from tfgpt.models.classifier.hugging_face import named_variables
from tfgpt.text import BytePairTokenizer

pytestmark = pytest.mark.interop

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = ["the cat sat", "on the mat, the cat ate", "a"]
LABELS = ["bad", "fair", "good"]


@pytest.fixture(scope="module")
def ours():
    tokenizer = BytePairTokenizer.train(["the cat sat on the mat, the cat ate"], vocabulary_size=262)
    sizes = {"vocabulary_size": 262, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "max_sequence_length": 64}
    model = GPT2Classifier(GPT2Backbone(**sizes), LABELS, tokenizer)
    encoder_numpy.randomize(named_variables(model))
    return model


def torch_logits(model, tokenizer, texts):
    with torch.no_grad():
        return model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits.numpy()


def test_transformers_opens_the_directory(ours, tmp_path):
    ours.save_to_preset(tmp_path / "model")
    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", output_loading_info=True, local_files_only=True
    )
    assert type(theirs).__name__ == "GPT2ForSequenceClassification"
    assert {key: list(names) for key, names in report.items()} == {key: [] for key in report}
    assert theirs.config.id2label == dict(enumerate(LABELS))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    logits = torch_logits(theirs, tokenizer, TEXTS)
    expected = np.log([list(result.probabilities.values()) for result in ours.classify(TEXTS)])
    found = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert gpt2_numpy.relative_error(found, expected) < 1e-5


def test_its_pipeline_gives_the_same_labels(ours, tmp_path):
    ours.save_to_preset(tmp_path / "model")
    classify = transformers.pipeline("text-classification", model=str(tmp_path / "model"))
    for found, expected in zip(classify(TEXTS), ours.classify(TEXTS), strict=True):
        assert found["label"] == expected.label
        assert found["score"] == pytest.approx(expected.probability, abs=1e-5)


def test_tfgpt_opens_a_directory_of_transformers(ours, tmp_path):
    ours.save_to_preset(tmp_path / "model")
    theirs = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path / "model", local_files_only=True)
    theirs.save_pretrained(tmp_path / "theirs")
    again = GPT2Classifier.from_preset(tmp_path / "theirs")
    assert again.labels == ours.labels
    ids = np.array([[5, 9, 3, 80]])
    np.testing.assert_array_equal(again(ids), ours(ids))
