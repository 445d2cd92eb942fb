"""How token shards are written: documents are split, encoded on several cores, and streamed to files."""

import json
import random

import numpy as np

from tfgpt.atomic import atomic_directory
from tfgpt.checksum import sha256_of_file
from tfgpt.errors import UserError
from tfgpt.text.corpus import TextString
from tfgpt.text.parallel_encoding import batches_of_pieces, open_encoder
from tfgpt.text.shards import INDEX, SPLITS, TokenShards


def write_token_shards(
    directory,
    documents,
    tokenizer,
    validation_fraction=0.1,
    seed=0,
    shard_tokens=2**26,
    overwrite=False,
    workers=1,
    on_progress=None,
):
    """Splits documents into train and validation, encodes them, and writes the token shards and the tokenizer.

    One document is cut: its last bytes are held out. Of several, whole documents are, drawn by `seed`, so that no
    document is on both sides. Each document, and each side of a document that was cut, ends with the tokenizer's end
    token if it has one. The files are the same for any number of workers. Neither documents nor tokens are held in
    memory: it takes a few megabytes a worker, and no more for a larger text, unless it goes on for long without a
    space or a line feed.

    Args:
        directory: a new directory, which appears whole or not at all.
        documents: an iterable of `TextFile` (see `find_documents`) or str.
        tokenizer: a `tfgpt.text.Tokenizer`.
        validation_fraction: the share of the bytes to hold out, between 0 and 1.
        seed: of the draw.
        shard_tokens: the most tokens in one file.
        overwrite: whether to replace a directory that is there.
        workers: processes that encode; 1 is this one.
        on_progress: called with the bytes of text that are done and those of all.

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
    if workers < 1:
        raise UserError(f"found {workers} workers; expected at least 1")
    documents = [TextString(document) if isinstance(document, str) else document for document in documents]
    parts = dict(zip(SPLITS, _split_documents(documents, validation_fraction, seed), strict=True))
    total_bytes, done_bytes = sum(document.num_bytes for document in documents), 0
    dtype = np.dtype("uint16" if tokenizer.vocabulary_size <= 2**16 else "uint32")
    index = {
        "dtype": dtype.name,
        "vocabulary_size": tokenizer.vocabulary_size,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "splits": {},
    }
    with atomic_directory(directory, overwrite=overwrite) as temporary:
        tokenizer.save(temporary)
        with open_encoder(tokenizer, dtype, workers) as encode:
            for name, part in parts.items():
                writer = _ShardWriter(temporary, name, dtype, shard_tokens)
                texts = (document.blocks(start, stop) for document, start, stop in part)
                for batch in encode(batches_of_pieces(texts, tokenizer)):
                    writer.write(batch)
                    done_bytes += batch.num_bytes
                    if on_progress:
                        on_progress(done_bytes, total_bytes)
                index["splits"][name] = writer.finish()
        (temporary / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return TokenShards.open(directory)


def _split_documents(documents, validation_fraction, seed):
    """Two lists of (document, first byte, byte after the last), train and validation."""
    sizes = [document.num_bytes for document in documents]
    documents = [(document, 0, size) for document, size in zip(documents, sizes, strict=True) if size]
    if not documents:
        raise UserError("there are no documents to encode; expected at least one that is not empty")
    if len(documents) == 1:
        [(document, _, size)] = documents
        cut = document.cut(int(size * (1 - validation_fraction)))
        return [(document, 0, cut)] if cut else [], [(document, cut, size)] if cut < size else []
    total = sum(sizes)
    # A document of more than half of the text is what there is to learn from: it is never held out.
    order = [i for i, (_, _, size) in enumerate(documents) if 2 * size <= total]
    random.Random(seed).shuffle(order)
    held_out, length = set(), 0
    for i in order[: len(documents) - 1]:
        held_out.add(i)
        length += documents[i][2]
        if length >= validation_fraction * total:
            break
    train = [document for i, document in enumerate(documents) if i not in held_out]
    return train, [document for i, document in enumerate(documents) if i in held_out]


class _ShardWriter:
    """Cuts a stream of tokens into files of `shard_tokens` tokens, the last one shorter, as it comes."""

    def __init__(self, directory, split, dtype, shard_tokens):
        self.directory, self.split, self.dtype, self.shard_tokens = directory, split, dtype, shard_tokens
        self.shards, self.num_bytes = [], 0
        self._file, self._num_tokens, self._document_starts = None, 0, []
        self._document_begins = True

    def write(self, batch):
        self.num_bytes += batch.num_bytes
        tokens, ends = batch.tokens, batch.document_ends
        while len(tokens):
            if self._file is None:
                self._begin_shard()
            if self._document_begins:
                self._document_starts.append(np.array([self._num_tokens]))
            part = tokens[: self.shard_tokens - self._num_tokens]
            # A document that begins where this part ends does so in the next part, if there is one.
            inside = ends[ends < len(part)]
            self._document_starts.append(self._num_tokens + inside)
            self._document_begins = len(part) in ends
            part.tofile(self._file)
            self._num_tokens += len(part)
            tokens, ends = tokens[len(part) :], ends[len(inside) + self._document_begins :] - len(part)
            if self._num_tokens == self.shard_tokens:
                self._end_shard()

    def finish(self):
        """Ends the last shard; returns the split's part of the index."""
        if self._file is not None:
            self._end_shard()
        if not self.shards:
            raise UserError(
                f"the {self.split} split would be empty; expected more text, or another validation fraction"
            )
        return {"shards": self.shards, "bytes": self.num_bytes}

    def _begin_shard(self):
        self._file = open(self.directory / f"{self.split}-{len(self.shards):05d}.npy", "wb")  # noqa: SIM115 (closed by _end_shard)
        self._write_header()

    def _end_shard(self):
        self._file.seek(0)
        self._write_header()  # of the same length: NumPy leaves room for a number that grows
        self._file.close()
        name = f"{self.split}-{len(self.shards):05d}"
        documents = np.concatenate(self._document_starts)
        np.save(self.directory / f"{name}.documents.npy", documents.astype(np.int64))
        self.shards.append(
            {
                "name": f"{name}.npy",
                "tokens": self._num_tokens,
                "sha256": sha256_of_file(self.directory / f"{name}.npy"),
                "documents": {
                    "name": f"{name}.documents.npy",
                    "count": len(documents),
                    "sha256": sha256_of_file(self.directory / f"{name}.documents.npy"),
                },
            }
        )
        self._file, self._num_tokens, self._document_starts = None, 0, []

    def _write_header(self):
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self._num_tokens,)}
        np.lib.format.write_array_header_1_0(self._file, header)
