"""What `parity.json`, `parity.md` and `parity.png` say."""

from __future__ import annotations

import dataclasses
import json
import math

from tfgpt.atomic import atomic_file, write_text
from tfgpt.export import classifier_parity_report
from tfgpt.export.classifier_parity import ClassifierReport
from tfgpt.export.tolerances import TOLERANCES

REPORT_FILES = ("parity.json", "parity.md", "parity.png")
COLUMNS = (
    ("runtime", "runtime", "{}"),
    ("max |Δlogit|", "max_logit_difference", "{:.1e}"),
    ("mean |Δlogit|", "mean_logit_difference", "{:.1e}"),
    ("mean KL", "mean_kl_divergence", "{:.1e}"),
    ("top-1", "top1_agreement", "{:.2%}"),
    ("perplexity", "perplexity", "{:.3f}"),
    ("above Keras'", "perplexity_increase", "{:+.3%}"),
)


def to_json(reports):
    """The reports as plain data; JSON has no infinity, so a difference that is not finite is null."""
    if of_classifiers(reports):
        runtimes = classifier_parity_report.runtimes(reports)
        return _finite({"passed": all(report.passed for report in reports), "runtimes": runtimes})
    runtimes = [
        dataclasses.asdict(report)
        | {"passed": report.passed, "tolerance": dataclasses.asdict(TOLERANCES[report.precision])}
        for report in reports
    ]
    return _finite({"passed": all(report.passed for report in reports), "runtimes": runtimes})


def of_classifiers(reports):
    """Whether the reports are `ClassifierReport`s."""
    return any(isinstance(report, ClassifierReport) for report in reports)


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(reports):
    """Headings and rows of text, for Markdown and the terminal."""
    if of_classifiers(reports):
        return classifier_parity_report.table(reports)
    headings = [heading for heading, _, _ in COLUMNS] + [reports[0].heading if reports else "outputs", "verdict"]
    rows = []
    for report in reports:
        cells = [form.format(getattr(report, field)) for _, field, form in COLUMNS]
        outputs = report.outputs() + (f" ({report.near_ties} near ties)" if report.near_ties else "")
        rows.append([*cells, outputs, _verdict(report) if report.passed else f"{len(report.breaches)} breaches"])
    return headings, rows


def _verdict(report):
    if TOLERANCES[report.precision].same_text:
        return "same model"
    kept = f", {len(report.kept_in_float32)} of {len(report.sensitivity)} weights float32"
    return "within budget" + (kept if report.kept_in_float32 else "")


def write_parity_report(directory, reports):
    """Writes parity.json, parity.md and, for language models and where matplotlib is installed, parity.png."""
    write_text(directory / "parity.json", json.dumps(to_json(reports), indent=2) + "\n")
    breaches = [breach for report in reports for breach in report.breaches]
    breach_lines = [f"- {breach}" for breach in breaches] + [""] * bool(breaches)
    if of_classifiers(reports):
        text = ["# Parity", "", classifier_parity_report.introduction(reports), "", *_markdown(*table(reports)), ""]
        text += [classifier_parity_report.tolerance(), "", *breach_lines]
        write_text(directory / "parity.md", "\n".join(text))
        return
    positions = max((report.positions for report in reports), default=0)
    compared = reports[0].compared if reports else "nothing"
    text = [
        "# Parity",
        "",
        f"Each runtime against the Keras model on {positions} positions of held-out text: {compared}. "
        f"Perplexity is of {max((report.perplexity_tokens for report in reports), default=0)} tokens.",
        "",
        *_markdown(*table(reports)),
        "",
        "Tolerances:",
        "",
    ]
    for precision in dict.fromkeys(report.precision for report in reports):
        tolerance = TOLERANCES[precision]
        text.append(f"- {precision}: {tolerance}; {tolerance.reason}.")
    text.append("")
    for report in reports:
        if report.sensitivity:
            text += _sensitivity(report)
    write_text(directory / "parity.md", "\n".join(text + breach_lines))
    _plot(directory / "parity.png", reports)


def _markdown(headings, rows):
    return [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]


def _sensitivity(report):
    """What each weight's quantization costs, for Markdown."""
    rows = [
        [
            cost.weight,
            f"{cost.kl_divergence:.1e}",
            f"{cost.bytes / 1e6:.2f} MB",
            "float32" if cost.weight in report.kept_in_float32 else report.precision,
        ]
        for cost in report.sensitivity
    ]
    return [
        f"## Sensitivity of {report.runtime}",
        "",
        "The mean KL divergence of the next token when this weight alone is quantized, and how it is stored.",
        "",
        *_markdown(["weight", "mean KL", "in float32", "stored as"], rows),
        "",
    ]


def _plot(path, reports):
    try:
        import matplotlib
    except ImportError:  # the `plots` extra
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (logits, perplexity) = pyplot.subplots(
        1, 2, sharey=True, figsize=(11, 1.6 + 0.5 * len(reports)), layout="constrained"
    )
    names = [report.runtime for report in reports]
    colors = ["tab:green" if report.passed else "tab:red" for report in reports]
    tolerances = [TOLERANCES[report.precision] for report in reports]

    values = [min(max(report.scaled_logit_difference, 1e-9), 1e3) for report in reports]
    bars = logits.barh(names, values, color=colors, left=1e-9, height=0.5)
    logits.bar_label(bars, [f" {report.scaled_logit_difference:.1e}" for report in reports])
    logits.set(xscale="log", xlim=(1e-9, 100 * max(*values, 1e-4)), title="Distance from the Keras model")
    logits.set_xlabel("largest |Δlogit| / max(1, max |logit|)")
    logits.invert_yaxis()

    increases = [report.perplexity_increase if math.isfinite(report.perplexity_increase) else 1.0 for report in reports]
    bars = perplexity.barh(names, [100 * min(max(value, -1), 1) for value in increases], color=colors, height=0.5)
    perplexity.bar_label(bars, [f" {value:+.3%}" for value in increases])
    perplexity.set(title="Perplexity of held-out text", xlabel="% above the Keras model's")
    perplexity.margins(x=0.3)
    for row, tolerance in enumerate(tolerances):
        for axes, limit in (
            (logits, tolerance.logit),
            (perplexity, tolerance.perplexity and 100 * tolerance.perplexity),
        ):
            if limit is not None:
                axes.vlines(limit, row - 0.4, row + 0.4, color="black", linestyle="--")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)
