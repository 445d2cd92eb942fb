"""Generation speed of tfgpt beside its peers, in one run: python -m benchmarks.generation --peer-pythons PYTHON...

Rounds alternate: in each, every contestant runs once, in a process of its own, on the same prompts and threads. A
machine that others use too is at times slower for minutes; the best of all rounds is what counts, and all values are
kept. Contestants whose packages none of the Pythons has are listed as not installed. Writes a Markdown table, a PNG and
JSON to build/bench.
"""

import argparse
import json
import pathlib
import random
import shutil
import sys

from benchmarks import models, report
from benchmarks.contestants.registry import CONTESTANTS
from benchmarks.processes import ROOT, ProcessFailed, find_pythons, run

SHORT, LONG, NEW_TOKENS, BATCH = 32, 512, 128, 8  # tokens of the prompts, new tokens, prompts of a batch

COLUMNS = {  # key of a row's figures: header, format
    "prefill": (f"prefill {LONG}, tokens/s", "{:.0f}"),
    "decode": ("decode, batch 1, tokens/s", "{:.1f}"),
    "decode_batch": (f"batch {BATCH}, tokens/s", "{:.1f}"),
    "first_token_ms": ("first token, ms", "{:.1f}"),
    "load_seconds": ("load, s", "{:.2f}"),
    "peak_mb": ("peak memory, MB", "{:.0f}"),
    "peak_batch_mb": (f"… with batch {BATCH}", "{:.0f}"),
    "file_mb": ("files, MB", "{:.1f}"),
}


def main():
    """Parses the command line, runs the rounds and reports."""
    arguments = parse_arguments()
    load = report.warn_if_busy()
    folder = arguments.out / arguments.size
    bench = Bench(folder, arguments.threads, arguments.repeats)
    model = models.ensure_model(arguments.size, folder, arguments.threads)
    chosen = [c for c in CONTESTANTS if not arguments.only or any(word in c.name for word in arguments.only)]
    pythons = find_pythons({c.name: c.needs for c in chosen}, [sys.executable, *arguments.peer_pythons])
    absent = {c.name: f"not installed: {', '.join(c.needs)}" for c in chosen if c.name not in pythons}
    for name, reason in absent.items():
        print(f"{name:28s} {reason}", flush=True)
    present = [c for c in chosen if c.name in pythons]
    prepared, failures = bench.prepare(present, pythons, model)
    workloads = make_workloads(models.vocabulary_size(model))
    rounds = {c.name: [] for c in present}
    for number in range(1, arguments.rounds + 1):
        for contestant in present:
            if contestant.name in failures:
                continue
            try:
                python = pythons[contestant.name][0]
                result = bench.measure(contestant, python, prepared[contestant.name], workloads)
            except ProcessFailed as error:
                failures[contestant.name] = str(error)
                print(f"{contestant.name:28s} failed: {error}", flush=True)
                continue
            rounds[contestant.name].append(result)
            print(f"round {number}  {contestant.name:28s} {one_line(figures([result]))}", flush=True)
    measured = [c for c in present if rounds[c.name]]
    if not measured:
        return 1
    whose_tokens = reference(measured)
    expected = rounds[whose_tokens][0]
    rows = [describe(c, rounds[c.name], prepared[c.name]["files"], pythons[c.name][1], expected) for c in measured]
    settings = {name: getattr(arguments, name) for name in ("size", "threads", "rounds", "repeats")}
    write_results(arguments.out, rows, absent, failures, settings | {"reference": whose_tokens, "load_before": load})
    return 1 if failures else 0


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.generation", description=__doc__)
    parser.add_argument("--peer-pythons", nargs="*", default=[], metavar="PYTHON", help="Pythons that have peers")
    parser.add_argument("--rounds", type=int, default=3, help="how often every contestant runs")
    parser.add_argument("--repeats", type=int, default=3, help="calls of each kind in a contestant's process")
    parser.add_argument("--size", choices=models.SIZES, default="gpt2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", metavar="WORD", help="contestants whose name has one of these words in it")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build" / "bench")
    arguments = parser.parse_args()
    arguments.out = arguments.out.absolute()
    return arguments


