"""The figures of an ablation, each a function of its records alone."""

import itertools
import math
import pathlib

import numpy as np

from tfgpt.experiments.ablation.network import VARIANTS
from tfgpt.experiments.pictures import grid, save_png

TITLES = {"pre": "pre-norm", "post": "post-norm", "none": "no normalization", "no_residual": "no residual connections"}
ARRANGEMENTS = tuple(itertools.product((True, False), (False, True)))  # of warm-up and residual scaling
SMOOTHING = 10  # steps whose mean loss is drawn
PANEL = (3.4, 2.6)  # inches
AXIS_OF_LAYERS = "block, from input (1) to output"


def draw_figures(ablation, folder):
    """Draws every figure as a PNG into a folder."""
    for name, figure in FIGURES.items():
        save_png(figure(ablation), pathlib.Path(folder) / f"{name}.png")


def describe(warmup, residual_scaling):
    """What sets runs of a variant and depth apart, in words."""
    scaling = "scaled by 1/√(2L)" if residual_scaling else "unscaled"
    return f"{'warm-up' if warmup else 'no warm-up'}, {scaling}"


def loss_curves(ablation):
    """The training loss by step: a column for each variant, a row for each arrangement, a line for each depth."""
    variants, figure, panels = _panels(ablation, len(ARRANGEMENTS))
    for (warmup, scaling), row in zip(ARRANGEMENTS, panels):
        for variant, axes in zip(variants, row):
            runs = ablation.find(variant=variant, warmup=warmup, residual_scaling=scaling)
            for run in runs:
                axes.plot(*_smoothed(run.losses), color=_color(ablation, run.depth), label=f"depth {run.depth}")
            axes.axhline(ablation.settings["training_unigram_entropy"], color="black", linestyle=":", linewidth=1)
            axes.set(xlabel="step", ylim=_loss_limits(ablation))
            axes.set_visible(bool(runs))  # nothing to scale without a residual stream
        row[0].set_ylabel(f"{describe(warmup, scaling)}\ntraining loss (nats a token)")
    _legend(figure, panels, "dotted: unigram entropy of the training text")
    figure.suptitle(f"Training loss, mean of {SMOOTHING} steps; what does not train may stay above the upper edge")
    return figure


def gradient_norms(ablation):
    """Gradient norms by block, at the start and at the end."""
    rows = (
        ("all weights of a block,\nat step 0", 1, True, True),
        ("second feed-forward kernel,\nat step 0", 2, True, True),
        ("all weights of a block,\nlast step, with warm-up", 1, True, False),
        ("all weights of a block,\nlast step, no warm-up", 1, False, False),
    )
    return _norm_figure(ablation, rows, "Gradient norm by block, before the update", "gradient norm")


def activation_norms(ablation):
    """Norms of the residual stream behind each block, at the start and at the end."""
    rows = (
        ("at step 0", 3, True, True),
        ("last step, with warm-up", 3, True, False),
        ("last step, no warm-up", 3, False, False),
    )
    return _norm_figure(ablation, rows, "Norm of a token's vector behind each block (0: the embeddings)", "norm")


def depth_limits(ablation):
    """The final loss by depth: where a line crosses the unigram entropy, the variant has stopped training."""
    figure, panels = grid(1, len(ARRANGEMENTS), (PANEL[0] * 4, 4.2), sharey=True)
    depths = sorted(ablation.settings["depths"])
    high = ablation.unigram_entropy + 0.4  # where runs are drawn that have no finite loss, or a higher one
    for (warmup, scaling), axes in zip(ARRANGEMENTS, panels[0]):
        for number, variant in enumerate(ablation.settings["variants"]):
            runs = {r.depth: r for r in ablation.find(variant=variant, warmup=warmup, residual_scaling=scaling)}
            if not runs:
                continue
            losses = [runs[depth].final_loss for depth in depths]
            shown = [min(loss, high) if math.isfinite(loss) else high for loss in losses]
            [line] = axes.plot(depths, shown, color=f"C{number}", marker="o", markersize=4, label=TITLES[variant])
            failed = [(d, y) for d, y in zip(depths, shown) if not ablation.trains(runs[d])]
            if failed:
                axes.plot(*zip(*failed), "x", color=line.get_color(), markersize=10, markeredgewidth=2)
        axes.axhline(ablation.unigram_entropy, color="black", linestyle=":", linewidth=1)
        axes.set(xlabel="depth (blocks)", xticks=depths, title=describe(warmup, scaling))
        axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel("held-out loss at the end (nats a token)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle("Where training stops: × is not below the unigram entropy (dotted); at the top, far above it")
    return figure


FIGURES = {
    "loss_curves": loss_curves,
    "gradient_norms": gradient_norms,
    "activation_norms": activation_norms,
    "depth_limits": depth_limits,
}


def _norm_figure(ablation, rows, title, label):
    """A row for each (description, column of the norms, warm-up, whether at the start rather than at the end)."""
    variants, figure, panels = _panels(ablation, len(rows))
    for (description, column, warmup, at_start), row in zip(rows, panels):
        for variant, axes in zip(variants, row):
            for run in ablation.find(variant=variant, warmup=warmup):
                norms = run.norms_at(run.steps()[0 if at_start else -1])
                points = [(values[0], values[column]) for values in norms if _drawable(values[column])]
                label_of_depth = None if run.residual_scaling else f"depth {run.depth}"
                style = {"linestyle": "--" if run.residual_scaling else "-", "marker": ".", "markersize": 4}
                if points:
                    axes.plot(*zip(*points), color=_color(ablation, run.depth), label=label_of_depth, **style)
            axes.set(xlabel=AXIS_OF_LAYERS, yscale="log")
            axes.xaxis.get_major_locator().set_params(integer=True)
        row[0].set_ylabel(f"{description}\n{label}")
    _legend(figure, panels, "dashed: residual branches scaled by 1/√(2L)")
    figure.suptitle(title)
    return figure


def _panels(ablation, rows):
    variants = [variant for variant in VARIANTS if variant in ablation.settings["variants"]]
    size = (max(PANEL[0] * len(variants), 5.0), PANEL[1] * rows + 0.8)
    figure, panels = grid(rows, len(variants), size)
    for axes, variant in zip(panels[0], variants):
        axes.set_title(TITLES[variant])
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    return variants, figure, panels


def _legend(figure, panels, title):
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, title=title, loc="outside lower center", ncols=max(len(labels), 1))


def _color(ablation, depth):
    from matplotlib import colormaps

    depths = sorted(ablation.settings["depths"])
    return colormaps["viridis"](0.9 * depths.index(depth) / max(len(depths) - 1, 1))


def _smoothed(losses):
    """Steps and the mean loss of the `SMOOTHING` steps up to each; fewer at the beginning."""
    sums = np.cumsum([0.0, *losses])
    steps = np.arange(1, len(losses) + 1)
    first = np.maximum(steps - SMOOTHING, 0)
    return steps - 1, (sums[steps] - sums[first]) / (steps - first)


def _loss_limits(ablation):
    finite = [loss for run in ablation.runs for loss in (*run.losses, run.final_loss) if math.isfinite(loss)]
    return min(finite, default=0.0) - 0.1, ablation.unigram_entropy + 1.5


def _drawable(norm):
    return math.isfinite(norm) and norm > 0  # on a logarithmic axis
