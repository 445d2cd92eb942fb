"""Pictures of runs."""

import csv
import pathlib

from tfgpt.atomic import atomic_file
from tfgpt.errors import UserError


def plot_loss_curve(path, train, validation, unit="token"):
    """Draws the loss curve as a PNG, where matplotlib is installed (the `plots` extra).

    Args:
        path: of the PNG.
        train: (step, loss) pairs.
        validation: (step, loss) pairs.
        unit: what the losses are means over.

    Returns:
        Whether it was drawn.
    """
    try:
        _draw(path, {"train": (train, [], "tab:blue"), "validation": ([], validation, "tab:orange")}, unit)
    except ImportError:
        return False
    return True


def plot_runs(runs, path):
    """Draws the training and validation losses of several runs by step in one PNG.

    Args:
        runs: model directories with a training/metrics.csv.
        path: of the PNG.

    Raises:
        UserError: if a run has no metrics, the PNG cannot be written, or matplotlib is not installed.
    """
    names = _names(runs)
    curves = {}
    for i, (name, run) in enumerate(zip(names, runs)):
        curves[name] = (*read_losses(run), f"C{i % 10}")
    try:
        _draw(path, curves)
    except ImportError as error:
        raise UserError("matplotlib is not installed, expected pip install 'tfgpt[plots]'") from error


def read_losses(run):
    """The (step, loss) pairs of training and of validation in a run's metrics.csv.

    Args:
        run: a model directory.

    Raises:
        UserError: if it has no metrics.csv with rows of losses.
    """
    path = pathlib.Path(run) / "training" / "metrics.csv"
    if not path.is_file():
        raise UserError(f"{path} is missing, expected a model directory that `tfgpt train` wrote")
    pairs = {"loss": [], "validation_loss": []}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for column, found in pairs.items():
                    if row[column]:
                        found.append((int(row["step"]), float(row[column])))
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is no record of a run, expected the columns step, loss and validation_loss") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    if not any(pairs.values()):
        raise UserError(f"{path} has no rows, expected those of a run that has begun to train")
    return pairs["loss"], pairs["validation_loss"]


def _names(runs):
    """The directories' own names, or whole paths where these are the same."""
    names = [pathlib.Path(run).absolute().name for run in runs]
    if len(set(names)) == len(names):
        return names
    if len(set(map(str, runs))) < len(runs):
        raise UserError(f"a run is named twice in {', '.join(map(str, runs))}, expected each once")
    return [str(run) for run in runs]


def _draw(path, curves, unit="token"):
    """Draws {name: (training pairs, validation pairs, colour)} as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, (train, validation, color) in curves.items():
        both = train and validation
        if train:
            label = f"{name}, training" if both else name
            axes.plot(*zip(*train), color=color, alpha=0.6, linewidth=1, label=label)
        if validation:
            label = f"{name}, validation" if both else name
            axes.plot(*zip(*validation), color=color, marker="o", markersize=4, label=label)
    axes.set(xlabel="step", ylabel=f"cross-entropy (nats a {unit})", title="Loss")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)
