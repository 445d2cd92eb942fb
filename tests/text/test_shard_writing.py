"""Documents in, shards out: whatever the number of workers, the size of the text, and the instant of death."""

import hashlib
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tokenizers

from tfgpt.errors import UserError
from tfgpt.text import (
    BytePairTokenizer,
    CharacterTokenizer,
    corpus,
    find_documents,
    parallel_encoding,
    write_token_shards,
)

TEXTS = [f"naïve document {i}: " + "some  words 日本\n" * (i % 7 + 1) + " " * (i % 3) for i in range(40)]


@pytest.fixture(scope="module")
def byte_pair():
    return BytePairTokenizer.train(TEXTS, vocabulary_size=400)


@pytest.fixture
def folder(tmp_path):
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i:02d}.txt").write_text(text)
    return tmp_path


def documents_of(split):
    """The tokens of each document, by the starts that the shards keep."""
    starts = split.documents_between(0, split.num_tokens)
    assert starts[0] == 0 and len(starts) == split.num_documents
    return [
        split.read(start, stop).tolist() for start, stop in zip(starts, [*starts[1:], split.num_tokens], strict=True)
    ]


def digests(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in pathlib.Path(directory).iterdir()}


# === Tokens and documents ===


@pytest.mark.parametrize("shard_tokens", [1, 10, 333, 2**26])
@pytest.mark.parametrize("block", [5, 2**20])
def test_ids_and_documents_are_the_librarys(folder, byte_pair, monkeypatch, shard_tokens, block):
    monkeypatch.setattr(corpus, "BLOCK_BYTES", block)
    monkeypatch.setattr(parallel_encoding, "BATCH_LENGTH", 100)
    witness = tokenizers.Tokenizer.from_str(byte_pair._backend.to_str())
    expected = [[*witness.encode(text).ids, witness.token_to_id("<|endoftext|>")] for text in TEXTS]
    shards = write_token_shards(folder / "tokens", find_documents(str(folder)), byte_pair, shard_tokens=shard_tokens)
    train, validation = (documents_of(shards.split(name)) for name in ("train", "validation"))
    assert sorted(train + validation) == sorted(expected)
    assert train == [document for document in expected if document in train]  # in their order


def test_documents_of_characters(folder):
    tokenizer = CharacterTokenizer.train(TEXTS)
    shards = write_token_shards(folder / "tokens", find_documents(str(folder)), tokenizer, shard_tokens=50)
    found = [tokenizer.decode(ids) for name in ("train", "validation") for ids in documents_of(shards.split(name))]
    assert sorted(found) == sorted(TEXTS)


def test_end_of_text_within_a_file_ends_a_document(tmp_path, byte_pair):
    (tmp_path / "text").write_text("<|endoftext|>".join(TEXTS))
    shards = write_token_shards(tmp_path / "tokens", find_documents(str(tmp_path / "text")), byte_pair)
    train = documents_of(shards.split("train"))
    assert [byte_pair.decode(ids) for ids in train[:10]] == [text + "<|endoftext|>" for text in TEXTS[:10]]


def test_documents_between(tmp_path, byte_pair):
    split = write_token_shards(tmp_path / "tokens", TEXTS, byte_pair, shard_tokens=30).split("train")
    starts = split.documents_between(0, split.num_tokens)
    for start, stop in [(0, 1), (1, 100), (29, 31), (starts[3], starts[5]), (split.num_tokens, split.num_tokens + 9)]:
        expected = starts[(starts >= start) & (starts < stop)]
        np.testing.assert_array_equal(split.documents_between(start, stop), expected)


# === Workers ===


@pytest.mark.parametrize("make", [BytePairTokenizer.train, lambda texts, _: CharacterTokenizer.train(texts)])
def test_workers_change_no_byte(folder, monkeypatch, make):
    monkeypatch.setattr(parallel_encoding, "BATCH_LENGTH", 200)
    tokenizer = make(TEXTS, 400)
    for workers in (1, 2, 3):
        write_token_shards(
            folder / f"tokens{workers}", find_documents(str(folder / "*.txt")), tokenizer, workers=workers
        )
    assert digests(folder / "tokens1") == digests(folder / "tokens2") == digests(folder / "tokens3")


def test_an_error_in_a_worker_is_the_same_sentence(tmp_path):
    tokenizer = CharacterTokenizer.train(["abc" * 100])
    with pytest.raises(UserError, match="'z' is not in the vocabulary"):
        write_token_shards(tmp_path / "tokens", ["abc" * 100, "abz"], tokenizer, workers=2)
    assert list(tmp_path.iterdir()) == []


def test_progress_reaches_the_end(folder, byte_pair, monkeypatch):
    monkeypatch.setattr(parallel_encoding, "BATCH_LENGTH", 200)
    seen = []
    documents = find_documents(str(folder))
    write_token_shards(folder / "tokens", documents, byte_pair, on_progress=lambda *figures: seen.append(figures))
    total = sum(len(text.encode()) for text in TEXTS)
    assert seen == sorted(seen) and len(seen) > 5 and seen[-1] == (total, total)


def test_no_worker(tmp_path, byte_pair):
    with pytest.raises(UserError, match="found 0 workers; expected at least 1"):
        write_token_shards(tmp_path / "tokens", TEXTS, byte_pair, workers=0)


# === Memory and death ===

MEMORY = """
import resource, sys
from tfgpt.text import find_documents, load_tokenizer, write_token_shards
documents, tokenizer = find_documents(sys.argv[1]), load_tokenizer(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_token_shards(sys.argv[3], documents, tokenizer)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_does_not_grow_with_the_text(tmp_path):
    text = "to be or not to be, that is the question:\n" * 100
    CharacterTokenizer.train([text]).save(tmp_path / "tokenizer")
    used = []
    for megabytes in (4, 48):
        path = tmp_path / "text"
        path.write_text(text * (megabytes * 2**20 // len(text)))
        arguments = [str(path), str(tmp_path / "tokenizer"), str(tmp_path / str(megabytes))]
        done = subprocess.run([sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True, check=True)
        used.append(int(done.stdout))
    assert used[1] < used[0] + 20 < 150  # 48 MB of text are 96 MB of tokens and 48 MB of characters


DEATH = """
import sys
from tfgpt.text import find_documents, load_tokenizer, write_token_shards
options = {"workers": 2, "on_progress": lambda done, total: print(done, flush=True)}
write_token_shards(sys.argv[2], find_documents("stdlib"), load_tokenizer(sys.argv[1]), **options)
"""


def test_a_death_leaves_no_directory_and_no_worker(tmp_path, byte_pair):
    byte_pair.save(tmp_path / "tokenizer")
    command = [sys.executable, "-c", DEATH, str(tmp_path / "tokenizer"), str(tmp_path / "tokens")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert int(process.stdout.readline()) > 0
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "tokens").exists()
    deadline = time.monotonic() + 60
    while alive := [child for child in children if _runs(child)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)
    assert len(children) >= 2
    # The next one finds its way, and sweeps what the dead one left.
    write_token_shards(tmp_path / "tokens", TEXTS, byte_pair)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer", "tokens"}


def _runs(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
