"""What `parity.json`, `parity.md` and `parity.png` say."""

from __future__ import annotations

import dataclasses
import json
import math

from tfgpt.atomic import atomic_file, write_text

REPORT_FILES = ("parity.json", "parity.md", "parity.png")
COLUMNS = (
    ("runtime", "runtime", "{}"),
    ("max |Δlogit|", "max_logit_difference", "{:.1e}"),
    ("mean |Δlogit|", "mean_logit_difference", "{:.1e}"),
    ("mean KL", "mean_kl_divergence", "{:.1e}"),
    ("top-1", "top1_agreement", "{:.2%}"),
    ("Δ perplexity", "perplexity_difference", "{:+.1e}"),
)


def to_json(reports, tolerance):
    """The reports as plain data; JSON has no infinity, so a difference that is not finite is null."""
    figures = {
        "tolerance": dataclasses.asdict(tolerance),
        "passed": all(report.passed for report in reports),
        "runtimes": [dataclasses.asdict(report) | {"passed": report.passed} for report in reports],
    }
    return _finite(figures)


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(reports):
    """Headings and rows of text, for Markdown and the terminal."""
    headings = [heading for heading, _, _ in COLUMNS] + ["greedy", "verdict"]
    rows = []
    for report in reports:
        cells = [form.format(getattr(report, field)) for _, field, form in COLUMNS]
        greedy = f"{report.greedy_prompts} × {report.identical_greedy_tokens}/{report.greedy_tokens} tokens"
        if report.near_ties:
            greedy += f" ({report.near_ties} near ties)"
        rows.append([*cells, greedy, "same model" if report.passed else f"{len(report.breaches)} breaches"])
    return headings, rows


def write_parity_report(directory, reports, tolerance):
    """Writes parity.json, parity.md and, where matplotlib is installed, parity.png."""
    write_text(directory / "parity.json", json.dumps(to_json(reports, tolerance), indent=2) + "\n")
    headings, rows = table(reports)
    lines = [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]
    positions = max((report.positions for report in reports), default=0)
    text = [
        "# Parity",
        "",
        f"Each runtime against the Keras model on {positions} positions of held-out text: ragged batches up to the "
        "full window in one pass, prefill then token by token, and greedy continuations.",
        "",
        *lines,
        "",
        f"Tolerance: |Δlogit| ≤ {tolerance.logit:.0e} × max(1, max |logit|); {tolerance.reason}.",
        "",
    ]
    breaches = [breach for report in reports for breach in report.breaches]
    text += [f"- {breach}" for breach in breaches] + [""] * bool(breaches)
    write_text(directory / "parity.md", "\n".join(text))
    _plot(directory / "parity.png", reports, tolerance)


def _plot(path, reports, tolerance):
    try:
        import matplotlib
    except ImportError:  # the `plots` extra
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 1.6 + 0.6 * len(reports)), layout="constrained")
    names = [report.runtime for report in reports]
    values = [min(max(report.scaled_logit_difference, 1e-9), 1e3) for report in reports]
    colors = ["tab:green" if report.passed else "tab:red" for report in reports]
    bars = axes.barh(names, values, color=colors, left=1e-9, height=0.5)
    axes.bar_label(bars, [f" {report.scaled_logit_difference:.1e}" for report in reports])
    axes.axvline(tolerance.logit, color="black", linestyle="--", label=f"tolerance {tolerance.logit:.0e}")
    axes.set(xscale="log", xlim=(1e-9, 10 * max(tolerance.logit, *values)), title="Distance from the Keras model")
    axes.set_xlabel("largest |Δlogit| / max(1, max |logit|)")
    axes.invert_yaxis()
    axes.legend(loc="lower right")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)
