"""Token shards: a corpus, encoded and split once, in files that are mapped into memory."""

import dataclasses
import json
import os
import pathlib

import numpy as np

from tfgpt.checksum import sha256_of_file
from tfgpt.errors import UserError

INDEX = "index.json"
SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class TokenSplit:
    """The tokens of one split, in order: they run on from one shard into the next.

    Attributes:
        name: "train" or "validation".
        directory: where it was opened.
        arrays: a one-dimensional integer array a shard, mapped into memory.
        num_tokens: of all shards.
        num_bytes: of the text, in UTF-8.
        document_starts: an int64 array a shard, mapped into memory: the places in the shard, in order, at which a
            document begins. One that goes on from the shard before does not begin here.
    """

    name: str
    directory: pathlib.Path
    arrays: tuple
    num_tokens: int
    num_bytes: int
    document_starts: tuple = ()

    @property
    def num_documents(self):
        """Those that begin in the split: all."""
        return sum(map(len, self.document_starts))

    def documents_between(self, start, stop):
        """Where documents begin from token `start` to token `stop`, without the one at `stop`, as an int64 array."""
        parts, offset = [np.empty(0, np.int64)], 0
        for array, starts in zip(self.arrays, self.document_starts, strict=True):
            first, last = np.searchsorted(starts, [start - offset, stop - offset])
            parts.append(starts[first:last] + offset)
            offset += len(array)
        return np.concatenate(parts)

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
                arrays = tuple(_open_array(directory, s["name"], s["tokens"], dtype) for s in split["shards"])
                documents = tuple(
                    _open_array(directory, s["documents"]["name"], s["documents"]["count"], np.dtype(np.int64))
                    for s in split["shards"]
                )
                splits[name] = TokenSplit(name, directory, arrays, sum(map(len, arrays)), split["bytes"], documents)
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

    @property
    def size(self):
        """Bytes of the shards' files."""
        return sum(os.path.getsize(self.directory / name) for name in self._checksums())

    def check_contents(self, on_progress=None):
        """Reads every shard and raises a `UserError` if one is not the file that was written.

        Args:
            on_progress: called with the bytes that are read and those of all.
        """
        total, done = self.size, 0
        for name, expected in self._checksums().items():
            path = self.directory / name
            found = sha256_of_file(path)
            if found != expected:
                raise UserError(f"{path} has changed: found SHA-256 {found}, expected {expected}")
            done += os.path.getsize(path)
            if on_progress:
                on_progress(done, total)

    def _checksums(self):
        """The checksum of each file."""
        shards = [shard for split in _read_index(self.directory)["splits"].values() for shard in split["shards"]]
        return {file["name"]: file["sha256"] for shard in shards for file in (shard, shard["documents"])}


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


def _open_array(directory, name, length, dtype):
    path, expected = directory / name, f"{length} numbers of {dtype}"
    try:
        array = np.load(path, mmap_mode="r")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; expected {expected}, as {INDEX} says") from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is truncated or not a .npy file: {error}; expected {expected}") from error
    if array.dtype != dtype or array.shape != (length,):
        raise UserError(
            f"{path} holds an array of shape {array.shape} and {array.dtype}; expected {expected}, as {INDEX} says"
        )
    return array
