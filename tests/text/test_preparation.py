import numpy as np
import pytest

from tfgpt.errors import UserError
from tfgpt.text import BytePairTokenizer, CharacterTokenizer, find_documents, make_tokenizer, preparation, prepare


@pytest.fixture
def text_file(tmp_path):
    random = np.random.default_rng(0)
    words = ["".join(random.choice([*"abcdefg日"], 5)) for _ in range(50)]
    path = tmp_path / "text"
    path.write_text(" ".join(random.choice(words, 4000)))
    return path


def test_a_tokenizer_is_trained_on_all_of_a_small_text(text_file, monkeypatch):
    expected = BytePairTokenizer.train([text_file.read_text()], 300)
    assert make_tokenizer("bpe", find_documents(text_file), 300).fingerprint == expected.fingerprint


def test_a_tokenizer_is_trained_on_a_sample_spread_over_a_large_text(text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "SAMPLE_BYTES", 3000)
    monkeypatch.setattr(preparation, "SAMPLE_PIECE_BYTES", 100)
    reverse = text_file.read_text()[::-1]
    (tmp_path / "second").write_text(reverse + reverse.upper())
    documents = find_documents([text_file, tmp_path / "second"])
    text = "".join(block for document in documents for block in document.blocks())
    sample = list(preparation._sample(documents))
    assert 2700 <= len("".join(sample).encode()) <= 3300
    places = [
        text.index(piece) for piece in sample if len(piece) > 20
    ]  # a short one, at a file's end, occurs elsewhere
    assert places == sorted(places)
    assert max(np.diff([0, *places, len(text)])) < 3 * len(text) / 30
    make_tokenizer("bpe", documents, 300)


def test_characters_are_those_of_the_whole_text(text_file, monkeypatch):
    monkeypatch.setattr(preparation, "SAMPLE_BYTES", 100)
    text_file.write_text(text_file.read_text() + "!")
    found = make_tokenizer("character", find_documents(text_file), 300)
    assert found.fingerprint == CharacterTokenizer.train([text_file.read_text()]).fingerprint


def test_prepare_with_two_workers_is_the_same(text_file, tmp_path):
    shards = [prepare([text_file], tmp_path / str(n), vocabulary_size=300, workers=n) for n in (1, 2)]
    for name in ("train", "validation"):
        first, second = (each.split(name) for each in shards)
        np.testing.assert_array_equal(first.read(0, first.num_tokens), second.read(0, second.num_tokens))
    assert abs(shards[0].split("validation").num_bytes - 0.01 * text_file.stat().st_size) < 5  # the default


def test_what_is_there_is_found_before_the_work_begins(text_file, tmp_path):
    prepare([text_file], tmp_path / "tokens", "character", workers=1)
    stages = []
    with pytest.raises(UserError, match="tokens exists already"):
        prepare([text_file], tmp_path / "tokens", "character", workers=1, on_stage=stages.append)
    assert stages == []
    prepare([text_file], tmp_path / "tokens", "character", workers=1, on_stage=stages.append, overwrite=True)
    assert stages[-1] == "tokenizing"


def test_no_such_tokenizer(text_file):
    with pytest.raises(UserError, match="tokenizer is 'wordpiece', expected bpe, character or a directory"):
        make_tokenizer("wordpiece", find_documents(text_file), 300)
