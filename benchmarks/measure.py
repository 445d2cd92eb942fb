"""One contestant's process: python -m benchmarks.measure TASK.json RESULT.json, in the Python that has the contestant.

It imports nothing but the standard library and what the contestant itself imports, so that its memory is the
contestant's. A task is either to prepare the files that a contestant opens, or to open them and measure.
"""

import importlib
import json
import pathlib
import sys
import time

from benchmarks.processes import own_peak_mb


def main(task_path, result_path):
    """Does what the task says."""
    task = json.loads(pathlib.Path(task_path).read_text(encoding="utf-8"))
    start = time.perf_counter()
    contestant = importlib.import_module(f"benchmarks.contestants.{task['module']}")
    import_seconds = time.perf_counter() - start
    if task["do"] == "prepare":
        prepared = contestant.prepare(pathlib.Path(task["model"]), pathlib.Path(task["folder"]), task["variants"])
        result = {
            variant: {"path": str(path), "files": [str(file) for file in files]}
            for variant, (path, files) in prepared.items()
        }
    else:
        result = measure(contestant, **task["measure"]) | {"import_seconds": import_seconds}
    pathlib.Path(result_path).write_text(json.dumps(result), encoding="utf-8")


def measure(contestant, path, files, variant, threads, workloads, repeats):
    """Opens a contestant's files and times each workload `repeats` times, after each other.

    The first call of a workload also traces, compiles and allocates, where a contestant does such things; the best of
    them is what counts.

    Args:
        contestant: a module of `benchmarks.contestants`.
        path: what it opens.
        files: what it is going to read.
        variant: of its variants.
        threads: how many it may use.
        workloads: dictionaries of `name`, `prompts` (token id lists of one length) and `new_tokens`.
        repeats: calls of each.

    Returns:
        "load_seconds", and for each workload by its name "seconds" (a list), the new "tokens", and "peak_mb", the most
        memory that the process held until its end.
    """
    for file in files:
        read_through(file)
    start = time.perf_counter()
    generate = contestant.open_model(pathlib.Path(path), variant, threads)
    result = {"load_seconds": time.perf_counter() - start}
    for workload in workloads:
        prompts, new_tokens = workload["prompts"], workload["new_tokens"]
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            tokens = generate(prompts, new_tokens)
            seconds.append(time.perf_counter() - start)
            lengths = [len(row) for row in tokens]
            if lengths != [new_tokens] * len(prompts):
                raise SystemExit(f"{workload['name']} gave {lengths} tokens, expected {new_tokens} for each prompt")
        tokens = [[int(token) for token in row] for row in tokens]
        result[workload["name"]] = {"seconds": seconds, "tokens": tokens, "peak_mb": own_peak_mb()}
    return result


def read_through(path):
    """Brings a file into the system's cache, a little at a time so that no memory of ours grows."""
    with open(path, "rb", buffering=0) as file:
        while file.read(2**20):
            pass


if __name__ == "__main__":
    main(*sys.argv[1:])
