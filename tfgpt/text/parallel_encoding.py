"""Text to arrays of tokens on several cores, in order and in bounded memory."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from tfgpt.errors import UserError

# About how many characters are encoded at once; a worker has one such batch, and another waits for it.
BATCH_LENGTH = 2**20


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Some pieces of text as tokens.

    Attributes:
        tokens: a one-dimensional integer array.
        document_ends: places after a document's last token, from 1 to the number of tokens.
        num_bytes: of the text, in UTF-8.
    """

    tokens: np.ndarray
    document_ends: np.ndarray
    num_bytes: int


def batches_of_pieces(texts, tokenizer):
    """Lists of pairs (piece, whether a document ends with it), of about `BATCH_LENGTH` characters.

    Args:
        texts: an iterable with an iterable of blocks of text for each document.
        tokenizer: a `tfgpt.text.Tokenizer`.
    """
    batch, length = [], 0
    for blocks in texts:
        for piece, is_last in tokenizer.stream_pieces(blocks):
            batch.append((piece, is_last))
            length += len(piece)
            if length >= BATCH_LENGTH:
                yield batch
                batch, length = [], 0
    if batch:
        yield batch


def encode_pieces(tokenizer, dtype, batch):
    """Encodes pairs (piece, whether a document ends with it); the end token, if there is one, ends each document."""
    end = tokenizer.end_token_id
    arrays = []
    for ids, (_, is_last) in zip(tokenizer.encode_batch([piece for piece, _ in batch]), batch, strict=True):
        arrays.append(np.array([*ids, end] if is_last and end is not None else ids, dtype))
    tokens = np.concatenate(arrays)
    if end is None:
        ends = np.cumsum([len(array) for array in arrays])[[is_last for _, is_last in batch]]
    else:  # "<|endoftext|>" within a file ends a document, too
        ends = np.flatnonzero(tokens == end) + 1
    return EncodedBatch(tokens, ends, sum(len(piece.encode("utf-8")) for piece, _ in batch))


@contextlib.contextmanager
def open_encoder(tokenizer, dtype, workers):
    """Yields a function from an iterable of batches to an iterator of `EncodedBatch`es, in the same order.

    Args:
        tokenizer: a `tfgpt.text.Tokenizer`.
        dtype: of the tokens.
        workers: processes. With 1 it is this one, and the library's threads; these gain little, for they wait for each
            other's cache of words.

    Raises:
        UserError: if a text cannot be encoded, or if a worker dies.
    """
    if workers == 1:
        yield functools.partial(map, functools.partial(encode_pieces, tokenizer, dtype))
        return
    executor = concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),  # TensorFlow's threads do not survive a fork
        initializer=_start_worker,
        initargs=(tokenizer, dtype),
    )
    try:
        yield functools.partial(_encode_in_order, executor, 2 * workers)
    except BrokenProcessPool as error:
        raise UserError(
            f"one of {workers} workers was killed, perhaps for want of memory; expected all of them to live: "
            "try fewer workers"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _encode_in_order(executor, most_waiting, batches):
    waiting = collections.deque()
    for batch in batches:
        waiting.append(executor.submit(_encode_in_worker, batch))
        if len(waiting) >= most_waiting:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


# === In a worker ===

_encode = None


def _start_worker(tokenizer, dtype):
    global _encode
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent ends the workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _encode = functools.partial(encode_pieces, tokenizer, dtype)


def _die_with_parent():
    """An executor's workers outlive a parent that was killed; these do not."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _encode_in_worker(batch):
    return _encode(batch)
