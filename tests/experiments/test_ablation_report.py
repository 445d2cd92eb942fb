"""Figures, tables and verdicts, made of records that are made up so that the outcome is known."""

import math

import numpy as np
import pytest

from tfgpt.experiments.ablation import Ablation, Run, read_ablation, write_ablation
from tfgpt.experiments.ablation.claims import findings
from tfgpt.experiments.ablation.figures import FIGURES, depth_limits, gradient_norms, loss_curves
from tfgpt.experiments.ablation.report import report_text, table_of_losses

ENTROPY = 3.0
SETTINGS = {
    "data": ["stdlib"],
    "depths": [2, 8],
    "variants": ["pre", "post", "none", "no_residual"],
    "steps": 3,
    "warmup_steps": 1,
    "learning_rate": 0.003,
    "hidden_dim": 64,
    "num_heads": 4,
    "window": 64,
    "batch_size": 8,
    "tokenizer": "character",
    "seed": 0,
    "training_unigram_entropy": 3.2,
    "held_out_tokens": 4096,
    "vocabulary": 96,
    "seconds": 12.0,
}


def last_gradient(variant, depth):
    return depth**-0.5 if variant == "pre" else 2.0


def run_of(variant, depth, warmup, scaling, final_loss):
    """Losses from 5 to the final one; gradients that shrink from the output to the input but with pre-norm."""
    run = Run(variant, depth, warmup, scaling, 1000, final_loss, [5.0, 4.0, final_loss])
    for step in (0, 2):
        run.norms.append((step, 0, math.nan, math.nan, 8.0))
        for layer in range(1, depth + 1):
            last = last_gradient(variant, depth)
            gradient = last if variant == "pre" else last * 0.5 ** (depth - layer)
            norm = 8.0 * math.sqrt(1 + layer / (2 * depth if scaling else 1))
            run.norms.append((step, layer, 2 * gradient + step, gradient, norm))
    return run


@pytest.fixture
def ablation():
    """As the papers have it: post-norm fails without warm-up, without normalization or connections deep networks do."""
    runs = []
    for depth in SETTINGS["depths"]:
        for variant in SETTINGS["variants"]:
            for scaling in (False, True) if variant != "no_residual" else (False,):
                for warmup in (True, False):
                    final = 2.0
                    if (variant, warmup) == ("post", False) or (variant, depth) == ("no_residual", 8):
                        final = 3.05
                    if (variant, depth, scaling) == ("none", 8, False):
                        final = math.nan
                    runs.append(run_of(variant, depth, warmup, scaling, final))
    return Ablation(SETTINGS, ENTROPY, runs)


def change(ablation, losses=(), **wanted):
    for run in ablation.find(**wanted):
        run.final_loss, run.losses = losses[-1], list(losses)


def verdicts(ablation):
    return [finding.verdict for finding in findings(ablation)]


def test_what_the_papers_have_is_found(ablation):
    assert verdicts(ablation) == ["yes"] * 6
    pre, post, output, by_depth, degradation, scaling = (finding.measured for finding in findings(ablation))
    assert pre == "Held-out losses without and with warm-up: 2.00 and 2.00 at depth 2; 2.00 and 2.00 at depth 8."
    assert post == "Held-out losses without and with warm-up: 3.05 and 2.00 at depth 2; 3.05 and 2.00 at depth 8."
    assert "is 2 in the last and 0.0156 in the first with post-norm (128 times)" in output
    assert "pre-norm it goes as L^-0.50" in by_depth and "post-norm it goes as L^0.00" in by_depth
    assert "Without residual connections the training loss at the end is 2.00, 3.05 at depths 2, 8." in degradation
    assert (
        "Without scaling the pre-norm stream's norm grows 1.73 times at depth 2 and 3.00 times at depth 8." in scaling
    )
    assert "With scaling the pre-norm stream's norm grows 1.22 times at depth 2 and 1.22 times at depth 8." in scaling


