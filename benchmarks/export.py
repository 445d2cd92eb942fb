"""Export, whole processes: python -m benchmarks.export --peer-pythons PYTHON...

tfgpt and its peers write ONNX, and tfgpt writes a SavedModel. Every exporter opens the same model directory, GPT-2 with
random weights, in a process of its own. Rounds alternate, and the best of all counts. Writes a Markdown table, a PNG
and JSON to build/bench. Keras' own exporter takes minutes and 18 GB of memory for GPT-2's 124M parameters: run nothing
else beside it. It is left out where that memory is not free.
"""

import argparse
import dataclasses
import pathlib
import shutil
import sys

from benchmarks import models, report
from benchmarks.processes import ROOT, ProcessFailed, find_pythons, run


def process(name):
    """What a Python is given to run a function of `benchmarks.exporters`."""
    return "-m", "benchmarks.exporters", name, "MODEL", "OUT"


@dataclasses.dataclass(frozen=True)
class Exporter:
    """One row of the table.

    Args:
        name: who, and what the row covers.
        command: what its Python is given, "MODEL" and "OUT" standing for the model directory and the folder to write.
        needs: the distributions that it imports.
        cache: whether the decoders that it writes have a KV cache.
        memory_gb: what it needs for 124M parameters, where a machine may not have it.
        ours: whether it is tfgpt.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...]
    cache: str = "yes"
    memory_gb: float = 0.0
    ours: bool = False


TFGPT, OPTIMUM = ("tfgpt", "tensorflow", "keras", "tf2onnx"), ("optimum-onnx", "transformers", "torch")
EXPORTERS = (
    Exporter("tfgpt export_onnx", process("tfgpt_onnx"), TFGPT, ours=True),
    Exporter("tfgpt export_saved_model", process("tfgpt_saved_model"), TFGPT, ours=True),
    Exporter(
        "tfgpt export, with its parity proof",
        ("-m", "tfgpt.cli", "export", "MODEL", "--out", "OUT", "--formats", "onnx"),
        TFGPT,
        ours=True,
    ),
    Exporter("Optimum, without validation", process("optimum"), OPTIMUM),
    Exporter("Optimum, with validation", process("optimum_validated"), OPTIMUM),
    Exporter(
        "Keras model.export of keras-hub",
        process("keras_hub"),
        ("keras-hub", "keras", "tensorflow", "tf2onnx"),
        cache="no",
        memory_gb=19,
    ),
)


def main():
    """Parses the command line, runs the rounds and reports."""
    arguments = parse_arguments()
    load = report.warn_if_busy()
    folder = arguments.out / arguments.size
    chosen = [e for e in EXPORTERS if not arguments.only or any(word in e.name for word in arguments.only)]
    pythons = find_pythons({e.name: e.needs for e in chosen}, [sys.executable, *arguments.peer_pythons])
    model = models.ensure_model(arguments.size, folder, arguments.threads)
    absent, failures, rounds = {}, {}, {}
    for exporter in chosen:
        if reason := why_not(exporter, pythons, arguments.size):
            absent[exporter.name] = reason
            print(f"{exporter.name:36s} {reason}", flush=True)
    for number in range(1, arguments.rounds + 1):
        for exporter in chosen:
            if exporter.name in absent or exporter.name in failures:
                continue
            try:
                result = export(exporter, pythons[exporter.name][0], model, folder, arguments.threads)
            except ProcessFailed as error:
                failures[exporter.name] = str(error)
                print(f"{exporter.name:36s} failed: {error}", flush=True)
                continue
            rounds.setdefault(exporter.name, []).append(result)
            line = "{seconds:.1f} s, peak {peak_mb:.0f} MB, {file_mb:.1f} MB".format(**result)
            print(f"round {number}  {exporter.name:36s} {line}", flush=True)
    rows = [describe(e, rounds[e.name], pythons[e.name][1]) for e in chosen if e.name in rounds]
    if rows:
        settings = {name: getattr(arguments, name) for name in ("size", "threads", "rounds")}
        write_results(arguments.out, rows, absent, failures, settings | {"load_before": load})
    return 1 if failures or not rows else 0


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.export", description=__doc__)
    parser.add_argument("--peer-pythons", nargs="*", default=[], metavar="PYTHON", help="Pythons that have peers")
    parser.add_argument("--rounds", type=int, default=2, help="how often every exporter runs")
    parser.add_argument(
        "--size", choices=models.SIZES, default="gpt2", help="above gpt2 tfgpt alone: not every peer's memory suffices"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", metavar="WORD", help="exporters whose name has one of these words in it")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build" / "bench")
    arguments = parser.parse_args()
    arguments.out = arguments.out.absolute()
    return arguments


def why_not(exporter, pythons, size):
    """Why an exporter does not take part; None if it does."""
    if exporter.name not in pythons:
        return f"not installed: {', '.join(exporter.needs)}"
    if not exporter.ours and size not in ("gpt2", "tiny"):
        return f"peers are left out at {size}"
    available = report.available_memory_gb()
    if size == "gpt2" and exporter.memory_gb > available:
        return f"needs {exporter.memory_gb} GB of memory, of which {available:.0f} are free"
    return None


def export(exporter, python, model, folder, threads):
    """What one export took; what it wrote is measured and removed."""
    out = folder / "export"
    shutil.rmtree(out, ignore_errors=True)
    places = {"MODEL": model, "OUT": out}
    log = folder / "logs" / f"export {exporter.name}.log".replace(" ", "-").replace(",", "")
    try:
        finished = run([python, *(places.get(part, part) for part in exporter.command)], log, threads)
        kinds = (".onnx", ".data", ".onnx_data", "saved_model.pb", "variables.data")
        files = [path for path in out.rglob("*") if path.is_file() and any(kind in path.name for kind in kinds)]
        if not files:
            raise ProcessFailed("wrote no model")
        sizes = {path.name: path.stat().st_size / 1e6 for path in files}
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return {
        "seconds": finished.seconds,
        "peak_mb": finished.peak_mb,
        "file_mb": sum(sizes.values()),
        "sizes_mb": sizes,
    }


def describe(exporter, rounds, versions):
    """A row's figures: the best time, the largest peak, and every value measured."""
    return {
        "name": exporter.name,
        "ours": exporter.ours,
        "versions": versions,
        "cache": exporter.cache,
        "seconds": min(result["seconds"] for result in rounds),
        "peak_mb": max(result["peak_mb"] for result in rounds),
        "file_mb": rounds[-1]["file_mb"],
        "rounds": rounds,
    }


