"""What a benchmark leaves behind: the machine it ran on, a Markdown table, a picture, JSON."""

import json
import os
import pathlib
import platform
import re
import subprocess
import textwrap

from benchmarks.processes import ROOT

OURS, PEERS = "#c2410c", "#64748b"  # colours of bars


def machine():
    """What the figures depend on besides the software."""
    return {"processor": _processor(), "cores": os.cpu_count(), "memory_gb": round(_memory_gb("MemTotal"), 1)} | {
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def warn_if_busy():
    """Says so when other processes are at work: runtimes whose threads wait for each other then lose the most.

    Returns:
        The load average, processes that wanted a core in the last minute; None where the system does not say.
    """
    try:
        load = round(os.getloadavg()[0], 2)
    except OSError:
        return None
    if load > 0.5:
        print(f"warning: other processes are at work (load average {load}); figures will be too low", flush=True)
    return load


def available_memory_gb():
    """Memory that new processes can have, in 10^9 bytes; infinite where the system does not say."""
    return _memory_gb("MemAvailable") or float("inf")


def _memory_gb(key):
    try:
        text = pathlib.Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return int(re.search(rf"^{key}: +(\d+) kB", text, re.MULTILINE)[1]) * 1024 / 1e9


def _processor():
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return re.search(r"^model name\s*: (.*)", text, re.MULTILINE)[1]
    except (OSError, TypeError):  # TypeError: no such line, as on other processors than x86
        return platform.processor() or platform.machine()


def _commit():
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # no git here
        return None


def write_json(path, contents):
    """Writes JSON that people read too: lists of numbers stay on one line."""
    text = json.dumps(contents, indent=1)
    numbers = r"\[\s+(-?[\d.e+-]+(?:,\s+-?[\d.e+-]+)*)\s+\]"
    text = re.sub(numbers, lambda match: "[" + re.sub(r"\s+", " ", match[1]) + "]", text)
    path.write_text(text + "\n", encoding="utf-8")


def markdown_table(header, rows):
    """A table of strings, its columns aligned for those who read the text itself."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    # The first column is words, the others are figures.
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells):
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(cells, widths))
        )
        return "| " + " | ".join([first, *others]) + " |"

    return "\n".join(map(line, [header, rule, *rows])) + "\n"


def paragraphs(text):
    """Text of several paragraphs, each filled anew, with an empty line behind each."""
    return "".join(
        textwrap.fill(" ".join(part.split()), 120, break_on_hyphens=False) + "\n\n"
        for part in text.strip().split("\n\n")
    )


def on_what(rows, about):
    """The machine and the versions of what ran on it, in a line."""
    versions = sorted({f"{name} {version}" for row in rows for name, version in row["versions"].items()})
    return (
        f"{about['processor']}, {about['cores']} cores, {about['memory_gb']} GB; Python {about['python']}; "
        f"{', '.join(versions)}."
    )


def left_out(absent, failures):
    """A Markdown list of who is not in the table, and why."""
    reasons = absent | {name: f"failed: {reason}" for name, reason in failures.items()}
    return "".join(f"- {name}: {reason}\n" for name, reason in reasons.items())


def write_bars(path, title, names, ours, panels):
    """Draws bar charts side by side that share their rows.

    Args:
        path: of the PNG.
        title: above all.
        names: of the rows, from top to bottom.
        ours: for each row, whether it is tfgpt's.
        panels: from titles to a value for each row, None where there is none.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 + 3.2 * len(panels), 1.3 + 0.32 * len(names)), layout="constrained", dpi=120)
    figure.suptitle(title)
    colors = [OURS if is_ours else PEERS for is_ours in ours]
    for i, (axes, (label, values)) in enumerate(
        zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items())
    ):
        bars = axes.barh(range(len(names)), [value or 0 for value in values], color=colors)
        axes.bar_label(bars, ["" if value is None else _number(value) for value in values], padding=3, fontsize=8)
        axes.set_title(label, fontsize=10)
        axes.margins(x=0.18)
        axes.spines[["top", "right"]].set_visible(False)
        if i == 0:
            axes.set_yticks(range(len(names)), names)
            axes.invert_yaxis()
    figure.savefig(path)


def _number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