def test_what_the_papers_do_not_have_is_found(ablation):
    change(ablation, [5.0, 2.3], variant="pre", warmup=False, depth=8, residual_scaling=False)
    change(ablation, [5.0, math.nan], variant="post", warmup=True, depth=2)
    change(ablation, [5.0, 2.05], variant="no_residual", depth=8)
    for run in ablation.find(variant="post"):
        run.norms = [(*row[:2], row[2], 0.1 * row[1] * run.depth, *row[4:]) for row in run.norms]
    for run in ablation.find(variant="pre", depth=8, residual_scaling=False):
        run.norms = [(*row[:3], row[3] / 2 ** row[1], *row[4:]) for row in run.norms]
    for run in ablation.find(variant="pre", residual_scaling=True):
        run.norms = [(*row[:4], 8.0 + row[1]) for row in run.norms]
    assert verdicts(ablation) == ["in part", "in part", "in part", "no", "in part", "in part"]
    change(ablation, [5.0, 3.2], variant="pre", warmup=False)
    change(ablation, [5.0, 2.0], variant="post")
    change(ablation, [5.0, 4.0], variant="pre", warmup=True, depth=8)
    assert [verdicts(ablation)[i] for i in (0, 1, 4)] == ["no", "no", "no"]


def test_what_was_not_run_is_not_claimed(ablation):
    ablation.runs = ablation.find(variant="none", depth=2)
    ablation.settings = {**SETTINGS, "variants": ["none"], "depths": [2]}
    assert verdicts(ablation) == ["not measured"] * 6
    assert "pre-norm" not in report_text(ablation).split("## Beside the papers")[0].replace("where pre-norm has", "")


def test_the_table_marks_what_does_not_train(ablation):
    headings, rows = table_of_losses(ablation)
    assert headings == ["network", "training", "depth 2", "depth 8"]
    cells = {(row[0], row[1]): row[2:] for row in rows}
    assert len(cells) == 14
    assert cells["no normalization", "warm-up, unscaled"] == ["2.000", "× not finite at step 2"]
    assert cells["no normalization", "warm-up, scaled by 1/√(2L)"] == ["2.000", "2.000"]
    assert cells["post-norm", "no warm-up, unscaled"] == ["× 3.050", "× 3.050"]
    text = report_text(ablation)
    assert "- post-norm, no warm-up, unscaled: trains at no depth, from 2 on." in text
    assert "- no residual connections, warm-up, unscaled: stops training at depth 8." in text
    assert "- pre-norm, no warm-up, unscaled: trains at every depth, up to 8." in text
    change(ablation, [5.0, 3.5], variant="pre", warmup=True, depth=2, residual_scaling=False)
    assert "- pre-norm, warm-up, unscaled: stops training at depth 2, and trains at 8." in report_text(ablation)


def lines(axes, style="-"):
    return {line.get_label(): line.get_xydata() for line in axes.lines if line.get_linestyle() == style}


def test_figures_show_the_records(ablation):
    axes = gradient_norms(ablation).axes
    assert len(axes) == 16 and axes[0].get_yscale() == "log"
    expected = [(layer, 2 * 0.5 ** (8 - layer)) for layer in range(1, 9)]
    np.testing.assert_allclose(lines(axes[5])["depth 8"], expected)  # the second row: the second kernel, post-norm
    np.testing.assert_allclose(lines(axes[0])["depth 2"], [(1, 2**0.5), (2, 2**0.5)])
    np.testing.assert_allclose(lines(axes[8])["depth 2"], [(1, 2**0.5 + 2), (2, 2**0.5 + 2)])
    axes = loss_curves(ablation).axes
    np.testing.assert_allclose(lines(axes[0])["depth 2"], [(0, 5.0), (1, 4.5), (2, 11 / 3)])
    limits = depth_limits(ablation).axes[2]  # no warm-up, unscaled
    np.testing.assert_allclose(lines(limits)["post-norm"], [(2, 3.05), (8, 3.05)])
    crosses = [line.get_xydata().tolist() for line in limits.lines if line.get_marker() == "x"]
    assert crosses == [[[2, 3.05], [8, 3.05]], [[8, pytest.approx(3.4)]], [[8, 3.05]]]


def test_the_same_figures_from_files(ablation, tmp_path):
    write_ablation(ablation, tmp_path)
    again = read_ablation(tmp_path)
    assert report_text(again) == report_text(ablation)
    for draw in FIGURES.values():
        for before, after in zip(draw(ablation).axes, draw(again).axes, strict=True):
            assert len(before.lines) == len(after.lines)
            for a, b in zip(before.lines, after.lines):
                np.testing.assert_array_equal(a.get_xydata(), b.get_xydata())