def make_workloads(vocabulary_size):
    """What every contestant does, with the same token ids; the last token of the vocabulary ends texts, so not it."""
    generator = random.Random(0)

    def prompts(count, length):
        return [[generator.randrange(vocabulary_size - 1) for _ in range(length)] for _ in range(count)]

    batch = prompts(BATCH, SHORT)
    return [
        {"name": "decode", "prompts": batch[:1], "new_tokens": NEW_TOKENS},
        {"name": "first_token", "prompts": batch[:1], "new_tokens": 1},
        {"name": "prefill", "prompts": prompts(1, LONG), "new_tokens": 1},
        {"name": "decode_batch", "prompts": batch, "new_tokens": NEW_TOKENS},  # last: the others' memory is of batch 1
    ]


class Bench:
    """Starts the processes of contestants.

    Args:
        folder: for what contestants open, and for logs; kept between runs.
        threads: that each may use.
        repeats: calls of each kind in a process.
    """

    def __init__(self, folder, threads, repeats):
        self.folder, self.threads, self.repeats = folder, threads, repeats

    def task(self, name, python, task):
        """What `benchmarks.measure` makes of a task."""
        files = [self.folder / "logs" / f"{name.replace(' ', '-')}.{kind}" for kind in ("task.json", "json", "log")]
        task_path, result_path, log = files
        log.parent.mkdir(parents=True, exist_ok=True)
        task_path.write_text(json.dumps(task), encoding="utf-8")
        command = [python, "-m", "benchmarks.measure", task_path, result_path]
        run(command, log, self.threads)
        return json.loads(result_path.read_text(encoding="utf-8"))

    def prepare(self, contestants, pythons, model):
        """Has each contestant make the files it opens, unless a peer's same version made them in an earlier run.

        Returns:
            From names to {"path", "files"}, and from names of those that failed to the reason.
        """
        prepared, failures = {}, {}
        for module in dict.fromkeys(c.module for c in contestants):
            group = [c for c in contestants if c.module == module]
            python, versions = pythons[group[0].name]
            folder = self.folder / f"{module}-{next(iter(versions.values()))}"
            done = {} if group[0].ours else read_prepared(folder, model)
            if not done:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
            missing = [c.variant for c in group if c.variant not in done]
            if missing:
                print(f"preparing {', '.join(c.name for c in group)}", flush=True)
                task = {"do": "prepare", "module": module, "model": str(model), "folder": str(folder)}
                try:
                    done |= self.task(f"prepare {module}", python, task | {"variants": missing})
                except ProcessFailed as error:
                    print(f"{module} failed: {error}", flush=True)
                    failures |= {c.name: str(error) for c in group}
                    continue
                (folder / "prepared.json").write_text(json.dumps(done), encoding="utf-8")
            prepared |= {c.name: done[c.variant] for c in group}
        return prepared, failures

    def measure(self, contestant, python, prepared, workloads):
        """What one contestant's process measured."""
        if not contestant.batches:
            workloads = [workload for workload in workloads if len(workload["prompts"]) == 1]
        settings = {"variant": contestant.variant, "threads": self.threads, "repeats": self.repeats}
        task = {"do": "measure", "module": contestant.module}
        return self.task(contestant.name, python, task | {"measure": {**prepared, **settings, "workloads": workloads}})


def read_prepared(folder, model):
    """What a peer made in an earlier run; nothing if files of it are gone, or the model is another since."""
    index = folder / "prepared.json"
    if not index.exists() or index.stat().st_mtime < (model / "model.safetensors").stat().st_mtime:
        return {}
    done = json.loads(index.read_text(encoding="utf-8"))
    whole = all(pathlib.Path(file).exists() for prepared in done.values() for file in prepared["files"])
    return done if whole else {}


# === From measurements to figures ===


def figures(rounds):
    """The best of all calls of all rounds; of memory the largest. None for what a contestant does not do."""

    def best(name):
        return min(second for result in rounds for second in result[name]["seconds"])

    def peak(name):
        return max(result[name]["peak_mb"] for result in rounds)

    batches = "decode_batch" in rounds[0]
    return {
        "prefill": LONG / best("prefill"),
        "decode": NEW_TOKENS / best("decode"),
        "decode_batch": BATCH * NEW_TOKENS / best("decode_batch") if batches else None,
        "first_token_ms": 1000 * best("first_token"),
        "load_seconds": min(result["load_seconds"] for result in rounds),
        "peak_mb": peak("prefill"),
        "peak_batch_mb": peak("decode_batch") if batches else None,
    }


