"""Runs of the classification task, from files to model directories."""

import csv
import gzip
import json
import math

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from tfgpt.errors import UserError
from tfgpt.models import EncoderClassifier, GPT2CausalLM, GPT2Classifier, load_classifier
from tfgpt.text import BytePairTokenizer, read_labelled
from tfgpt.training.classification_config import ClassificationConfig
from tfgpt.training.distribution import Distribution
from tfgpt.training.trainer import RunObserver, open_task, train

RANDOM = np.random.default_rng(0)
WORDS = ["warm", "dull", "film", "plot", "actor", "scene", "story", "music"]


def reviews(count, first=0):
    """Texts that are good where they say "warm" and bad where they say "dull"; two thirds are good."""
    random = np.random.default_rng(first)
    rows = []
    for number in range(count):
        label = "bad" if number % 3 == 0 else "good"
        words = [WORDS[i] for i in random.integers(2, 8, random.integers(1, 9))]
        words.insert(int(random.integers(len(words) + 1)), "dull" if label == "bad" else "warm")
        rows.append((" ".join(words), label))
    return rows


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews")
    for name, rows in (("train", reviews(240)), ("dev", reviews(60, first=1))):
        (folder / f"{name}.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in rows))
    return folder


def config(files, out, **fields):
    defaults = {
        "data": [str(files / "train.tsv")],
        "validation_data": [str(files / "dev.tsv")],
        "vocabulary_size": 280,
        "num_layers": 1,
        "num_heads": 2,
        "hidden_dim": 16,
        "max_sequence_length": 64,
        "steps": 60,
        "batch_size": 16,
        "learning_rate": 1e-2,
        "warmup_steps": 5,
        "initializer_range": 0.1,
        "evaluate_every": 20,
        "log_every": 10,
        "tensorboard": False,
        "compile": "none",
    }
    return ClassificationConfig(out=str(out), **{**defaults, **fields})


@pytest.fixture(scope="session")
def trained(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "model"
    return train(config(files, out)), out


class Watcher(RunObserver):
    """Ends the process, as far as a test can, at a step."""

    def __init__(self, last_step=math.inf):
        self.last_step, self.notes = last_step, []

    def row(self, row):
        if "loss" in row and row["step"] >= self.last_step:
            raise KeyboardInterrupt

    def note(self, text):
        self.notes.append(text)


# === What a run leaves ===


def test_a_run_learns_and_says_how_well(trained):
    result, out = trained
    assert result.metrics.accuracy == 1.0 and result.texts == 240
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "model.safetensors", "training"),
        *("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"),
    }
    names = {"classification.json", "confusion_matrix.png", "loss.png", "metrics.csv", "summary.json", "last"}
    assert names <= {path.name for path in (out / "training").iterdir()}
    assert (out / "training/confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((out / "training/classification.json").read_text())
    assert written["confusion_matrix"] == [[20, 0], [0, 40]]
    assert written["classes"]["bad"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 20}
    assert "accuracy 100.00%, macro F1 1.0000" in "\n".join(result.lines())


def test_the_best_model_classifies_text(trained):
    _, out = trained
    model = load_classifier(out)
    assert isinstance(model, EncoderClassifier) and model.labels == ("bad", "good")
    assert [found.label for found in model.classify(["a dull plot", "warm music"])] == ["bad", "good"]


def test_validations_are_recorded(trained, files):
    result, out = trained
    with open(out / "training/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["validation_loss"]]
    assert [row["step"] for row in rows] == ["20", "40", "60"]
    best = next(row for row in rows if int(row["step"]) == result.best_step)
    # By another way: the exported weights, text by text.
    model = load_classifier(out)
    examples = read_labelled([files / "dev.tsv"])
    found = model.classify([example.text for example in examples], batch_size=7)
    losses = [-np.log(one.probabilities[example.label]) for one, example in zip(found, examples)]
    right = [one.label == example.label for one, example in zip(found, examples)]
    assert float(best["validation_loss"]) == pytest.approx(np.mean(losses), rel=1e-4)
    assert float(best["validation_accuracy"]) == pytest.approx(np.mean(right))
    assert result.metrics.loss == pytest.approx(np.mean(losses), rel=1e-4)


def test_texts_are_held_out_where_there_are_no_others(files, tmp_path):
    compressed = tmp_path / "train.tsv.gz"
    compressed.write_bytes(gzip.compress((files / "train.tsv").read_bytes()))
    task = open_task(config(files, tmp_path / "model", data=[str(compressed)], validation_data=None))
    task.config = config(files, tmp_path / "model", data=[str(compressed)], validation_data=None)
    learned, held_out = task._read()
    assert (len(learned), len(held_out)) == (216, 24)
    lines = {int(example.place.rpartition(" ")[2]) for example in held_out}
    assert len(lines) == 24 and lines != set(range(1, 25))
    assert lines.isdisjoint(int(example.place.rpartition(" ")[2]) for example in learned)


# === Runs go on ===


@pytest.mark.parametrize(
    "fields", [{"dropout": 0.2, "token_dropout": 0.2, "ema_decay": 0.8, "patience": 5}], ids=["all"]
)
def test_a_broken_run_goes_on_to_the_same_weights(files, tmp_path, fields):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config(files, whole, **fields))
    with pytest.raises(KeyboardInterrupt):
        train(config(files, broken, **fields), Watcher(40))
    watcher = Watcher()
    train(config(files, broken, **fields), watcher)
    assert any("goes on after step 20" in note for note in watcher.notes)
    for name in ("model.safetensors", "training/last/model.safetensors"):
        ours, theirs = (safetensors.numpy.load_file(each / name) for each in (whole, broken))
        for tensor in ours:
            np.testing.assert_array_equal(ours[tensor], theirs[tensor])
    ours, theirs = (json.loads((each / "training/classification.json").read_text()) for each in (whole, broken))
    assert ours == theirs


def test_an_unfinished_run_wants_its_texts_as_they_were(files, tmp_path):
    data = tmp_path / "train.tsv"
    data.write_text((files / "train.tsv").read_text())
    fields = {"data": [str(data)]}
    with pytest.raises(KeyboardInterrupt):
        train(config(files, tmp_path / "model", **fields), Watcher(40))
    data.write_text(data.read_text().replace("warm", "dull", 1))
    with pytest.raises(
        UserError, match=r"train.tsv has changed, expected it as the unfinished run in .* began with it"
    ):
        train(config(files, tmp_path / "model", **fields))


# === GPT-2 ===


@pytest.fixture(scope="session")
def pretrained(files, tmp_path_factory):
    """A language model's directory, untrained."""
    out = tmp_path_factory.mktemp("pretrained") / "lm"
    texts = [example.text for example in read_labelled([files / "train.tsv"])]
    tokenizer = BytePairTokenizer.train(texts, 300)
    sizes = {"vocabulary_size": tokenizer.vocabulary_size, "max_sequence_length": 64, "initializer_range": 0.2}
    model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0, **sizes)
    model.tokenizer = tokenizer
    model.save_to_preset(out)
    return out


