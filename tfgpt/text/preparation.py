"""Text to a directory of token shards that runs train on: `tfgpt prepare`."""

import os
import pathlib

from tfgpt.atomic import expect_free
from tfgpt.errors import UserError
from tfgpt.text.corpus import find_documents
from tfgpt.text.shard_writing import write_token_shards
from tfgpt.text.tokenizer import BytePairTokenizer, CharacterTokenizer, load_tokenizer

TRAINED_TOKENIZERS = ("bpe", "character")

# Bytes of text that a byte-pair tokenizer is trained on at most: memory and time grow with its different words.
SAMPLE_BYTES = 2**25
SAMPLE_PIECE_BYTES = 2**16


def prepare(
    sources,
    out,
    tokenizer="bpe",
    vocabulary_size=50257,
    workers=None,
    validation_fraction=0.01,
    shard_tokens=2**26,
    seed=0,
    overwrite=False,
    on_stage=None,
    on_progress=None,
):
    """Tokenizes text once for many runs, in parallel, in memory that does not grow with the text.

    Args:
        sources: files, folders, globs or "stdlib"; see `find_documents`.
        out: a new directory, which appears whole or not at all; it gets the shards, their index, and the tokenizer.
        tokenizer: "bpe" and "character" are trained on the text, a directory's is read; see `make_tokenizer`.
        vocabulary_size: of a tokenizer that is trained with "bpe".
        workers: processes that tokenize; by default one a core.
        validation_fraction, shard_tokens, seed, overwrite: as in `write_token_shards`.
        on_stage: called with a sentence when a stage begins.
        on_progress: called with the bytes of text that are tokenized and those of all.

    Returns:
        The `TokenShards`.

    Raises:
        UserError: for bad input.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "text").write_text("to be or not to be, " * 9)
    ...     shards = prepare([f"{folder}/text"], f"{folder}/tokens", "character", workers=1, validation_fraction=0.2)
    >>> shards.split("train").num_tokens, shards.vocabulary_size
    (144, 8)
    """
    on_stage = on_stage or (lambda sentence: None)
    expect_free(out, overwrite)  # before a tokenizer is trained for minutes
    on_stage("looking for text")
    documents = find_documents(sources)
    on_stage("making the tokenizer")
    tokenizer = make_tokenizer(tokenizer, documents, vocabulary_size)
    on_stage("tokenizing")
    return write_token_shards(
        out,
        documents,
        tokenizer,
        validation_fraction,
        seed,
        shard_tokens,
        overwrite,
        len(os.sched_getaffinity(0)) if workers is None else workers,
        on_progress,
    )


def make_tokenizer(name, documents, vocabulary_size):
    """The tokenizer of a name: trained on documents, or read from a directory.

    Args:
        name: "bpe", trained on all of the text up to `SAMPLE_BYTES` of it, and on so much in pieces evenly spread over
            it where there is more; "character", all characters of the text; or a directory that holds a tokenizer.
        documents: a list of `TextFile`s.
        vocabulary_size: of "bpe".

    Raises:
        UserError: if there is no such tokenizer.
    """
    if name == "bpe":
        return BytePairTokenizer.train(_sample(documents), vocabulary_size)
    if name == "character":
        return CharacterTokenizer.train(block for document in documents for block in document.blocks())
    if not pathlib.Path(name).is_dir():
        raise UserError(
            f"tokenizer is {name!r}, expected {', '.join(TRAINED_TOKENIZERS)} or a directory with tokenizer.json, or "
            "with vocab.json and merges.txt"
        )
    return load_tokenizer(name)


def _sample(documents):
    total = sum(document.num_bytes for document in documents)
    step = total * SAMPLE_PIECE_BYTES // SAMPLE_BYTES  # from one piece's beginning to the next's
    next_piece = offset = 0
    for document in documents:
        if total <= SAMPLE_BYTES:
            yield from document.blocks()
        while total > SAMPLE_BYTES and next_piece < offset + document.num_bytes:
            start = document.cut(next_piece - offset)
            stop = document.cut(min(start + SAMPLE_PIECE_BYTES, document.num_bytes))
            yield from document.blocks(start, stop)
            next_piece += step
        offset += document.num_bytes
