"""What a run tells: while it goes on, to whoever watches it, and at its end, in `training/summary.json`."""

from __future__ import annotations

import dataclasses
import json

from tfgpt.atomic import write_text
from tfgpt.training.loss_curve import plot_loss_curve


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a run came to.

    Args:
        directory: the model directory, with the best weights; the last ones are in `training/last`.
        parameters: of the model.
        steps: that were taken.
        loss: over the whole validation split, of the best weights, in windows that share nothing.
        perplexity: exp(loss).
        bits_per_byte: over the whole validation split.
        best_step: when the best weights were written.
        tokens_per_second: of training, the median.
        samples: (step, text) pairs.
        interrupted: whether Ctrl-C ended the run.
        utilization: model FLOPs utilization at that speed; None where no peak was measured, as for the next.
        peak: FLOP/s of matrix products on this machine.
    """

    directory: str
    parameters: int
    steps: int
    loss: float
    perplexity: float
    bits_per_byte: float
    best_step: int
    tokens_per_second: float
    samples: list
    interrupted: bool
    utilization: float | None = None
    peak: float | None = None

    def lines(self):
        """What to print of it."""
        lines = [self.samples[-1][1], ""] if self.samples else []
        lines.append(
            f"validation loss {self.loss:.4f} nats a token (perplexity {self.perplexity:.3f}, {self.bits_per_byte:.4f} "
            f"bits a byte) over the whole split, at step {self.best_step} of {self.steps}; "
            f"{self.tokens_per_second:,.0f} tokens/s"
        )
        if self.utilization is not None:
            lines.append(
                f"model FLOPs utilization {self.utilization:.1%} of the {self.peak / 1e9:,.0f} GFLOP/s that matrix "
                "products reached before the run"
            )
        lines.append(f"model: {self.directory}   curve: {self.directory}/training/loss.png")
        return lines


class RunObserver:
    """What a run tells whoever watches it; the command line draws a progress bar."""

    def stage(self, text):
        """A stage begins."""

    def distribution(self, text):
        """How the batch is shared out over replicas, and its learning rate."""

    def begin(self, config, parameters):
        """Training begins."""

    def row(self, row):
        """A row of metrics: see `tfgpt.training.callbacks.COLUMNS`."""

    def note(self, text):
        """Something to be known: the run is a continued one, a checkpoint is damaged."""

    def sample(self, step, text):
        """A sample was taken."""

    def end(self):
        """Training has ended."""


def report(directory, model, evaluation, callbacks, utilization, interrupted):
    """Writes what there is to say of a run.

    Args:
        directory: the model directory, a `pathlib.Path`.
        model: with the best weights.
        evaluation: the `Evaluation` of its best weights on all that was held out.
        callbacks: the run's `RunCallbacks`.
        utilization: a `ModelFlopsUtilization`, or None.
        interrupted: whether Ctrl-C ended the run.

    Returns:
        The `TrainingResult`.
    """
    training, records = directory / "training", callbacks.records
    plot_loss_curve(training / "loss.png", records.losses("loss"), records.losses("validation_loss"))
    speeds = sorted(row["tokens_per_second"] for row in records.rows if "tokens_per_second" in row)
    speed = speeds[len(speeds) // 2]
    result = TrainingResult(
        directory=str(directory),
        parameters=model.count_params(),
        steps=records.step,
        loss=evaluation.loss,
        perplexity=evaluation.perplexity,
        bits_per_byte=evaluation.bits_per_byte,
        best_step=callbacks.checkpoints.best_step,
        tokens_per_second=speed,
        samples=callbacks.samples.samples,
        interrupted=interrupted,
        utilization=utilization and utilization({"tokens_per_second": speed})["utilization"],
        peak=utilization and utilization.peak,
    )
    write_text(training / "summary.json", json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    return result
