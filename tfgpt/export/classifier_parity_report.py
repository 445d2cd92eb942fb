"""What `parity.json` and `parity.md` say of a classifier."""

from __future__ import annotations

import dataclasses

from tfgpt.export.classifier_parity import PROBABILITY_TOLERANCE, TOLERANCE_REASON

COLUMNS = (
    ("runtime", "runtime", "{}"),
    ("texts", "texts", "{}"),
    ("max |Δp|", "max_probability_difference", "{:.1e}"),
    ("mean |Δp|", "mean_probability_difference", "{:.1e}"),
)


def runtimes(reports):
    """The reports as plain data."""
    limit = {"probability": PROBABILITY_TOLERANCE, "reason": TOLERANCE_REASON}
    return [dataclasses.asdict(report) | {"passed": report.passed, "tolerance": limit} for report in reports]


def table(reports):
    """Headings and rows of text."""
    headings = [heading for heading, _, _ in COLUMNS] + ["same label", "verdict"]
    rows = []
    for report in reports:
        cells = [form.format(getattr(report, field)) for _, field, form in COLUMNS]
        verdict = "same model" if report.passed else f"{len(report.breaches)} breaches"
        rows.append([*cells, f"{report.identical_labels}/{report.checks}", verdict])
    return headings, rows


def introduction(reports):
    """What stands above the table of parity.md."""
    return (
        f"Each runtime against the Keras model on {max((report.texts for report in reports), default=0)} held-out "
        "texts: as text in batches, and as tokens padded on the right and on the left. The model read each by itself."
    )


def tolerance():
    """What stands below it."""
    return f"Tolerance: |Δprobability| ≤ {PROBABILITY_TOLERANCE:.0e}; {TOLERANCE_REASON}."
