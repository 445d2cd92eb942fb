"""What a translation run comes to: its best weights, or the mean of its last ones, scored on the validation pairs."""

from __future__ import annotations

import dataclasses
import json
import math

from tfgpt.atomic import write_text
from tfgpt.training.checkpoint_averaging import average_last_checkpoints
from tfgpt.training.loss_curve import plot_loss_curve


@dataclasses.dataclass(frozen=True)
class TranslationResult:
    """What a run came to.

    Args:
        directory: the model directory, with the best weights; the last ones are in `training/last`.
        parameters: of the model.
        steps: that were taken.
        epochs: how often each pair was met.
        loss: over the validation pairs, of the model directory's weights, in nats a target token.
        perplexity: exp(loss).
        bleu, chrf: of their translations by beam search.
        bleu_signature, chrf_signature: sacrebleu's.
        best_step: when the best weights were written.
        averaged_steps: of the checkpoints of which the model directory's weights are the mean; empty where they are
            those of `best_step`, which scored better.
        tokens_per_second: target tokens, padding not counted, of training, the median.
        seconds: that training took, validations included.
        samples: (step, text) pairs: sources, translations and references.
        interrupted: whether Ctrl-C ended the run.
    """

    directory: str
    parameters: int
    steps: int
    epochs: float
    loss: float
    perplexity: float
    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str
    best_step: int
    averaged_steps: list
    tokens_per_second: float
    seconds: float
    samples: list
    interrupted: bool

    def lines(self):
        """What to print of it."""
        lines = [self.samples[-1][1], ""] if self.samples else []
        weights = f"at step {self.best_step} of {self.steps}"
        if self.averaged_steps:
            weights = f"of the mean of the {len(self.averaged_steps)} checkpoints up to step {self.averaged_steps[-1]}"
        lines += [
            f"validation loss {self.loss:.4f} nats a token (perplexity {self.perplexity:.3f}), {weights}; "
            f"{self.epochs:.1f} epochs in {self.seconds:.0f} s; {self.tokens_per_second:,.0f} target tokens/s",
            f"validation BLEU {self.bleu:.2f}   {self.bleu_signature}",
            f"validation chrF {self.chrf:.2f}   {self.chrf_signature}",
            f"model: {self.directory}   curve: {self.directory}/training/loss.png",
        ]
        return lines


def report(task, directory, model, callbacks, interrupted):
    """Scores the best weights, and the mean of the last ones if there is to be one, and writes what there is to say.

    The better of the two by BLEU is what the model directory then has.

    Args:
        task: the run's `Translation`.
        directory: the model directory, a `pathlib.Path`.
        model: with the best weights.
        callbacks: the run's `RunCallbacks`.
        interrupted: whether Ctrl-C ended the run.

    Returns:
        The `TranslationResult`.
    """
    training, records, config = directory / "training", callbacks.records, task.config
    everything = range(len(task.held_out))
    settings = {"num_beams": config.num_beams, "length_penalty": config.length_penalty}
    scores, averaged = task.translation_scores(model, everything, **settings), []
    if config.average_checkpoints > 1:
        steps = average_last_checkpoints(model, training / "checkpoints", config.average_checkpoints)
        of_average = task.translation_scores(model, everything, **settings)
        if of_average.bleu > scores.bleu:
            scores, averaged = of_average, steps
            task.write(model, directory)
        else:
            task.read_weights(model, directory)
    loss = float(model.evaluate(task.validation(), verbose=0, return_dict=True)["loss"])
    plot_loss_curve(training / "loss.png", records.losses("loss"), records.losses("validation_loss"))
    speeds = sorted(row["tokens_per_second"] for row in records.rows if "tokens_per_second" in row)
    result = TranslationResult(
        directory=str(directory),
        parameters=model.count_params(),
        steps=records.step,
        epochs=round(task.sampler.epochs(records.step), 2),
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        **dataclasses.asdict(scores),
        best_step=callbacks.checkpoints.best_step,
        averaged_steps=averaged,
        tokens_per_second=speeds[len(speeds) // 2],
        seconds=records.rows[-1]["seconds"],
        samples=callbacks.samples.samples,
        interrupted=interrupted,
    )
    write_text(training / "summary.json", json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    return result
