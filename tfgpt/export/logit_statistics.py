"""How two models' logits differ, position by position."""

from __future__ import annotations

import dataclasses

import numpy as np

# Positions at a time: float64 copies of more logits than these would leave the processor's caches.
CHUNK = 32


@dataclasses.dataclass
class LogitStatistics:
    """Arrays (T,), one number a position.

    Attributes:
        largest: largest |difference| of logits; infinite where one is not a number.
        mean: mean |difference|.
        divergence: Kullback-Leibler, of the reference's distribution from the other's, in nats.
        top: the reference's likeliest token.
        found_top: the other's.
        margin: between the reference's two largest logits.
        reference_loss: cross-entropy of the token that follows, in nats.
        loss: the other's.
    """

    largest: np.ndarray
    mean: np.ndarray
    divergence: np.ndarray
    top: np.ndarray
    found_top: np.ndarray
    margin: np.ndarray
    reference_loss: np.ndarray
    loss: np.ndarray


def logit_statistics(reference, found, following):
    """Compares logits.

    Args:
        reference, found: (T, V) float32.
        following: (T,) the token after each position.

    Returns:
        `LogitStatistics`.

    Example:

    >>> same = logit_statistics(np.eye(3), np.eye(3), np.array([0, 1, 2]))
    >>> same.top.tolist(), same.divergence.tolist(), same.loss.round(3).tolist()
    ([0, 1, 2], [0.0, 0.0, 0.0], [0.551, 0.551, 0.551])
    """
    parts = [
        _statistics(reference[i : i + CHUNK], found[i : i + CHUNK], following[i : i + CHUNK])
        for i in range(0, len(reference), CHUNK)
    ]
    return LogitStatistics(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def losses(logits, following):
    """The cross-entropy (T,) of the token after each position, in nats."""
    chunks = [(logits[i : i + CHUNK], following[i : i + CHUNK]) for i in range(0, len(logits), CHUNK)]
    return np.concatenate([-_at(log_softmax(x), tokens) for x, tokens in chunks])


def log_softmax(logits):
    """In float64, so that divergences of 1e-13 can be told from none."""
    logits = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def _statistics(reference, found, following):
    difference = np.abs(found - reference)
    np.copyto(difference, np.inf, where=np.isnan(difference))  # NaN must not compare as small
    p, q = log_softmax(reference), log_softmax(found)
    two_best = np.partition(reference, -2, axis=-1)[:, -2:]  # in order
    return (
        difference.max(axis=-1),
        difference.mean(axis=-1),
        (np.exp(p) * (p - q)).sum(axis=-1),
        reference.argmax(axis=-1),
        found.argmax(axis=-1),
        two_best[:, 1] - two_best[:, 0],
        -_at(p, following),
        -_at(q, following),
    )


def _at(values, tokens):
    return np.take_along_axis(values, tokens[:, None], axis=-1)[:, 0]
