"""Quantized variants within their perplexity budgets: the weights that cost most stay float32."""

from __future__ import annotations

import math

from tfgpt.export.parity import Breach, check_runner
from tfgpt.export.quantization import write_variant
from tfgpt.export.sensitivity import measure_sensitivity
from tfgpt.runtime import open_runner
from tfgpt.runtime.release_files import read_release_config


def within_budget(release, report, expected, on_progress):
    """Measures the sensitivity of a quantized variant, and keeps its worst weights in float32 while it breaks a budget.

    Args:
        release: the release that is being made.
        report: the `RunnerReport` of the variant.
        expected: the `Expectation` that it was compared with.
        on_progress: called with a line of text at each stage.

    Returns:
        A report of what the variant is now, with its sensitivity and what was kept: as few weights as it takes, those
        whose quantization alone costs most.
    """
    variant, folder = report.precision, release / "onnx"
    costs = measure_sensitivity(folder, variant, expected.tokens, read_release_config(release), on_progress)
    weights = [cost.weight for cost in costs]

    def keep(count):
        on_progress(f"onnx/{variant}: {count} of {len(weights)} weights stay float32")
        write_variant(folder, variant, keep=set(weights[:count]))
        return check_runner(expected, open_runner(release, "onnx", variant, verify=False), on_progress)

    kept = 0
    if is_over_budget(report):
        too_few, enough, passed = 0, None, None
        while enough is None or enough - too_few > 1:  # twice as many until it passes, then halving the gap
            count = min(max(1, 2 * too_few), len(weights)) if enough is None else (too_few + enough) // 2
            trial = keep(count)
            if trial.passed:
                enough, passed = count, trial
            elif count == len(weights):
                return trial
            else:
                too_few = count
        report = passed if count == enough else keep(enough)
        kept = enough
        if kept == len(weights):
            message = "no weight can be quantized within the budget, expected one at least"
            report.breaches.append(Breach(report.runtime, "perplexity", 0, 0, message))
    report.sensitivity, report.kept_in_float32 = costs, weights[:kept]
    return report


def is_over_budget(report):
    """Whether a report's breaches are all of a budget: what keeping weights in float32 can mend."""
    return bool(report.breaches) and all(math.isfinite(breach.excess) for breach in report.breaches)
