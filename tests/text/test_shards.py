import hashlib
import json

import numpy as np
import pytest

from tfgpt.errors import UserError
from tfgpt.text import (
    BytePairTokenizer,
    CharacterTokenizer,
    TokenShards,
    load_tokenizer,
    parallel_encoding,
    write_token_shards,
)

DOCUMENTS = [f"document number {i}: " + "some words " * (i % 7 + 1) + "\n" for i in range(40)]


@pytest.fixture(scope="module")
def byte_pair():
    return BytePairTokenizer.train(DOCUMENTS, vocabulary_size=300)


def tokens(split):
    return split.read(0, split.num_tokens).tolist()


def documents_of(split, tokenizer):
    return tokenizer.decode(tokens(split)).removesuffix("<|endoftext|>").split("<|endoftext|>")


# === Splitting ===


def test_one_document_is_cut_as_nanogpt_does(tmp_path):
    text = "".join(DOCUMENTS)[:1003]
    tokenizer = CharacterTokenizer.train([text])
    opened = write_token_shards(tmp_path / "tokens", [text], tokenizer)
    n = int(len(text) * 0.9)
    assert tokens(opened.split("train")) == tokenizer.encode(text[:n])
    assert tokens(opened.split("validation")) == tokenizer.encode(text[n:])


def test_whole_documents_are_held_out(tmp_path, byte_pair):
    opened = write_token_shards(tmp_path / "tokens", iter(DOCUMENTS), byte_pair, validation_fraction=0.2, seed=1)
    train = documents_of(opened.split("train"), byte_pair)
    validation = documents_of(opened.split("validation"), byte_pair)
    assert sorted(train + validation) == sorted(DOCUMENTS)
    total = sum(map(len, DOCUMENTS))
    assert 0.2 * total <= sum(map(len, validation)) <= 0.2 * total + max(map(len, DOCUMENTS))
    assert train == [document for document in DOCUMENTS if document in set(train)]  # in their order


def test_every_document_ends_with_the_end_token(tmp_path, byte_pair):
    opened = write_token_shards(tmp_path / "tokens", DOCUMENTS, byte_pair)
    ids = tokens(opened.split("train")) + tokens(opened.split("validation"))
    assert ids.count(byte_pair.end_token_id) == len(DOCUMENTS)
    assert tokens(opened.split("train"))[-1] == byte_pair.end_token_id
    expected = [byte_pair.encode(document) + [byte_pair.end_token_id] for document in DOCUMENTS]
    assert sorted(ids) == sorted(token_id for document in expected for token_id in document)


def test_the_split_is_drawn_by_the_seed(tmp_path, byte_pair):
    def validation(name, seed):
        opened = write_token_shards(tmp_path / name, DOCUMENTS, byte_pair, seed=seed)
        return tokens(opened.split("validation"))

    assert validation("a", 0) == validation("b", 0) != validation("c", 1)


@pytest.mark.parametrize("seed", range(6))
def test_the_document_that_is_most_of_the_text_is_learned(tmp_path, byte_pair, seed):
    documents = ["long " * 500, "short", "short too"]
    opened = write_token_shards(tmp_path / "tokens", documents, byte_pair, validation_fraction=0.5, seed=seed)
    assert documents[0] in documents_of(opened.split("train"), byte_pair)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_each_side_has_a_document(tmp_path, byte_pair, fraction):
    opened = write_token_shards(tmp_path / "tokens", ["one doc", "two doc"], byte_pair, fraction)
    assert len(documents_of(opened.split("train"), byte_pair)) == 1
    assert len(documents_of(opened.split("validation"), byte_pair)) == 1


# === Files ===


@pytest.mark.parametrize("shard_tokens", [1, 7, 100, 2**26])
def test_shards_and_batches_change_no_token(tmp_path, byte_pair, monkeypatch, shard_tokens):
    whole = write_token_shards(tmp_path / "whole", DOCUMENTS, byte_pair)
    monkeypatch.setattr(parallel_encoding, "BATCH_LENGTH", 50)
    opened = write_token_shards(tmp_path / "tokens", DOCUMENTS[:], byte_pair, shard_tokens=shard_tokens)
    for name in ("train", "validation"):
        split = opened.split(name)
        assert tokens(split) == tokens(whole.split(name))
        assert all(len(array) == shard_tokens for array in split.arrays[:-1])
        assert split.num_tokens == sum(map(len, split.arrays))
        for start, stop in [(0, 0), (3, 20), (6, 8), (split.num_tokens - 2, split.num_tokens + 5)]:
            assert split.read(start, stop).tolist() == tokens(split)[start:stop]
    assert opened.split("train").read(0, 3).dtype == np.int32


def test_a_long_document_is_encoded_in_pieces(tmp_path, byte_pair, monkeypatch):
    monkeypatch.setattr(parallel_encoding, "BATCH_LENGTH", 1000)
    text = "".join(DOCUMENTS) * 200
    opened = write_token_shards(tmp_path / "tokens", [text], byte_pair)
    n = int(len(text) * 0.9)
    assert tokens(opened.split("train")) == byte_pair.encode(text[:n]) + [byte_pair.end_token_id]
    assert tokens(opened.split("validation")) == byte_pair.encode(text[n:]) + [byte_pair.end_token_id]


