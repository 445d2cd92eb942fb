"""Token shards: a corpus, encoded and split once, in files that are mapped into memory."""

import dataclasses
import json
import pathlib
import random

import numpy as np

from tfgpt.atomic import atomic_directory
from tfgpt.checksum import sha256_of_file
from tfgpt.errors import UserError

INDEX = "index.json"
SPLITS = ("train", "validation")

# About how many characters are encoded and handed to the shards at once.
BATCH_LENGTH = 2**20


# === Reading ===


@dataclasses.dataclass(frozen=True)
class TokenSplit:
    """The tokens of one split, in order: they run on from one shard into the next.

    Attributes:
        name: "train" or "validation".
        directory: where it was opened.
        arrays: a one-dimensional integer array a shard, mapped into memory.
        num_tokens: of all shards.
        num_bytes: of the text, in UTF-8.
    """

    name: str
    directory: pathlib.Path
    arrays: tuple
    num_tokens: int
    num_bytes: int

    def read(self, start, stop):
        """Tokens `start` to `stop`, without the one at `stop`, as an int32 array; clipped to the split."""
        parts, offset = [np.empty(0, np.int32)], 0
        for array in self.arrays:
            parts.append(array[max(start - offset, 0) : max(stop - offset, 0)])
            offset += len(array)
        return np.concatenate(parts, dtype=np.int32, casting="unsafe")


@dataclasses.dataclass(frozen=True)
class TokenShards:
    """A directory of token shards, as `write_token_shards` wrote it.

    Attributes:
        directory: where it was opened.
        vocabulary_size: V, of the tokenizer.
        tokenizer_fingerprint: of the tokenizer.
        splits: `TokenSplit`s by name.
    """

    directory: pathlib.Path
    vocabulary_size: int
    tokenizer_fingerprint: str
    splits: dict

    @classmethod
    def open(cls, directory):
        """Opens a directory; the files are mapped, not read.

        Raises:
            UserError: if the index or a shard is missing, malformed, or of another size than the index says.
        """
        directory = pathlib.Path(directory)
        index = _read_index(directory)
        try:
            dtype = np.dtype(index["dtype"])
            splits = {}
            for name, split in index["splits"].items():
                arrays = tuple(_open_shard(directory, shard, dtype) for shard in split["shards"])
                splits[name] = TokenSplit(name, directory, arrays, sum(map(len, arrays)), split["bytes"])
            return cls(directory, index["vocabulary_size"], index["tokenizer_fingerprint"], splits)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{directory / INDEX} is not an index of token shards ({error!r}); expected one that "
                "write_token_shards wrote"
            ) from error

    def split(self, name):
        """The split of this name.

        Raises:
            UserError: if there is none.
        """
        if name not in self.splits:
            raise UserError(f"{self.directory} has no split {name!r}; expected one of {', '.join(self.splits)}")
        return self.splits[name]

    def check_tokenizer(self, tokenizer):
        """Raises a `UserError` if another tokenizer made these tokens."""
        if tokenizer.fingerprint != self.tokenizer_fingerprint:
            raise UserError(
                f"{self.directory} was written with another tokenizer: found fingerprint "
                f"{self.tokenizer_fingerprint[:12]} over {self.vocabulary_size} tokens, expected "
                f"{tokenizer.fingerprint[:12]} over {tokenizer.vocabulary_size}"
            )

    def check_contents(self):
        """Reads every shard and raises a `UserError` if one is not the file that was written."""
        for split in _read_index(self.directory)["splits"].values():
            for shard in split["shards"]:
                path = self.directory / shard["name"]
                found = sha256_of_file(path)
                if found != shard["sha256"]:
                    raise UserError(f"{path} has changed: found SHA-256 {found}, expected {shard['sha256']}")


def _read_index(directory):
    path = directory / INDEX
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {(error.strerror or str(error)).lower()}; expected a directory of token shards"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}; expected an index of token shards") from error


def _open_shard(directory, shard, dtype):
    path, expected = directory / shard["name"], f"{shard['tokens']} tokens of {dtype}"
    try:
        array = np.load(path, mmap_mode="r")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; expected {expected}, as {INDEX} says") from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is truncated or not a .npy file: {error}; expected {expected}") from error
    if array.dtype != dtype or array.shape != (shard["tokens"],):
        raise UserError(
            f"{path} holds an array of shape {array.shape} and {array.dtype}; expected {expected}, as {INDEX} says"
        )
    return array


# === Writing ===


