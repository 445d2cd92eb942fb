"""nanoGPT's CPU recipe on tinyshakespeare, whole processes timed: shakespeare.py DATA [--peer-python PYTHON].

Runs `tfgpt train --config configs/shakespeare_char_cpu.yaml` and, given a Python that has PyTorch and transformers, the
same recipe there, alternating; prints seconds, peak memory and validation loss over the whole split, and writes
build/bench/shakespeare.json.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "shakespeare_char_cpu.yaml"


def main():
    """Parses the command line and runs the contestants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=pathlib.Path, help="tinyshakespeare.txt")
    parser.add_argument("--peer-python", help="a Python with torch and transformers")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--initializer-range", type=float, help="in place of the configuration's")
    arguments = parser.parse_args()
    if not arguments.data.is_file():
        parser.error(f"{arguments.data} is missing; expected tinyshakespeare, as in `make bench DATA=path`")
    results = []
    for _ in range(arguments.runs):
        results.append({"who": "tfgpt", **run_tfgpt(arguments.data, arguments.initializer_range)})
        if arguments.peer_python:
            results.append({"who": "torch", **run_torch(arguments.data, arguments.peer_python)})
    for result in results:
        print("{who:6s} {seconds:6.1f} s  {peak_mb:6.0f} MB  validation loss {loss:.4f}".format(**result))
    out = ROOT / "build" / "bench" / "shakespeare.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n")


def run_tfgpt(data, initializer_range):
    """Our process, from the command line to the model directory."""
    with tempfile.TemporaryDirectory() as folder:
        figures = pathlib.Path(folder) / "figures.json"
        command = [sys.executable, "-m", "tfgpt.cli", "train", "--config", str(CONFIG), "--data", str(data)]
        command += ["--out", f"{folder}/model", "--json", str(figures)]
        if initializer_range is not None:
            command += ["--initializer_range", str(initializer_range)]
        measured = timed(command)
        return measured | {"loss": json.loads(figures.read_text())["loss"]}


def run_torch(data, python):
    """The peer's process: `torch_shakespeare.py` beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        figures = pathlib.Path(folder) / "figures.json"
        measured = timed([python, str(ROOT / "benchmarks" / "torch_shakespeare.py"), str(data), str(figures)])
        return measured | json.loads(figures.read_text())


def timed(command):
    """Wall time and peak memory of a command, which must succeed."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{errors.decode()}")
    assert isinstance(usage, resource.struct_rusage)
    return {"seconds": time.perf_counter() - start, "peak_mb": usage.ru_maxrss / 1024}


if __name__ == "__main__":
    main()
