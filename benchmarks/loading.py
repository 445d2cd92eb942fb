"""Loading GPT-2 from safetensors, whole processes: python -m benchmarks.loading --peer-pythons PYTHON...

tfgpt, keras-hub and transformers open the same model directory, GPT-2 with random weights, in a process of their own.
Rounds alternate; the best time and the largest peak count. Writes a Markdown table, a PNG and JSON to build/bench. All
have to give the same logits for a few tokens, or the exit code is 1. Linux only.
"""

import argparse
import dataclasses
import json
import pathlib
import sys

from benchmarks import models, report
from benchmarks.processes import ROOT, ProcessFailed, find_pythons, run

TOLERANCE = 1e-3  # of the largest logit; float32 in another order, where a wrong weight is off by all of it


@dataclasses.dataclass(frozen=True)
class Loader:
    """One row of the table.

    Args:
        name: who.
        function: of `benchmarks.loaders`.
        needs: the distributions that it imports.
        ours: whether it is tfgpt.
    """

    name: str
    function: str
    needs: tuple[str, ...]
    ours: bool = False


LOADERS = (
    Loader("tfgpt from_preset", "tfgpt", ("tfgpt", "tensorflow", "keras"), ours=True),
    Loader("tfgpt.load", "tfgpt_load", ("tfgpt", "tensorflow", "keras"), ours=True),
    Loader("keras-hub from_preset", "keras_hub", ("keras-hub", "keras", "tensorflow")),
    Loader("transformers from_pretrained", "transformers", ("transformers", "torch")),
)


def main():
    """Parses the command line, runs the rounds and reports."""
    arguments = parse_arguments()
    load = report.warn_if_busy()
    folder = arguments.out / arguments.size
    pythons = find_pythons({x.name: x.needs for x in LOADERS}, [sys.executable, *arguments.peer_pythons])
    model = models.ensure_model(arguments.size, folder, arguments.threads)
    weights_mb = (model / "model.safetensors").stat().st_size / 1e6
    absent = {x.name: f"not installed: {', '.join(x.needs)}" for x in LOADERS if x.name not in pythons}
    failures, rounds = {}, {}
    for number in range(1, arguments.rounds + 1):
        for loader in LOADERS:
            if loader.name in absent or loader.name in failures:
                continue
            try:
                result = measure(loader, pythons[loader.name][0], model, folder, arguments.threads)
            except ProcessFailed as error:
                failures[loader.name] = str(error)
                print(f"{loader.name:30s} failed: {error}", flush=True)
                continue
            rounds.setdefault(loader.name, []).append(result)
            line = "{load_seconds:.2f} s after {import_seconds:.2f} s of imports, peak {load_peak_mb:.0f} MB above them"
            print(f"round {number}  {loader.name:30s} {line.format(**result)}", flush=True)
    check_logits(rounds, failures)
    rows = [describe(x, rounds[x.name], pythons[x.name][1], weights_mb) for x in LOADERS if x.name in rounds]
    if rows:
        settings = {name: getattr(arguments, name) for name in ("size", "threads", "rounds")}
        settings |= {"load_before": load, "weights_mb": weights_mb}
        write_results(arguments.out, rows, absent, failures, settings)
    return 1 if failures or not rows else 0


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.loading", description=__doc__)
    parser.add_argument("--peer-pythons", nargs="*", default=[], metavar="PYTHON", help="Pythons that have peers")
    parser.add_argument("--rounds", type=int, default=3, help="how often every loader runs")
    parser.add_argument("--size", choices=[size for size in models.SIZES if size != "tiny"], default="gpt2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build" / "bench")
    arguments = parser.parse_args()
    arguments.out = arguments.out.absolute()
    return arguments


def measure(loader, python, model, folder, threads):
    """What one process took."""
    result = folder / "logs" / f"loading-{loader.function}.json"
    command = [python, "-m", "benchmarks.loaders", loader.function, model, result]
    finished = run(command, result.with_suffix(".log"), threads)
    figures = json.loads(result.read_text(encoding="utf-8"))
    return figures | {"seconds": finished.seconds, "peak_mb": finished.peak_mb}