def write_results(out, rows, absent, failures, settings):
    """export.md, export.png and export.json in the folder `out`, and the table on the terminal."""
    about = report.machine()
    text = report.markdown_table(
        ["", "whole process, s", "peak memory, MB", "ONNX files, MB", "KV cache"],
        [
            [row["name"], f"{row['seconds']:.1f}", f"{row['peak_mb']:.0f}", f"{row['file_mb']:.1f}", row["cache"]]
            for row in rows
        ],
    )
    text += "\n" + legend(rows, about, settings) + report.left_out(absent, failures)
    suffix = "" if settings["size"] == "gpt2" else f"-{settings['size']}"
    (out / f"export{suffix}.md").write_text(text, encoding="utf-8")
    contents = {"machine": about, "settings": settings, "absent": absent, "failures": failures, "exporters": rows}
    report.write_json(out / f"export{suffix}.json", contents)
    report.write_bars(
        out / f"export{suffix}.png",
        f"ONNX export of {settings['size']}, {about['processor']}",
        [row["name"] for row in rows],
        [row["ours"] for row in rows],
        {
            "whole process, s": [row["seconds"] for row in rows],
            "peak memory, MB": [row["peak_mb"] for row in rows],
            "ONNX files, MB": [row["file_mb"] for row in rows],
        },
    )
    print(f"\n{text}\n{out}/export{suffix}.md, .png, .json")


def legend(rows, about, settings):
    """What the table's columns mean, and on what it was measured."""
    return report.paragraphs(f"""
        {settings["size"]} with random weights, {settings["threads"]} threads; best time and largest peak of
        {settings["rounds"]} alternating rounds. A process begins by importing its packages and opening
        model.safetensors, and ends with the files written. tfgpt export_onnx writes two decoders that share their
        weights; the command tfgpt export also the variants that it makes by default, and it runs each beside the Keras
        model before it publishes them.

        {report.on_what(rows, about)}
        """)


if __name__ == "__main__":
    sys.exit(main())