def test_files_and_index(tmp_path, byte_pair):
    write_token_shards(tmp_path / "tokens", DOCUMENTS, byte_pair, shard_tokens=500)
    index = json.loads((tmp_path / "tokens" / "index.json").read_text())
    assert index["dtype"] == "uint16"
    assert index["vocabulary_size"] == byte_pair.vocabulary_size
    assert index["tokenizer_fingerprint"] == byte_pair.fingerprint
    assert sum(split["bytes"] for split in index["splits"].values()) == sum(len(d.encode()) for d in DOCUMENTS)
    shards = [shard for split in index["splits"].values() for shard in split["shards"]]
    assert {"train-00000.npy", "train-00001.npy", "validation-00000.npy"} <= {shard["name"] for shard in shards}
    files = [*shards, *(shard["documents"] for shard in shards)]
    written = {path.name for path in (tmp_path / "tokens").iterdir()}
    byte_pair.save(tmp_path / "tokenizer")
    tokenizer_files = {path.name for path in (tmp_path / "tokenizer").iterdir()}
    assert written == {file["name"] for file in files} | tokenizer_files | {"index.json"}
    assert load_tokenizer(tmp_path / "tokens").fingerprint == byte_pair.fingerprint
    for shard in files:
        path = tmp_path / "tokens" / shard["name"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"]
        assert np.load(path).shape == (shard.get("tokens", shard.get("count")),)


def test_files_are_mapped(tmp_path, byte_pair):
    opened = write_token_shards(tmp_path / "tokens", DOCUMENTS, byte_pair)
    assert isinstance(opened.split("train").arrays[0], np.memmap)
    assert opened.split("train").num_bytes > opened.split("validation").num_bytes > 0


def test_a_large_vocabulary_takes_32_bits(tmp_path):
    characters = "".join(map(chr, range(0x10000, 0x10000 + 2**16 + 1)))
    opened = write_token_shards(tmp_path / "tokens", [characters], CharacterTokenizer.train([characters]))
    assert opened.split("train").arrays[0].dtype == np.uint32
    assert tokens(opened.split("validation"))[-1] == 2**16
    smaller = characters[:-1]
    opened = write_token_shards(tmp_path / "smaller", [smaller], CharacterTokenizer.train([smaller]))
    assert opened.split("train").arrays[0].dtype == np.uint16
    assert tokens(opened.split("validation"))[-1] == 2**16 - 1


def test_the_directory_appears_whole_or_not_at_all(tmp_path):
    tokenizer = CharacterTokenizer.train(["abc" * 100])
    with pytest.raises(UserError, match="'z' is not in the vocabulary"):
        write_token_shards(tmp_path / "tokens", ["abc" * 100, "abz"], tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_overwrite(tmp_path, byte_pair):
    write_token_shards(tmp_path / "tokens", DOCUMENTS, byte_pair)
    with pytest.raises(UserError, match="exists already"):
        write_token_shards(tmp_path / "tokens", DOCUMENTS, byte_pair)
    opened = write_token_shards(tmp_path / "tokens", DOCUMENTS[:2], byte_pair, overwrite=True)
    assert documents_of(opened.split("train"), byte_pair) + documents_of(opened.split("validation"), byte_pair)
    assert opened.split("train").num_bytes < 100


# === Checks ===


def test_tokenizer_and_contents_are_checked(tmp_path, byte_pair):
    opened = write_token_shards(tmp_path / "tokens", DOCUMENTS, byte_pair)
    opened.check_tokenizer(byte_pair)
    with pytest.raises(UserError, match="was written with another tokenizer"):
        opened.check_tokenizer(CharacterTokenizer.train(["abc"]))
    opened.check_contents()
    path = tmp_path / "tokens" / "train-00000.npy"
    array = np.load(path)
    array[0] += 1
    np.save(path, array)
    with pytest.raises(UserError, match="train-00000.npy has changed"):
        opened.check_contents()


# === Errors ===


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 2])
def test_validation_fraction(tmp_path, byte_pair, fraction):
    with pytest.raises(UserError, match="expected more than 0 and less than 1"):
        write_token_shards(tmp_path / "tokens", DOCUMENTS, byte_pair, validation_fraction=fraction)


@pytest.mark.parametrize("documents", [[], [""]])
def test_no_documents(tmp_path, byte_pair, documents):
    with pytest.raises(UserError, match="no documents to encode"):
        write_token_shards(tmp_path / "tokens", documents, byte_pair)


def test_too_little_text(tmp_path):
    with pytest.raises(UserError, match="the train split would be empty"):
        write_token_shards(tmp_path / "tokens", ["a"], CharacterTokenizer.train(["a"]))


def test_unknown_split(tmp_path, byte_pair):
    opened = write_token_shards(tmp_path / "tokens", DOCUMENTS, byte_pair)
    with pytest.raises(UserError, match="has no split 'test'; expected one of train, validation"):
        opened.split("test")


def test_missing_index(tmp_path):
    with pytest.raises(UserError, match="cannot read .*index.json: no such file or directory"):
        TokenShards.open(tmp_path / "nowhere")


@pytest.mark.parametrize("text, message", [("{", "is not JSON"), ("{}", "is not an index"), ("[]", "is not an index")])
def test_malformed_index(tmp_path, text, message):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(UserError, match=message):
        TokenShards.open(tmp_path)


def test_missing_truncated_and_wrong_shards(tmp_path, byte_pair):
    write_token_shards(tmp_path / "tokens", DOCUMENTS, byte_pair)
    path = tmp_path / "tokens" / "train-00000.npy"
    whole = path.read_bytes()
    for size in (0, 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="train-00000.npy is truncated or not a .npy file"):
            TokenShards.open(tmp_path / "tokens")
    np.save(path, np.zeros(5, np.uint16))
    with pytest.raises(
        UserError, match=r"train-00000.npy holds an array of shape \(5,\) and uint16; expected \d+ numbers"
    ):
        TokenShards.open(tmp_path / "tokens")
    path.unlink()
    with pytest.raises(UserError, match="train-00000.npy is missing; expected"):
        TokenShards.open(tmp_path / "tokens")