def write_token_shards(
    directory,
    documents,
    tokenizer,
    validation_fraction=0.1,
    seed=0,
    shard_tokens=2**26,
    overwrite=False,
):
    """Splits documents into train and validation, encodes them, and writes the token shards.

    One document is cut: its last characters are held out. Of several, whole documents are, drawn by `seed`, so that no
    document is on both sides. Each document, and each side of a document that was cut, ends with the tokenizer's end
    token if it has one. Documents are held in memory, their tokens are not.

    Args:
        directory: a new directory, which appears whole or not at all.
        documents: an iterable of str.
        tokenizer: a `tfgpt.text.Tokenizer`.
        validation_fraction: the share of the characters to hold out, between 0 and 1.
        seed: of the draw.
        shard_tokens: the most tokens in one file.
        overwrite: whether to replace a directory that is there.

    Returns:
        The `TokenShards`, opened.

    Raises:
        UserError: if there is not enough text for both sides, if the tokenizer cannot encode it, or if the directory
            cannot be written.

    Example:

    >>> import tempfile
    >>> from tfgpt.text import CharacterTokenizer
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shards = write_token_shards(f"{folder}/tokens", ["to be or not"], CharacterTokenizer.train(["to be or n"]))
    ...     shards.split("train").num_tokens, shards.split("validation").read(0, 9).tolist()
    (10, [4, 6])
    """
    if not 0 < validation_fraction < 1:
        raise UserError(f"found a validation fraction of {validation_fraction}; expected more than 0 and less than 1")
    if shard_tokens < 1:
        raise UserError(f"found {shard_tokens} tokens a shard; expected at least 1")
    dtype = np.dtype("uint16" if tokenizer.vocabulary_size <= 2**16 else "uint32")
    with atomic_directory(directory, overwrite=overwrite) as temporary:
        index = {
            "dtype": dtype.name,
            "vocabulary_size": tokenizer.vocabulary_size,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "splits": {},
        }
        for name, part in zip(SPLITS, _split_documents(list(documents), validation_fraction, seed), strict=True):
            writer = _ShardWriter(temporary, name, dtype, shard_tokens)
            for tokens in _encode(part, tokenizer, dtype):
                writer.write(tokens)
            writer.flush()
            if not writer.shards:
                raise UserError(f"the {name} split would be empty; expected more text, or another validation fraction")
            index["splits"][name] = {
                "shards": writer.shards,
                "bytes": sum(len(document.encode("utf-8")) for document in part),
            }
        (temporary / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return TokenShards.open(directory)


def _split_documents(documents, validation_fraction, seed):
    """Two lists of documents, train and validation."""
    documents = [document for document in documents if document]
    if not documents:
        raise UserError("there are no documents to encode; expected at least one that is not empty")
    if len(documents) == 1:
        text = documents[0]
        cut = int(len(text) * (1 - validation_fraction))
        return [text[:cut]] if cut else [], [text[cut:]]
    total = sum(map(len, documents))
    # A document of more than half of the text is what there is to learn from: it is never held out.
    order = [i for i, document in enumerate(documents) if 2 * len(document) <= total]
    random.Random(seed).shuffle(order)
    held_out, length = set(), 0
    for i in order[: len(documents) - 1]:
        held_out.add(i)
        length += len(documents[i])
        if length >= validation_fraction * total:
            break
    train = [document for i, document in enumerate(documents) if i not in held_out]
    return train, [document for i, document in enumerate(documents) if i in held_out]


def _encode(documents, tokenizer, dtype):
    """Arrays of tokens, of about `BATCH_LENGTH` characters each."""
    batch, length = [], 0  # pairs (text, whether a document ends with it)

    def encoded():
        end = [] if tokenizer.end_token_id is None else [tokenizer.end_token_id]
        ids = tokenizer.encode_batch([text for text, _ in batch])
        return np.array(
            [i for part, (_, ends) in zip(ids, batch, strict=True) for i in (part + end if ends else part)], dtype
        )

    for document in documents:
        pieces = tokenizer.pieces(document)
        for number, piece in enumerate(pieces, start=1):
            batch.append((piece, number == len(pieces)))
            length += len(piece)
            if length >= BATCH_LENGTH:
                yield encoded()
                batch, length = [], 0
    if batch:
        yield encoded()


class _ShardWriter:
    """Cuts a stream of arrays into files of `shard_tokens` tokens, the last one shorter."""

    def __init__(self, directory, split, dtype, shard_tokens):
        self.directory, self.split, self.dtype, self.shard_tokens = directory, split, dtype, shard_tokens
        self.shards = []
        self._pending, self._num_pending = [], 0

    def write(self, tokens):
        while len(tokens):
            part, tokens = np.split(tokens, [self.shard_tokens - self._num_pending])
            self._pending.append(part)
            self._num_pending += len(part)
            if self._num_pending == self.shard_tokens:
                self.flush()

    def flush(self):
        if not self._num_pending:
            return
        path = self.directory / f"{self.split}-{len(self.shards):05d}.npy"
        np.save(path, np.concatenate(self._pending))
        self.shards.append({"name": path.name, "tokens": self._num_pending, "sha256": sha256_of_file(path)})
        self._pending, self._num_pending = [], 0
