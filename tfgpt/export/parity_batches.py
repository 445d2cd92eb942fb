"""The text of a parity check: ragged batches, prompts of unequal lengths, and enough of it to measure perplexity."""

from __future__ import annotations

import dataclasses

import numpy as np

GREEDY_PROMPTS = 20
CACHED_STEPS = 16  # how many tokens the cache check decodes one by one
MIN_PERPLEXITY_TOKENS = 512  # less is no measure of one
PERPLEXITY_TOKENS = 4096  # what a budget of one percent is measured on, where the text has as many


@dataclasses.dataclass(frozen=True)
class Batch:
    """Pieces of real text of unequal length, padded on one side."""

    token_ids: np.ndarray  # (B, T)
    padding_mask: np.ndarray  # (B, T)
    prompts: tuple[int, ...]  # the number of each row's text, for messages


def ragged_batches(tokens, window, vocabulary_size, rows=8):
    """Texts of lengths from a few tokens to the full window, in batches padded on the left and on the right in turn."""
    lengths = sorted({max(2, round(window * (i + 1) / rows)) for i in range(rows)})
    texts = [_text(tokens, i, len(lengths), length) for i, length in enumerate(lengths)]
    # About 256 MB of float32 logits, but at least two rows, or nothing would be ragged, and at least two batches, for
    # each side to be padded once.
    rows_at_once = max(1, min(len(lengths) // 2, max(2, 2**26 // (window * vocabulary_size))))
    groups = [range(i, min(i + rows_at_once, len(texts))) for i in range(0, len(texts), rows_at_once)]
    return [_pad([texts[i] for i in group], group, left=bool(n % 2)) for n, group in enumerate(groups)]


def greedy_prompts(tokens, window):
    """`GREEDY_PROMPTS` pieces of text of unequal lengths, from one token up to 32 or half the window."""
    longest = min(32, max(window // 2, 1))
    return [
        _text(tokens, i, GREEDY_PROMPTS, 1 + i * (longest - 1) // (GREEDY_PROMPTS - 1)).tolist()
        for i in range(GREEDY_PROMPTS)
    ]


def perplexity_batches(tokens, window, vocabulary_size):
    """Windows spread evenly over the text, up to `PERPLEXITY_TOKENS` in all; of a shorter text all, side by side."""
    count = -(-min(len(tokens), PERPLEXITY_TOKENS) // window)
    if len(tokens) > PERPLEXITY_TOKENS:
        texts = [_text(tokens, i, count, window) for i in range(count)]
    else:
        texts = [np.asarray(tokens[i * window : (i + 1) * window]).astype(np.int64) for i in range(count)]
    texts = [text for text in texts if len(text) > 1]
    rows_at_once = max(1, 2**26 // (window * vocabulary_size))
    groups = [range(i, min(i + rows_at_once, len(texts))) for i in range(0, len(texts), rows_at_once)]
    return [_pad([texts[i] for i in group], group, left=False) for group in groups]


def cached_batches(tokens, window):
    """Short texts, and two that end at the window's end and a little before."""
    # A dozen, since what is decoded of them alone has a budget of its own.
    groups = [[min(length, window) for length in range(CACHED_STEPS + 1, 65, 4)]]
    if window > 64:
        groups.append([window, window - CACHED_STEPS // 2])
    return [
        _pad([_text(tokens, i, len(lengths), n) for i, n in enumerate(lengths)], range(len(lengths)), left=True)
        for lengths in groups
    ]


def _text(tokens, index, count, length):
    """The `index`-th of `count` pieces spread over the text."""
    length = min(length, len(tokens))
    start = (len(tokens) - length) * index // max(count - 1, 1)
    return np.asarray(tokens[start : start + length]).astype(np.int64)


def _pad(texts, prompts, left):
    longest = max(map(len, texts))
    widths = [((longest - len(t), 0) if left else (0, longest - len(t))) for t in texts]
    token_ids = np.stack([np.pad(t, width) for t, width in zip(texts, widths, strict=True)])
    mask = np.stack([np.pad(np.ones_like(t), width) for t, width in zip(texts, widths, strict=True)])
    return Batch(token_ids, mask, tuple(prompts))