def check_logits(rounds, failures):
    """Puts those whose logits are not the first one's among the failures; the logits go."""
    logits = {name: results[-1]["logits"] for name, results in rounds.items()}
    for name, values in logits.items():
        expected = next(iter(logits.values()))
        worst = max(abs(a - b) for a, b in zip(values, expected)) / max(map(abs, expected))
        if len(values) != len(expected) or not worst < TOLERANCE:  # or NaN
            failures[name] = f"its logits differ by {worst:.1e} of the largest, expected less than {TOLERANCE}"
    for result in (result for results in rounds.values() for result in results):
        del result["logits"]


def describe(loader, rounds, versions, weights_mb):
    """A row's figures: the best times, the largest peaks, and every value measured."""
    best = {key: min(result[key] for result in rounds) for key in rounds[0] if key.endswith("seconds")}
    most = {key: max(result[key] for result in rounds) for key in rounds[0] if key.endswith("mb")}
    row = {"name": loader.name, "ours": loader.ours, "versions": versions, **best, **most}
    return row | {"peak_to_weights": most["load_peak_mb"] / weights_mb, "rounds": rounds}


COLUMNS = {
    "loading, s": ("load_seconds", "{:.2f}"),
    "then first logits, s": ("first_logits_seconds", "{:.2f}"),
    "imports, s": ("import_seconds", "{:.2f}"),
    "whole process, s": ("seconds", "{:.2f}"),
    "imports, MB": ("imports_mb", "{:.0f}"),
    "peak of loading above, MB": ("load_peak_mb", "{:.0f}"),
    "… to the weights": ("peak_to_weights", "{:.2f}"),
    "with first logits, MB": ("ready_peak_mb", "{:.0f}"),
    "whole process' peak, MB": ("peak_mb", "{:.0f}"),
}


def write_results(out, rows, absent, failures, settings):
    """loading.md, loading.png and loading.json in the folder `out`, and the table on the terminal."""
    about = report.machine()
    cells = [[row["name"], *(form.format(row[key]) for key, form in COLUMNS.values())] for row in rows]
    text = report.markdown_table(["", *COLUMNS], cells)
    text += "\n" + legend(rows, about, settings) + report.left_out(absent, failures)
    suffix = "" if settings["size"] == "gpt2" else f"-{settings['size']}"
    (out / f"loading{suffix}.md").write_text(text, encoding="utf-8")
    contents = {"machine": about, "settings": settings, "absent": absent, "failures": failures, "loaders": rows}
    report.write_json(out / f"loading{suffix}.json", contents)
    shown = ("loading, s", "whole process, s", "peak of loading above, MB")
    report.write_bars(
        out / f"loading{suffix}.png",
        f"Loading {settings['size']} from safetensors, {about['processor']}",
        [row["name"] for row in rows],
        [row["ours"] for row in rows],
        {heading: [row[COLUMNS[heading][0]] for row in rows] for heading in shown},
    )
    print(f"\n{text}\n{out}/loading{suffix}.md, .png, .json")


def legend(rows, about, settings):
    """What the table's columns mean, and on what it was measured."""
    return report.paragraphs(f"""
        {settings["size"]} with random weights, {settings["weights_mb"]:.0f} MB of model.safetensors in the system's
        file cache, {settings["threads"]} threads; best times and largest peaks of {settings["rounds"]} alternating
        rounds. Memory is what the process holds, mapped files included. The peak of loading is the most from the end of
        the imports to the end of the load, less what the imports held. The first logits are of 8 tokens: transformers
        maps the file, and reads it only then. The whole process also reads the file once beforehand and writes its
        figures.

        {report.on_what(rows, about)}
        """)


if __name__ == "__main__":
    sys.exit(main())
