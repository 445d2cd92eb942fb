import json

import numpy as np
import pytest

from tfgpt.errors import UserError
from tfgpt.text import TokenMixture, TokenShards, prepare
from tfgpt.training.run_config import RunConfig
from tfgpt.training.run_data import open_run_data
from tfgpt.training.trainer import train

FOXES = "the quick brown fox jumps over the lazy dog and the dog sleeps on. " * 60
PAST = "what is past is prologue; quoth the fox, jovial by a waxing zephyr. " * 40


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    for name, text in (("all", FOXES + PAST), ("foxes", FOXES), ("past", PAST)):
        (folder / f"{name}.txt").write_text(text)
    options = {"workers": 1, "validation_fraction": 0.2}
    prepare([str(folder / "all.txt")], folder / "all", "character", **options)
    for name in ("foxes", "past"):
        prepare([str(folder / f"{name}.txt")], folder / name, str(folder / "all"), **options)
    return folder


def config(folder, *names, **fields):
    return RunConfig(data=[str(folder / name) for name in names], out=str(folder / "none"), **fields)


def test_a_run_on_prepared_tokens_is_the_run_on_their_text(prepared, tmp_path):
    fields = {"preset": "gpt2-test", "tokenizer": "character", "steps": 10, "batch_size": 4, "sample_tokens": 4}
    runs = {}
    for name in ("all.txt", "all"):
        out = tmp_path / name
        runs[name] = train(RunConfig(data=[str(prepared / name)], out=str(out), validation_fraction=0.2, **fields))
        split = TokenShards.open(out / "training" / "tokens").split("validation")
        assert split.num_tokens == TokenShards.open(prepared / "all").split("validation").num_tokens
    assert runs["all"].loss == pytest.approx(runs["all.txt"].loss, rel=1e-5)
    assert runs["all"].bits_per_byte == pytest.approx(runs["all.txt"].bits_per_byte, rel=1e-5)
    again = RunConfig(data=[str(prepared / "all")], out=str(tmp_path / "all"), overwrite=True, **fields)
    assert train(again).loss == pytest.approx(runs["all"].loss, rel=1e-5)
    assert (prepared / "all" / "index.json").exists()  # the link went, not what it points to


def test_a_mixture_by_weight(prepared, tmp_path):
    data = open_run_data(config(prepared, "foxes", "past", data_weights=[0.7, 0.3]))
    train_split, validation = data.splits(data.tokenizer(300), tmp_path / "deep" / "link")
    assert isinstance(train_split, TokenMixture) and train_split.weights == (0.7, 0.3)
    parts = [TokenShards.open(prepared / name).split("validation") for name in ("foxes", "past")]
    whole = np.concatenate([part.read(0, part.num_tokens) for part in parts])
    np.testing.assert_array_equal(validation.read(0, validation.num_tokens), whole)
    assert validation.num_bytes == sum(part.num_bytes for part in parts)


def test_without_weights_a_mixture_is_by_size(prepared, tmp_path):
    data = open_run_data(config(prepared, "foxes", "past"))
    train_split, _ = data.splits(data.tokenizer(300), tmp_path / "link")
    assert train_split.weights == tuple(split.num_tokens for split in train_split.splits)


@pytest.mark.parametrize(
    "names, fields, message",
    [
        (["all", "all.txt"], {}, "data is text .*all.txt. and prepared tokens .*; *|expected one or the other"),
        (["all.txt"], {"data_weights": [1.0]}, "data_weights are for directories that `tfgpt prepare` has made"),
        (["all"], {"max_bytes": 10}, "max_bytes is 10, expected none with prepared tokens"),
        (["foxes", "past"], {"data_weights": [1.0]}, "found 1 weights for 2 data sets"),
        (["all"], {"vocabulary_size": 500}, "vocabulary_size is 500, expected none or the 3[0-9] of .*all"),
    ],
)
def test_bad_data(prepared, tmp_path, names, fields, message):
    with pytest.raises(UserError, match=message):
        data = open_run_data(config(prepared, *names, **fields))
        data.splits(data.tokenizer(300), tmp_path / "link")


def test_another_tokenizer(prepared, tmp_path):
    prepare([str(prepared / "past.txt")], tmp_path / "other", "character", workers=1)
    with pytest.raises(UserError, match="was written with another tokenizer: found fingerprint"):
        open_run_data(config(prepared, "all", tokenizer=str(tmp_path / "other"))).tokenizer(300)
    run = RunConfig(data=[str(prepared / "all"), str(tmp_path / "other")], out="none")
    with pytest.raises(UserError, match="other was written with another tokenizer"):
        open_run_data(run).tokenizer(300)
    prepare([str(prepared / "past.txt")], tmp_path / "bytes", "bpe", vocabulary_size=270, workers=1)
    run = RunConfig(data=[str(tmp_path / "bytes")], out="none", tokenizer="character")
    with pytest.raises(UserError, match="tokenizer is 'character', but .* was prepared with a BytePairTokenizer"):
        open_run_data(run).tokenizer(300)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x07"), "train-00000.npy has changed: found SHA-256"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "train-00000.npy is truncated"),
        (lambda path: path.unlink(), "train-00000.npy is missing"),
        (lambda path: path.with_name("index.json").write_text("{"), "index.json is not JSON"),
        (lambda path: path.with_name("index.json").write_text(json.dumps({"dtype": "u2"})), "is not an index of token"),
        (lambda path: path.with_name("train-00000.documents.npy").unlink(), "train-00000.documents.npy is missing"),
    ],
)
def test_a_corrupted_shard_is_one_sentence(prepared, tmp_path, damage, message):
    prepare([str(prepared / "all.txt")], tmp_path / "tokens", "character", workers=1)
    damage(tmp_path / "tokens" / "train-00000.npy")
    with pytest.raises(UserError, match=message) as caught:
        open_run_data(config(tmp_path, "tokens"))
    assert "\n" not in str(caught.value)


def test_above_a_limit_contents_are_not_read(prepared, tmp_path, monkeypatch):
    prepare([str(prepared / "all.txt")], tmp_path / "tokens", "character", workers=1)
    path = tmp_path / "tokens" / "train-00000.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    monkeypatch.setattr("tfgpt.training.run_data.CHECKED_BYTES", 100)
    open_run_data(config(tmp_path, "tokens"))
