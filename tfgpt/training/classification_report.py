"""What a run of classification comes to: metrics of the validation texts, the confusion matrix as JSON and PNG."""

from __future__ import annotations

import dataclasses
import json

from tfgpt.atomic import atomic_file, write_text
from tfgpt.classification import logits_of_rows
from tfgpt.training.classification_metrics import ClassificationMetrics, classification_metrics
from tfgpt.training.loss_curve import plot_loss_curve

METRICS_FILE = "classification.json"
CONFUSION_PLOT = "confusion_matrix.png"
BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class ClassificationResult:
    """What a run came to.

    Args:
        directory: the model directory, with the best weights; the last ones are in `training/last`.
        parameters: of the model.
        steps: that were taken.
        best_step: when the best weights were written.
        texts: that were trained on.
        metrics: of the best weights on the validation texts.
        tokens_per_second: of training, the median.
        interrupted: whether Ctrl-C ended the run.
    """

    directory: str
    parameters: int
    steps: int
    best_step: int
    texts: int
    metrics: ClassificationMetrics
    tokens_per_second: float
    interrupted: bool

    def lines(self):
        """What to print of it."""
        return [
            *metric_lines(self.metrics),
            f"at step {self.best_step} of {self.steps}, trained on {self.texts} texts; "
            f"{self.tokens_per_second:,.0f} tokens/s",
            f"model: {self.directory}   confusion matrix: {self.directory}/training/{CONFUSION_PLOT}",
        ]


def metric_lines(metrics):
    """Metrics as lines of text."""
    width = max(map(len, metrics.classes))
    lines = [
        f"{label:<{width}}  precision {one.precision:.4f}  recall {one.recall:.4f}  F1 {one.f1:.4f}  "
        f"({one.support} texts)"
        for label, one in metrics.classes.items()
    ]
    return [
        *lines,
        f"accuracy {metrics.accuracy:.2%}, macro F1 {metrics.macro_f1:.4f}, loss {metrics.loss:.4f} nats, over "
        f"{metrics.texts} texts",
    ]


def evaluate_classifier(model, rows, classes):
    """The `ClassificationMetrics` of a classifier.

    Args:
        model: a `SequenceClassifier`.
        rows: the token ids of each text.
        classes: the class number of each.
    """
    return classification_metrics(logits_of_rows(model.logits, rows, BATCH_SIZE), classes, model.labels)


def report(directory, model, rows, classes, callbacks, texts, interrupted):
    """Evaluates the best weights on the validation texts, and writes what there is to say of a run.

    Args:
        directory: the model directory, a `pathlib.Path`.
        model: with the best weights.
        rows, classes: the validation texts, as in `evaluate_classifier`.
        callbacks: the run's `RunCallbacks`.
        texts: how many were trained on.
        interrupted: whether Ctrl-C ended the run.

    Returns:
        The `ClassificationResult`.
    """
    training, records = directory / "training", callbacks.records
    metrics = evaluate_classifier(model, rows, classes)
    write_text(training / METRICS_FILE, json.dumps(dataclasses.asdict(metrics), indent=2) + "\n")
    plot_confusion_matrix(training / CONFUSION_PLOT, metrics.confusion_matrix, list(metrics.classes))
    plot_loss_curve(training / "loss.png", records.losses("loss"), records.losses("validation_loss"), "text")
    speeds = sorted(row["tokens_per_second"] for row in records.rows if "tokens_per_second" in row)
    result = ClassificationResult(
        directory=str(directory),
        parameters=model.count_params(),
        steps=records.step,
        best_step=callbacks.checkpoints.best_step,
        texts=texts,
        metrics=metrics,
        tokens_per_second=speeds[len(speeds) // 2],
        interrupted=interrupted,
    )
    write_text(training / "summary.json", json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    return result


def plot_confusion_matrix(path, counts, labels):
    """Draws a confusion matrix as a PNG, where matplotlib is installed (the `plots` extra).

    Args:
        path: of the PNG.
        counts: rows are the texts' classes, columns those they were taken for.
        labels: of the classes.

    Returns:
        Whether it was drawn.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = 2.5 + 0.6 * len(labels)
    figure, axes = pyplot.subplots(figsize=(size + 0.5, size), layout="constrained")
    # Shaded by the share of a row, so that small classes are seen beside large ones.
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            color = "white" if shares[i][j] > 0.5 else "black"
            axes.text(j, i, f"{count}\n{shares[i][j]:.0%}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="taken for", ylabel="class", title="Confusion matrix")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)
    return True
