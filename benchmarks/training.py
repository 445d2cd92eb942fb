"""Training GPT-2 from random weights, whole processes: python -m benchmarks.training --peer-pythons PYTHON...

tfgpt, keras-hub and transformers take the same steps of AdamW on the same random tokens, each in a process of its own
(see benchmarks/trainers.py). Rounds alternate; the best block of steps and the largest peak count. Writes Markdown
tables, a PNG and JSON to build/bench. A trainer whose loss is not finite or does not fall has failed, and the exit code
is 1. None may have more memory than is free when it starts: one that needs more is stopped, and the table says so.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import re
import sys

from benchmarks import report
from benchmarks.processes import ROOT, ProcessFailed, find_pythons, run

DEFAULT_SHAPES = ("small", "gpt2", "long")
RESERVE = 1e9  # bytes of free memory that are left to the system

# What TensorFlow, PyTorch, C++ and Python say when memory is refused. oneDNN says only that it has no primitive.
OUT_OF_MEMORY = re.compile(
    r"OOM|RESOURCE_EXHAUSTED|could not create a primitive|can't allocate memory|bad_alloc|MemoryError|out of memory",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """One row of the tables.

    Args:
        name: who, and how.
        function: of `benchmarks.trainers`.
        options: its arguments.
        needs: the distributions that it imports.
        shapes: of those of `benchmarks.trainers`, which it takes part in.
        extra: whether it runs under `--all` only.
    """

    name: str
    function: str
    options: dict
    needs: tuple[str, ...]
    shapes: tuple[str, ...] = ("tiny", "small", "gpt2")
    extra: bool = False

    @property
    def ours(self):
        """Whether it is tfgpt."""
        return self.function == "tfgpt"


TFGPT, TORCH = ("tfgpt", "tensorflow", "keras"), ("transformers", "torch")
KERAS_HUB = ("keras-hub", "keras", "tensorflow")
EVERYWHERE = ("tiny", *DEFAULT_SHAPES)
PRECISIONS = ("float32", "mixed_bfloat16")
TRAINERS = (
    Trainer("tfgpt", "tfgpt", {}, TFGPT, EVERYWHERE),
    Trainer("tfgpt, recomputing", "tfgpt", {"recompute": True}, TFGPT, ("long",)),
    *(
        Trainer(f"tfgpt {name} {precision}", "tfgpt", {"compile": name, "precision": precision}, TFGPT, extra=True)
        for name in ("step", "kernels", "none")
        for precision in PRECISIONS
    ),
    *(
        Trainer(f"torch {name} {precision}", "torch", {"compiled": compiled, "bfloat16": bfloat16}, TORCH)
        for name, compiled in (("eager", False), ("compiled", True))
        for precision, bfloat16 in (("float32", False), ("bfloat16", True))
    ),
    *(
        Trainer(
            f"keras-hub {name} {policy}",
            "keras_hub",
            {"jit_compile": jit_compile, "policy": policy},
            KERAS_HUB,
            # At 1024 tokens, its fastest mode at 256.
            EVERYWHERE if (name, policy) == ("graph", "mixed_bfloat16") else ("tiny", "small", "gpt2"),
        )
        for name, jit_compile in (("graph", False), ("XLA", True))
        for policy in PRECISIONS
    ),
    Trainer(
        "keras-hub XLA float32, ten steps a call",
        "keras_hub",
        {"jit_compile": True, "policy": "float32", "several_steps": True},
        KERAS_HUB,
        ("tiny", "small"),
    ),
)


def main():
    """Parses the command line, runs the rounds and reports."""
    arguments = parse_arguments()
    load = report.warn_if_busy()
    chosen = [x for x in TRAINERS if is_chosen(x, arguments)]
    pythons = find_pythons({x.name: x.needs for x in chosen}, [sys.executable, *arguments.peer_pythons])
    absent = {x.name: f"not installed: {', '.join(x.needs)}" for x in chosen if x.name not in pythons}
    for name, reason in absent.items():
        print(f"{name:30s} {reason}", flush=True)
    failures, outcomes = {}, {}
    for number in range(1, arguments.rounds + 1):
        for shape in arguments.shapes:
            for trainer in (x for x in chosen if shape in x.shapes and x.name in pythons):
                key = f"{trainer.name}, {shape}"
                if key in failures or any("out_of_memory_gb" in x for x in outcomes.get((shape, trainer.name), [])):
                    continue
                try:
                    result = measure(trainer, pythons[trainer.name][0], shape, arguments)
                except ProcessFailed as error:
                    failures[key] = str(error)
                    print(f"round {number}  {shape:5s}  {trainer.name:30s} failed: {error}", flush=True)
                    continue
                outcomes.setdefault((shape, trainer.name), []).append(result)
                print(f"round {number}  {shape:5s}  {trainer.name:30s} {in_words(result)}", flush=True)
    tables = describe(chosen, arguments.shapes, outcomes, pythons)
    if tables:
        settings = {name: getattr(arguments, name) for name in ("threads", "rounds", "shapes")}
        write_results(arguments.out, tables, absent, failures, settings | {"load_before": load})
    ours_too_big = any(row["ours"] and row["out_of_memory_gb"] for rows in tables.values() for row in rows)
    return 1 if failures or ours_too_big or not tables else 0


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.training", description=__doc__)
    parser.add_argument("--peer-pythons", nargs="*", default=[], metavar="PYTHON", help="Pythons that have peers")
    parser.add_argument("--rounds", type=int, default=2, help="how often every trainer runs")
    parser.add_argument("--shapes", nargs="+", choices=EVERYWHERE, default=list(DEFAULT_SHAPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", metavar="WORD", help="trainers whose name has one of these words in it")
    parser.add_argument("--all", action="store_true", help="also what tfgpt's `compile` and `precision` can be set to")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build" / "bench")
    arguments = parser.parse_args()
    arguments.out = arguments.out.absolute()
    return arguments


def is_chosen(trainer, arguments):
    """Whether a trainer takes part in a run of the benchmark."""
    named = not arguments.only or any(word in trainer.name for word in arguments.only)
    return named and (arguments.all or not trainer.extra) and not set(trainer.shapes).isdisjoint(arguments.shapes)


def measure(trainer, python, shape, arguments):
    """What one process took, or the memory that it was not content with."""
    name = f"{shape} {trainer.name}".replace(" ", "-").replace(",", "")
    result = arguments.out / "training" / f"{name}.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    free = report.available_memory_gb()
    limit = int(free * 1e9 - RESERVE) if math.isfinite(free) else None
    task = {"function": trainer.function, "options": trainer.options, "shape": shape, "memory_bytes": limit}
    task_path, log = result.with_suffix(".task.json"), result.with_suffix(".log")
    task_path.write_text(json.dumps(task), encoding="utf-8")
    try:
        finished = run([python, "-m", "benchmarks.trainers", task_path, result], log, arguments.threads)
    except ProcessFailed:
        if limit and OUT_OF_MEMORY.search(log.read_text(encoding="utf-8", errors="replace")):
            return {"out_of_memory_gb": limit / 1e9}
        raise
    figures = json.loads(result.read_text(encoding="utf-8"))
    return figures | {"seconds": finished.seconds, "peak_mb": finished.peak_mb}


def in_words(result):
    """A line about what one process took."""
    if "out_of_memory_gb" in result:
        return "out of memory at {out_of_memory_gb:.1f} GB".format(**result)
    line = "{tokens_per_second:.0f} tokens/s, first step after {first_step_seconds:.1f} s, peak {peak_mb:.0f} MB, "
    return (line + "loss {first_loss:.3f} to {loss:.3f}").format(**result)


def describe(chosen, shapes, outcomes, pythons):
    """For each shape its rows: the best times, the largest peaks, and every value measured."""
    tables = {}
    for shape in shapes:
        for trainer in (x for x in chosen if (shape, x.name) in outcomes):
            rounds = outcomes[shape, trainer.name]
            good = [result for result in rounds if "out_of_memory_gb" not in result]
            row = {"name": trainer.name, "ours": trainer.ours, "versions": pythons[trainer.name][1]}
            row |= {
                key: max((result[key] for result in good), default=None) for key in ("tokens_per_second", "peak_mb")
            }
            row |= {key: min((result[key] for result in good), default=None) for key in ("first_step_seconds",)}
            row |= {key: good[-1][key] if good else None for key in ("first_loss", "loss")}
            refused = [result["out_of_memory_gb"] for result in rounds if "out_of_memory_gb" in result]
            tables.setdefault(shape, []).append(
                row | {"out_of_memory_gb": max(refused, default=None), "rounds": rounds}
            )
        peers = [r["tokens_per_second"] for r in tables.get(shape, []) if not r["ours"] and r["tokens_per_second"]]
        for row in tables.get(shape, []):
            speed = row["tokens_per_second"]
            row["to_best_peer"] = speed / max(peers) if speed and peers else None
    return tables


COLUMNS = {
    "tokens/s": ("tokens_per_second", "{:.0f}"),
    "to the best peer": ("to_best_peer", "{:.2f}"),
    "first step, s": ("first_step_seconds", "{:.1f}"),
    "peak memory, MB": ("peak_mb", "{:.0f}"),
    "first loss": ("first_loss", "{:.3f}"),
    "last loss": ("loss", "{:.3f}"),
}


def write_results(out, tables, absent, failures, settings):
    """training.md, training.png and training.json in the folder `out`, and the tables on the terminal."""
    from benchmarks.trainers import SHAPES

    about = report.machine()
    text = ""
    for shape, rows in tables.items():
        text += f"{shape}: {SHAPES[shape]}\n\n"
        text += report.markdown_table(["", *COLUMNS], [cells(row) for row in rows]) + "\n"
    text += legend([row for rows in tables.values() for row in rows], about, settings)
    text += report.left_out(absent, failures)
    stem = "training" if tuple(settings["shapes"]) == DEFAULT_SHAPES else "-".join(["training", *settings["shapes"]])
    (out / f"{stem}.md").write_text(text, encoding="utf-8")
    contents = {"machine": about, "settings": settings, "absent": absent, "failures": failures, "trainers": tables}
    report.write_json(out / f"{stem}.json", contents)
    ours = {row["name"]: row["ours"] for rows in tables.values() for row in rows}
    panels = {}
    for heading in ("tokens/s", "peak memory, MB"):
        for shape, rows in tables.items():
            values = {row["name"]: row[COLUMNS[heading][0]] for row in rows}
            panels[f"{shape}: {heading}"] = [values.get(name) for name in ours]
    report.write_bars(out / f"{stem}.png", f"Training, {about['processor']}", list(ours), list(ours.values()), panels)
    print(f"\n{text}\n{out}/{stem}.md, .png, .json")


def cells(row):
    """A row of a Markdown table."""
    texts = ["–" if row[key] is None else form.format(row[key]) for key, form in COLUMNS.values()]
    if row["out_of_memory_gb"]:
        texts[0] = f"out of memory at {row['out_of_memory_gb']:.0f} GB"
    return [row["name"], *texts]


def legend(rows, about, settings):
    """What the tables' columns mean, and on what it was measured."""
    return report.paragraphs(f"""
        {settings["threads"]} threads, {settings["rounds"]} alternating rounds of a process each. Tokens/s are of the
        best block of steps; before the blocks are timed, a call of one step each (of ten in the small shape, which
        tfgpt takes in one execution, as keras-hub does in one row, though not by `fit`'s default) has been made twice.
        First step: from the process' start, imports and compilation included, to the end of the first call; the
        shortest. Peak memory is of the whole process, the largest. Losses are means over the first call and over the
        last block, on the same tokens for all, drawn independently with low ids likelier. tfgpt is what `tfgpt train`
        does by itself ("auto"). At 1024 tokens the peers are left out but for keras-hub in its fastest mode at 256.
        None may have more memory than was free.

        {report.on_what(rows, about)}
        """)


if __name__ == "__main__":
    sys.exit(main())
