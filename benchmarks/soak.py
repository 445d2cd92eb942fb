"""A server under load for minutes: python -m benchmarks.soak [--seconds 300] [--clients 64]

`tfgpt serve` on ONNX Runtime with GPT-2 int8 and random weights, and clients (serving/load_test.py) that ask for texts
of mixed lengths, of whom a tenth hang up halfway and a tenth send what is no request. Every text is compared with what
its prompt gives alone; the server's resident memory is read every second. Writes JSON to build/bench, and exits with 1
if a request stayed without its answer, a text differed, or memory after the first minute moved by more than 5 %.
"""

import argparse
import json
import sys
import threading

from benchmarks import models, report
from benchmarks.processes import ROOT, ProcessFailed, run
from benchmarks.serving import Bench, resident_mb, serving

WARM_UP = 60  # seconds until every slot has held the longest texts
MOST_CHANGE = 0.05


def main():
    """Parses the command line, runs the clients and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="gpt2", choices=models.SIZES)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    folder = ROOT / "build" / "bench" / arguments.size
    bench = Bench(folder, arguments)
    bench.prepare("tfgpt", sys.executable, models.ensure_model(arguments.size, folder, arguments.threads))
    path, _ = bench.paths["tfgpt"]
    out, memory = folder / "logs" / "soak.json", []
    with serving("tfgpt", sys.executable, path, folder / "logs" / "soak-server.log", arguments.threads) as server:
        done = threading.Event()

        def watch():
            while not done.wait(1):
                memory.append(resident_mb(server.process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        options = ["--clients", arguments.clients, "--seconds", arguments.seconds, "--leave", 0.1, "--wrong", 0.1]
        options += ["--compare", "--prompts", 128, "--text", ROOT / "benchmarks" / "serving.py", "--json", out]
        command = [sys.executable, "serving/load_test.py", server.url, server.model, *options]
        out.unlink(missing_ok=True)
        try:
            run(list(map(str, command)), folder / "logs" / "soak.log", arguments.threads)
        except ProcessFailed:
            if not out.exists():  # else it says what was wrong
                raise
        finally:
            done.set()
            watcher.join()
    result = json.loads(out.read_text())
    # What counts is the load's time, which ends the list; before it each prompt was asked for alone.
    loaded = memory[-arguments.seconds :][min(WARM_UP, arguments.seconds // 2) :]
    result["memory_mb"] = {"after_warm_up": round(loaded[0]), "least": round(min(loaded)), "most": round(max(loaded))}
    result["memory_mb"]["end"] = round(loaded[-1])
    for name, value in result.items():
        print(f"{name:32s} {value}")
    report.write_json(ROOT / "build" / "bench" / "soak.json", {"about": report.machine(), "result": result})
    flat = max(abs(loaded[-1] - loaded[0]), max(loaded) - loaded[0]) <= MOST_CHANGE * loaded[0]
    return 0 if flat and not result["different_texts"] and "failed" not in result else 1


if __name__ == "__main__":
    sys.exit(main())
