"""What every runtime does with texts to be translated, so that all translate alike: sources, batches, limits, texts."""

from __future__ import annotations

import numpy as np

from tfgpt.errors import UserError
from tfgpt.generation_settings import GenerationSettings

# Sources of a batch have the same width, a multiple of this; how many tokens a translation may have follows from its
# source's width, so that it does not depend on what else is in the batch.
WIDTH_MULTIPLE = 8

TOKENS_PER_BATCH = 2048  # of sources, about, over beams


def encode_sources(tokenizer, texts):
    """The token ids of each text, its end-of-sentence token included.

    Raises:
        UserError: without such a tokenizer, and for what is no text or an empty one.
    """
    if tokenizer is None or tokenizer.eos_token_id is None:
        raise UserError("the model has no tokenizer with a begin and end of sentence, expected one to translate text")
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"text {number} is {text!r}, expected a sentence")
    return [[*ids, tokenizer.eos_token_id] for ids in tokenizer.encode_batch([text.strip() for text in texts])]


def decode_translation(tokenizer, token_ids):
    """The text of a translation's tokens."""
    special = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    return tokenizer.decode([token for token in token_ids if token not in special]).strip()


def check_sources(sources, window, vocabulary_size):
    """Raises a `UserError` for sources that are empty or longer than the window, or have ids outside the vocabulary."""
    for number, source in enumerate(sources):
        if not 1 <= len(source) <= window:
            raise UserError(f"text {number} has {len(source)} tokens with its end, expected 1 to the window's {window}")
        if not 0 <= min(source) <= max(source) < vocabulary_size:
            raise UserError(f"text {number} has token ids outside the vocabulary, expected 0 to {vocabulary_size - 1}")


def translation_settings(window, max_new_tokens=None, **settings):
    """`GenerationSettings` of a translation; without `max_new_tokens` they have the window's, the most there can be.

    Raises:
        UserError: for settings out of range.
    """
    chosen = GenerationSettings(max_new_tokens=window if max_new_tokens is None else max_new_tokens, **settings)
    if chosen.max_new_tokens > window:
        raise UserError(f"max_new_tokens is {max_new_tokens}, expected at most the window's {window}")
    return chosen


def padded_width(length, window):
    """How wide the batch is that a source of this length is read in.

    Example:

    >>> padded_width(9, window=128), padded_width(9, window=12)
    (16, 12)
    """
    return min(-(-length // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, window)


def default_max_new_tokens(length, window):
    """The most tokens of a translation, where nobody says: twice its source's width and 16, within the window.

    Example:

    >>> default_max_new_tokens(9, window=128)
    48
    """
    return min(2 * padded_width(length, window) + 16, window)


def source_batches(sources, window, num_beams=1):
    """Sources of the same width together, longest first: what is too large fails at once.

    Args:
        sources: token id lists.
        window: the most tokens of one.
        num_beams: how many rows each becomes.

    Yields:
        (places in `sources`, `source_ids` (B, S), `source_padding_mask` (B, S)), int32, padded on the right.
    """
    by_width = {}
    for row, source in enumerate(sources):
        by_width.setdefault(padded_width(len(source), window), []).append(row)
    for width, rows in sorted(by_width.items(), reverse=True):
        size = max(TOKENS_PER_BATCH // width // num_beams, 8)
        for start in range(0, len(rows), size):
            places = rows[start : start + size]
            yield places, *pad_sources([sources[row] for row in places], width)


def pad_sources(sources, width=None):
    """Token id lists as arrays `source_ids` and `source_padding_mask`, (B, S) int32, padded on the right with zeros."""
    width = width or max(map(len, sources))
    token_ids = np.zeros((len(sources), width), np.int32)
    for row, source in zip(token_ids, sources, strict=True):
        row[: len(source)] = source
    lengths = np.array([len(source) for source in sources])
    return token_ids, (np.arange(width) < lengths[:, None]).astype(np.int32)