def one_line(row):
    """A row's figures for the terminal, while the rounds go on."""
    cells = [f"{key} {COLUMNS[key][1].format(value)}" for key, value in row.items() if value is not None]
    return "  ".join(cells)


def describe(contestant, rounds, files, versions, expected):
    """All there is to say of a contestant: its figures, how many tokens agree, and every value measured."""
    values = [
        result | {name: {k: v for k, v in result[name].items() if k != "tokens"} for name in workload_names(result)}
        for result in rounds
    ]
    return {
        "name": contestant.name,
        "ours": contestant.ours,
        "exact": contestant.exact,
        "versions": versions,
        **figures(rounds),
        "file_mb": sum(pathlib.Path(file).stat().st_size for file in files) / 1e6,
        "same_tokens": min(agreement(result, expected) for result in rounds),
        "rounds": values,
        "tokens": {name: rounds[0][name]["tokens"] for name in workload_names(rounds[0])},
    }


def reference(contestants):
    """Whose tokens the others' are compared with: our float32 variant, where it ran, else who is nearest to it."""
    return min(contestants, key=lambda c: (c.name != "tfgpt float32", not c.exact, not c.ours)).name


def agreement(result, expected):
    """(count, of) the new tokens of a round that are another's, up to each row's first that is not."""
    same = total = 0
    for name in workload_names(result):
        if name not in expected:
            continue
        for tokens, others in zip(result[name]["tokens"], expected[name]["tokens"]):
            different = (i for i, (a, b) in enumerate(zip(tokens, others)) if a != b)
            same += next(different, len(others))
            total += len(others)
    return same, total


def workload_names(result):
    """The workloads among what `benchmarks.measure` gave."""
    return [name for name, value in result.items() if isinstance(value, dict)]


def write_results(out, rows, absent, failures, settings):
    """generation.md, generation.png and generation.json in the folder `out`, and the table on the terminal."""
    header = ["", *(title for title, _ in COLUMNS.values()), "same tokens"]
    cells = [
        [row["name"], *("–" if row[key] is None else form.format(row[key]) for key, (_, form) in COLUMNS.items())]
        + ["{} of {}".format(*row["same_tokens"])]
        for row in rows
    ]
    about = report.machine()
    text = report.markdown_table(header, cells) + "\n"
    text += legend(rows, about, settings) + report.left_out(absent, failures)
    suffix = "" if settings["size"] == "gpt2" else f"-{settings['size']}"
    (out / f"generation{suffix}.md").write_text(text, encoding="utf-8")
    contents = {"machine": about, "settings": settings, "absent": absent, "failures": failures, "contestants": rows}
    report.write_json(out / f"generation{suffix}.json", contents)
    panels = {COLUMNS[key][0]: [row[key] for row in rows] for key in ("decode", "decode_batch", "prefill", "peak_mb")}
    title = f"{settings['size']}, {settings['threads']} threads, {about['processor']}"
    names = [row["name"] for row in rows]
    report.write_bars(out / f"generation{suffix}.png", title, names, [row["ours"] for row in rows], panels)
    print(f"\n{text}\n{out}/generation{suffix}.md, .png, .json")


def legend(rows, about, settings):
    """What the table's columns mean, and on what it was measured."""
    exact = [row for row in rows if row["exact"]]
    agreeing = sum(row["same_tokens"][0] == row["same_tokens"][1] for row in exact)
    return report.paragraphs(f"""
        {settings["size"]} with random weights, {settings["threads"]} threads; best of {settings["rounds"]} alternating
        rounds of {settings["repeats"]} calls each, of memory the largest. Prefill: a prompt of {LONG} tokens up to its
        first new token. Decode: {NEW_TOKENS} greedy tokens after a prompt of {SHORT}, over the whole call. First token:
        of the prompt of {SHORT}. Load: the model opened from files in the file cache, packages imported before. Peak
        memory: of the whole process, with batch 1 alone, and after batch {BATCH}. Same tokens: those of all calls that
        {settings["reference"]} gives too, up to each row's first that is not; of the {len(exact)} that compute in
        float32, {agreeing} agree in all.

        {report.on_what(rows, about)}
        """)


if __name__ == "__main__":
    sys.exit(main())
