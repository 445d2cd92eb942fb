"""What an ablation measured, in memory and in files: everything that its figures and its report are made of."""

import csv
import dataclasses
import json
import math
import pathlib

from tfgpt.atomic import write_text
from tfgpt.errors import UserError
from tfgpt.json_file import read_json

RESULTS, LOSSES, NORMS = "ablation.json", "losses.csv", "norms.csv"
KEY = ("variant", "depth", "warmup", "residual_scaling")


@dataclasses.dataclass
class Run:
    """One network's training.

    Attributes:
        variant: a name in `VARIANTS`.
        depth: L.
        warmup, residual_scaling: whether the run has them.
        parameters: how many.
        final_loss: on the held-out windows, in nats a token; NaN after a loss that was not finite.
        losses: the training loss of each step; a run ends with the first that is not finite.
        norms: a row (step, layer, gradient norm, gradient norm of the feed-forward network's second kernel, activation
            norm) for each step that is recorded and each layer, in order. Gradients are those of the step's batch,
            before its update. Layer 0 is the embeddings, which have no gradients here; layers 1 to L are the blocks. An
            activation norm is the root mean square, over tokens, of the Euclidean norm of a token's vector.
    """

    variant: str
    depth: int
    warmup: bool
    residual_scaling: bool
    parameters: int = 0
    final_loss: float = math.nan
    losses: list = dataclasses.field(default_factory=list)
    norms: list = dataclasses.field(default_factory=list)

    @property
    def key(self):
        return tuple(getattr(self, name) for name in KEY)

    def steps(self):
        """The steps whose norms are recorded, in order."""
        return sorted({row[0] for row in self.norms})

    def norms_at(self, step):
        """The rows (layer, gradient norm, second kernel's gradient norm, activation norm) of a step."""
        return [row[1:] for row in self.norms if row[0] == step]


@dataclasses.dataclass
class Ablation:
    """All runs, and what they have in common.

    Attributes:
        settings: the arguments of `run_ablation` and what follows from them.
        unigram_entropy: of the held-out tokens, in nats: the least loss of a model that sees no context.
        runs: a list of `Run`.
    """

    settings: dict
    unigram_entropy: float
    runs: list

    def trains(self, run):
        """The criterion: the run's final loss is below the entropy of the held-out tokens' own frequencies, that is, it
        has learned something from the context. No model that ignores the context can be there (Gibbs' inequality)."""
        return run.final_loss < self.unigram_entropy  # false for NaN

    def find(self, **wanted):
        """The runs of which all of these attributes are so, in order."""
        return [run for run in self.runs if all(getattr(run, name) == value for name, value in wanted.items())]


def write_ablation(ablation, folder):
    """Writes ablation.json, losses.csv and norms.csv; numbers are read back exactly."""
    folder = pathlib.Path(folder)
    summaries = []
    for run in ablation.runs:
        finite = math.isfinite(run.final_loss)
        summaries.append(
            {
                **dict(zip(KEY, run.key)),
                "parameters": run.parameters,
                "steps": len(run.losses),
                "final_loss": run.final_loss if finite else None,
                "trains": ablation.trains(run),
            }
        )
    results = {"settings": ablation.settings, "unigram_entropy": ablation.unigram_entropy, "runs": summaries}
    write_text(folder / RESULTS, json.dumps(results, indent=2) + "\n")
    losses = ([*run.key, step, loss] for run in ablation.runs for step, loss in enumerate(run.losses))
    _write_csv(folder / LOSSES, [*KEY, "step", "loss"], losses)
    columns = ["step", "layer", "gradient_norm", "feed_forward_gradient_norm", "activation_norm"]
    _write_csv(folder / NORMS, [*KEY, *columns], ([*run.key, *row] for run in ablation.runs for row in run.norms))


def read_ablation(folder):
    """Reads what `write_ablation` wrote.

    Raises:
        UserError: if a file is missing or holds something else.
    """
    folder = pathlib.Path(folder)
    results = read_json(folder / RESULTS)
    try:
        runs = {}
        for summary in results["runs"]:
            loss = summary["final_loss"]
            key = [summary[name] for name in KEY]
            run = Run(*key, parameters=summary["parameters"], final_loss=math.nan if loss is None else loss)
            runs[run.key] = run
        ablation = Ablation(results["settings"], results["unigram_entropy"], list(runs.values()))
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / RESULTS} is no record of an ablation, expected that of `tfgpt ablate`") from error
    _read_rows(folder / LOSSES, runs, lambda run, row: run.losses.append(float(row[1])))
    _read_rows(
        folder / NORMS,
        runs,
        lambda run, row: run.norms.append((int(row[0]), int(row[1]), *(float(row[i]) for i in (2, 3, 4)))),
    )
    return ablation


def _write_csv(path, header, rows):
    lines = (",".join(map(str, row)) for row in [header, *rows])  # str of a float is read back as the same float
    write_text(path, "\n".join(lines) + "\n")


def _read_rows(path, runs, add):
    """Has `add(run, row)` take each row of a CSV file, without the columns that say whose it is."""
    expected = f"expected a row of a run in {RESULTS}"
    number = 1
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                if number > 1:
                    key = (row[0], int(row[1]), row[2] == "True", row[3] == "True")
                    add(runs[key], row[len(KEY) :])
    except (ValueError, IndexError, KeyError, csv.Error) as error:
        raise UserError(f"{path}, line {number}, is no part of an ablation, {expected}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
