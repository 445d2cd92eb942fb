import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from tfgpt.training.classification_metrics import classification_metrics, confusion_matrix

LABELS = ["a", "b", "c", "d"]


def logits_of(found, num_classes, seed=0):
    """Logits (N, C) whose largest are those of the classes found."""
    logits = np.random.default_rng(seed).normal(size=(len(found), num_classes))
    logits[np.arange(len(found)), found] += 10
    return logits


@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_metrics_are_scikit_learns(pairs):
    """Also where a class does not occur, or nothing is taken for it."""
    expected, found = map(list, zip(*pairs))
    ours = classification_metrics(logits_of(found, 4), expected, LABELS)
    options = {"labels": range(4), "zero_division": 0}
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(expected, found, **options)
    for i, label in enumerate(LABELS):
        one = ours.classes[label]
        assert (one.precision, one.recall, one.f1) == pytest.approx((precision[i], recall[i], f1[i]))
        assert one.support == support[i]
    assert ours.accuracy == pytest.approx(sklearn_metrics.accuracy_score(expected, found))
    macro = sklearn_metrics.precision_recall_fscore_support(expected, found, average="macro", **options)
    assert (ours.macro_precision, ours.macro_recall, ours.macro_f1) == pytest.approx(macro[:3])
    assert ours.confusion_matrix == sklearn_metrics.confusion_matrix(expected, found, labels=range(4)).tolist()
    assert ours.texts == len(pairs)


def test_the_loss_is_scikit_learns():
    random = np.random.default_rng(0)
    logits, classes = random.normal(size=(30, 4)) * 5, random.integers(0, 4, 30)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = sklearn_metrics.log_loss(classes, probabilities, labels=range(4))
    assert classification_metrics(logits, classes, LABELS).loss == pytest.approx(expected)
    large = classification_metrics([[1e4, 0.0]], [1], ["a", "b"])
    assert large.loss == pytest.approx(1e4)


def test_rows_of_the_confusion_matrix_are_the_texts_classes():
    assert confusion_matrix([0, 0, 2], [1, 1, 2], 3).tolist() == [[0, 2, 0], [0, 0, 0], [0, 0, 1]]
