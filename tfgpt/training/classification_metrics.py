"""How well classes were told: the confusion matrix, and accuracy, precision, recall and F1 from it."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ClassMetrics:
    """Of one class.

    Args:
        precision: how many of those that were taken for this class are of it; 0 where none was.
        recall: how many of this class were taken for it; 0 where there is none.
        f1: their harmonic mean, 2 × true positives / (2 × true positives + false positives + false negatives).
        support: how many are of this class.
    """

    precision: float
    recall: float
    f1: float
    support: int


@dataclasses.dataclass(frozen=True)
class ClassificationMetrics:
    """Of all classes.

    Args:
        loss: cross-entropy, in nats a text.
        accuracy: how many classes were right.
        macro_precision, macro_recall, macro_f1: means over classes, each counting alike.
        classes: by label.
        confusion_matrix: rows are the texts' classes, columns those they were taken for.
    """

    loss: float
    accuracy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    classes: dict[str, ClassMetrics]
    confusion_matrix: list[list[int]]

    @property
    def texts(self):
        """How many were classified."""
        return sum(map(sum, self.confusion_matrix))


def confusion_matrix(expected, found, num_classes):
    """Counts (C, C) of pairs of class numbers: row the expected one, column the found one.

    Example:

    >>> confusion_matrix([0, 0, 1], [0, 1, 1], num_classes=2).tolist()
    [[1, 1], [0, 1]]
    """
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (np.asarray(expected), np.asarray(found)), 1)
    return counts


def classification_metrics(logits, classes, labels):
    """Metrics of logits (N, C) against class numbers (N,).

    Args:
        logits: floats.
        classes: integers.
        labels: the classes' names.

    Returns:
        A `ClassificationMetrics`.
    """
    logits, classes = np.asarray(logits, np.float64), np.asarray(classes)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    counts = confusion_matrix(classes, logits.argmax(axis=1), len(labels))
    right, taken, support = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)
    precision, recall = right / np.maximum(taken, 1), right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(taken + support, 1)
    return ClassificationMetrics(
        loss=float(-log_probabilities[np.arange(len(classes)), classes].mean()),
        accuracy=float(right.sum() / counts.sum()),
        macro_precision=float(precision.mean()),
        macro_recall=float(recall.mean()),
        macro_f1=float(f1.mean()),
        classes={
            label: ClassMetrics(float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
            for i, label in enumerate(labels)
        },
        confusion_matrix=counts.tolist(),
    )
