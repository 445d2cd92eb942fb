"""From logits to the next token, as `tfgpt.generation.sampling` chooses it; all rows have the same settings."""

from __future__ import annotations

import numpy as np


def choose_tokens(logits, seen, settings, uniform):
    """The next token of each row.

    Args:
        logits: (B, V) float32.
        seen: (B, V) boolean, the tokens that stand in each row's context; None without a repetition penalty.
        settings: `GenerationSettings`.
        uniform: a function of no arguments that gives (B,) numbers in [0, 1); called only to sample.

    Returns:
        (B,) int64.
    """
    if settings.repetition_penalty != 1:
        logits = penalize_repetition(logits, seen, np.float32(settings.repetition_penalty))
    temperature = np.float32(settings.temperature)
    if temperature == 0:
        return logits.argmax(axis=-1)
    # Tiny temperatures make logits infinite, of which a softmax makes no numbers.
    limits = np.finfo(np.float32)
    with np.errstate(over="ignore"):
        scaled = np.clip(logits / temperature, limits.min, limits.max)
    return sample(scaled, settings.top_k, np.float32(settings.top_p), uniform())


def penalize_repetition(logits, seen, penalty):
    """Makes seen tokens less likely (CTRL, Keskar et al. 2019, section 4.1)."""
    return np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)


def sample(logits, top_k, top_p, uniform):
    """Samples among the `top_k` likeliest tokens and, of these, the smallest set that reaches probability `top_p`.

    Everything is float32 and summed likeliest first, or a number between two tokens would go to one here and to the
    other in TensorFlow.

    Args:
        logits: (B, V) float32, temperature applied.
        top_k: an integer, 0 for all.
        top_p: float32 in (0, 1].
        uniform: (B,) in [0, 1): where in the cumulative distribution each row falls.

    Returns:
        (B,) int64.
    """
    vocabulary_size = logits.shape[-1]
    logits, tokens = largest(logits, min(top_k or vocabulary_size, vocabulary_size))
    probabilities = np.exp(logits - logits[:, :1])
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    mass = np.cumsum(probabilities, axis=-1)
    # The likeliest token stays even if rounding leaves it no mass before top_p.
    kept = np.ones(logits.shape, bool)
    kept[:, 1:] = mass[:, :-1] < top_p
    cumulative = np.cumsum(np.where(kept, probabilities, np.float32(0)), axis=-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    choice = (cumulative <= threshold).sum(axis=-1)
    # Rounding must not carry the draw past the last token that was kept.
    last_kept = (kept & (probabilities > 0)).sum(axis=-1) - 1
    return tokens[np.arange(len(tokens)), np.minimum(choice, last_kept)]


def largest(values, count):
    """The largest values of each row, largest first and equal ones by lower index, as `tf.math.top_k` gives them.

    Args:
        values: (B, N) floats.
        count: how many, 1 to N.

    Returns:
        Values (B, count) and their indices (B, count).
    """
    if count == values.shape[-1]:
        indices = np.argsort(-values, axis=-1, kind="stable")
    else:
        # A full sort of the vocabulary costs milliseconds. A partition finds the least value to take in a fraction
        # of that, but not which of those equal to it: so all of them are sorted, and the last dropped.
        least = np.partition(values, -count, axis=-1)[:, -count]
        candidates = [np.flatnonzero(row >= edge) for row, edge in zip(values, least)]
        indices = np.stack(
            [some[np.argsort(-row[some], kind="stable")[:count]] for row, some in zip(values, candidates)]
        )
    return np.take_along_axis(values, indices, axis=-1), indices