SIZES = dict.fromkeys(("num_layers", "num_heads", "hidden_dim", "max_sequence_length", "initializer_range"))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_pretrained_gpt2(files, pretrained, tmp_path, frozen):
    fields = {**SIZES, "model": "gpt2", "init": str(pretrained), "freeze_backbone": frozen}
    steps = {"steps": 100, "evaluate_every": 100, "learning_rate": 2e-2 if frozen else 5e-3}
    result = train(config(files, tmp_path / "model", **fields, **steps))
    assert result.metrics.accuracy > (0.8 if frozen else 0.95)
    model = GPT2Classifier.from_preset(tmp_path / "model")
    before = GPT2CausalLM.from_preset(pretrained)
    same = [np.array_equal(a, b) for a, b in zip(model.backbone.weights, before.backbone.weights, strict=True)]
    assert all(same) == frozen and any(same) == frozen
    assert model.tokenizer.fingerprint == before.tokenizer.fingerprint


def test_gpt2_from_scratch(files, tmp_path):
    fields = {**SIZES, "model": "gpt2", "preset": "gpt2-test", "max_sequence_length": 64, "initializer_range": 0.1}
    result = train(config(files, tmp_path / "model", **fields))
    assert result.metrics.accuracy > 0.9
    assert isinstance(load_classifier(tmp_path / "model"), GPT2Classifier)


# === Class weights ===


def opened(files, out, **fields):
    """The task with its data, and the model."""
    made = config(files, out, precision="float32", **fields)
    task = open_task(made)
    return task, task.begin(made, RunObserver(), Distribution.open("one_device", made.batch_size))


