"""Is the artifact the classifier that was trained? The same texts in, the same probabilities out."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from tfgpt.classification import encode_texts, pad_right, probabilities_of
from tfgpt.export.parity import Breach, breach_on_failure

PROBABILITY_TOLERANCE = 1e-5
TOLERANCE_REASON = (
    "float32 rounds at 6e-8; sums in another order move a probability by some 1e-7 here, and a wrong weight, mask or "
    "position by 1e-3 and more"
)
TEXTS = 500  # of the held-out ones, spread over them
BATCH_SIZE = 16


@dataclasses.dataclass
class ClassifierReport:
    """What was measured of one runtime."""

    runtime: str
    precision: str = "float32"
    texts: int = 0
    max_probability_difference: float = 0.0
    mean_probability_difference: float = 0.0
    identical_labels: int = 0  # where the two likeliest classes are nearer than the tolerance, another one is no breach
    checks: int = 0  # texts, each in several batches
    breaches: list[Breach] = dataclasses.field(default_factory=list)

    @property
    def passed(self):
        return not self.breaches


class ClassifierExpectation:
    """What a model gives for some texts, computed once for all the artifacts that are compared with it.

    Each text is read by itself, where there is neither padding nor a batch mate.

    Args:
        model: a `SequenceClassifier` with a tokenizer, in float32.
        texts: that fit the window.
    """

    def __init__(self, model, texts):
        self.model, self.texts = model, texts
        self.rows = encode_texts(model.tokenizer, texts, model.backbone.max_sequence_length)
        logits = tf.function(
            lambda token_ids, padding_mask: model({"token_ids": token_ids, "padding_mask": padding_mask}),
            autograph=False,
            input_signature=[tf.TensorSpec([None, None], tf.int32)] * 2,
        )
        self.probabilities = np.concatenate([probabilities_of(logits(*pad_right([row]))) for row in self.rows])


def check_classifier(expected, runner, on_progress=None):
    """Compares a runner with the model: by text, and by tokens alone, among others, and padded on either side.

    Args:
        expected: a `ClassifierExpectation`.
        runner: a `tfgpt.runtime.classifier_runner.ClassifierRunner`.
        on_progress: called with a line of text at each stage.

    Returns:
        A `ClassifierReport`.
    """
    say = on_progress or (lambda line: None)
    model, texts = expected.model, expected.texts
    report = ClassifierReport(runner.name, texts=len(texts))
    differences = []
    if tuple(runner.labels) != model.labels:
        message = f"the labels are {', '.join(runner.labels)}, expected {', '.join(model.labels)}"
        report.breaches.append(Breach(runner.name, "labels", 0, 0, message))
        return report
    for check, found in _found(runner, expected, report, say):
        differences.append(_compare(report, check, expected.probabilities, found))
    if hasattr(runner, "scores_of_examples"):
        with breach_on_failure(report, "classify"):
            classes, scores = runner.scores_of_examples(texts[:BATCH_SIZE])
            wanted = [label.encode() for label in model.labels]
            if any(list(row) != wanted for row in classes):
                message = f"the classes are {classes[0].tolist()}, expected {wanted}"
                report.breaches.append(Breach(runner.name, "classify", 0, 0, message))
            differences.append(_compare(report, "classify", expected.probabilities[:BATCH_SIZE], scores))
    if differences:
        report.mean_probability_difference = float(np.concatenate(differences).mean())
    return report


def _found(runner, expected, report, say):
    """What the runner gives, by each check: pairs (name, probabilities)."""
    texts, rows = expected.texts, expected.rows
    say(f"{runner.name}: {len(texts)} texts")
    with breach_on_failure(report, "text"):
        yield "text", runner.probabilities(expected.model.tokenizer, texts)
    for check, left, more in (("padded on the right", False, 0), ("padded on the left", True, 3)):
        say(f"{runner.name}: tokens {check}")
        with breach_on_failure(report, check):
            found = []
            for start in range(0, len(rows), BATCH_SIZE):
                batch = rows[start : start + BATCH_SIZE]
                width = min(max(map(len, batch)) + more, runner.window)
                token_ids, mask = pad_right(batch, width)
                if left:
                    token_ids, mask = (_moved_right(array, list(map(len, batch))) for array in (token_ids, mask))
                found.append(probabilities_of(runner.logits(token_ids, mask)))
            yield check, np.concatenate(found)


def _moved_right(array, lengths):
    return np.stack([np.roll(row, len(row) - length) for row, length in zip(array, lengths, strict=True)])


def _compare(report, check, expected, found):
    """Adds a check's probabilities (N, C) to the report; the worst text is a breach where it leaves the tolerance."""
    if found.shape != expected.shape:
        message = f"probabilities have shape {found.shape}, expected {expected.shape}"
        report.breaches.append(Breach(report.runtime, check, 0, 0, message))
        return np.zeros(0)
    difference = np.abs(found - expected)
    largest = np.where(np.isfinite(difference), difference, np.inf).max(axis=1)
    text = int(largest.argmax())
    report.max_probability_difference = max(report.max_probability_difference, float(largest[text]))
    report.checks += len(found)
    report.identical_labels += int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())
    if not largest[text] <= PROBABILITY_TOLERANCE:
        message = (
            f"the largest difference of a probability is {largest[text]:.2e}, expected at most "
            f"{PROBABILITY_TOLERANCE:.0e}"
        )
        place = int(np.nan_to_num(difference[text], nan=np.inf).argmax())
        excess = float(largest[text] / PROBABILITY_TOLERANCE)
        report.breaches.append(Breach(report.runtime, check, text, place, message, excess))
    return largest