@pytest.mark.parametrize(
    "given, expected", [(["balanced"], (240 / (2 * 80), 240 / (2 * 160))), (["good=3", "bad=0.5"], (0.5, 3.0))]
)
def test_class_weights_are_those_of_the_batches(files, tmp_path, given, expected):
    task, model = opened(files, tmp_path / "model", class_weights=given)
    inputs, classes, weights = next(iter(task.training()))
    np.testing.assert_allclose(weights, np.array(expected, "float32")[classes])
    # The loss is the mean over the batch of weight times cross-entropy.
    logits = model(inputs, training=False).numpy()
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), classes]
    found = model.compute_loss(inputs, classes, tf.constant(logits), weights)
    assert float(found) == pytest.approx(float(np.mean(losses * weights.numpy())), rel=1e-5)


def test_class_weights_of_other_labels(files, tmp_path):
    with pytest.raises(UserError, match="class_weights are of good, expected one for each of the labels bad, good"):
        opened(files, tmp_path / "model", class_weights=["good=3"])


# === Batches, selection ===


@pytest.mark.parametrize("batching", ["bucketed", "padded"])
def test_batching(files, tmp_path, batching):
    task, _ = opened(files, tmp_path / "model", batching=batching)
    widths = {inputs["token_ids"].shape[1] for (inputs, _), _ in zip(task.training(), range(20))}
    assert widths == {64} if batching == "padded" else len(widths) > 1
    assert task.training().element_spec[0]["token_ids"].shape[1] == (64 if batching == "padded" else None)


@pytest.mark.parametrize("select_by, score", [("loss", 0.5), ("accuracy", -0.75), ("macro_f1", -0.7)])
def test_selection(files, tmp_path, select_by, score):
    task = open_task(config(files, tmp_path / "model", select_by=select_by))
    assert task.score({"val_loss": 0.5, "val_accuracy": 0.75, "val_macro_f1": 0.7}) == score


# === What is refused, before anything is written ===


@pytest.mark.parametrize(
    "train_text, dev_text, fields, message",
    [
        ("a\tx\nb\tx\n", "a\tx\n", {}, "train.tsv has the label 'x' in all 2 texts, expected 2 classes"),
        (
            "a\tx\nb\ty\n",
            "a\tx\nb\tz\n",
            {},
            "dev.tsv, line 2 has the label 'z', expected one of those of training: x, y",
        ),
        ("a\tx\nb\n", "a\tx\n", {}, "train.tsv, line 2 has 1 columns, expected 2"),
        ("a\tx\n \ty\n", "a\tx\n", {}, "train.tsv, line 2 has an empty text"),
        ("a\tx\nb\ty\n", "a\tx\n", {"label_column": "stars"}, "expected one named 'stars'"),
        (
            "a\tx\n" + "b" * 90 + "\ty\n",
            "a\tx\n",
            {"tokenizer": "character"},
            "line 2 has a text of 90 tokens, expected at most the window's 64",
        ),
        (
            "a\tx\nb\ty\n",
            None,
            {},
            "train.tsv has 2 texts, expected enough to hold out 10% of them, or validation_data",
        ),
        ("a\tx\nb\ty\n", "a\tx\n", {"num_heads": 3}, "hidden_dim is 16, expected a multiple of num_heads 3"),
        ("a\tx\nb\ty\n", "a\tx\n", {"tokenizer": "words"}, "tokenizer is 'words', expected bpe, character or"),
        ("a\tx\nb\ty\n", "a\tx\n", {"data": ["none.tsv"]}, "none.tsv is missing, expected a file"),
    ],
)
def test_bad_input(tmp_path, train_text, dev_text, fields, message):
    (tmp_path / "train.tsv").write_text(train_text)
    options = {"validation_data": None}
    if dev_text is not None:
        (tmp_path / "dev.tsv").write_text(dev_text)
        options = {"validation_data": [str(tmp_path / "dev.tsv")]}
    with pytest.raises(UserError, match=message) as raised:
        train(config(tmp_path, tmp_path / "model", **options, **fields))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "model").exists()


def test_truncation(tmp_path):
    (tmp_path / "train.tsv").write_text("a\tx\n" + "b" * 90 + "\ty\n")
    options = {"data": [str(tmp_path / "train.tsv")], "validation_data": [str(tmp_path / "train.tsv")]}
    task, _ = opened(tmp_path, tmp_path / "model", truncate=True, tokenizer="character", **options)
    assert sorted(task.sampler.lengths) == [1, 64]
