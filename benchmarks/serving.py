"""Servers under load: python -m benchmarks.serving [--peer-pythons PYTHON...]

`tfgpt serve` on ONNX Runtime beside llama-cpp-python's server, the same GPT-2 with random weights, 8 bits each, and the
same prompts of 16 to 256 tokens by the same clients (serving/load_test.py): one client, and many. Every text of tfgpt's
under load is compared with what the prompt gives alone. Rounds alternate; the best of each counts. Writes Markdown and
JSON to build/bench.
"""

import argparse
import contextlib
import json
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from benchmarks import models, report
from benchmarks.processes import ROOT, ProcessFailed, environment, find_pythons, last_words, run

VARIANTS = {"tfgpt": "int8", "llama.cpp": "q8_0"}
NEEDS = {"tfgpt": ("tfgpt", "onnxruntime", "uvicorn"), "llama.cpp": ("llama-cpp-python", "gguf", "fastapi")}
MODULES = {"tfgpt": "tfgpt_onnx", "llama.cpp": "llama"}
WAIT = 120  # seconds for a server to answer


def main():
    """Parses the command line, runs the rounds and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="gpt2", choices=models.SIZES)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-pythons", nargs="*", default=[])
    arguments = parser.parse_args()
    report.warn_if_busy()
    folder = ROOT / "build" / "bench" / arguments.size
    model = models.ensure_model(arguments.size, folder, arguments.threads)
    pythons = find_pythons(NEEDS, [sys.executable, *arguments.peer_pythons])
    rows = []
    for name in NEEDS:
        if name not in pythons:
            print(f"{name:10s} not installed: {', '.join(NEEDS[name])}")
    bench = Bench(folder, arguments)
    for name in [name for name in NEEDS if name in pythons]:
        bench.prepare(name, pythons[name][0], model)
    for number in range(1, arguments.rounds + 1):
        for name in [name for name in NEEDS if name in pythons]:
            row = bench.measure(name, pythons[name][0])
            print(f"round {number}  {name:10s} {row['one']} tokens/s alone, {row['many']} together", flush=True)
            rows.append(row)
    write(rows, pythons, arguments, ROOT / "build" / "bench")


class Bench:
    """Starts servers and sends clients to them.

    Args:
        folder: for files.
        arguments: of the command line.
    """

    def __init__(self, folder, arguments):
        self.folder, self.arguments, self.paths = folder, arguments, {}

    def prepare(self, name, python, model):
        """Makes a contestant's files, as `benchmarks.generation` does."""
        out = self.folder / "serving" / name
        out.mkdir(parents=True, exist_ok=True)
        code = (
            f"import pathlib, json; from benchmarks.contestants import {MODULES[name]} as c; "
            f"found = c.prepare(pathlib.Path({str(model)!r}), pathlib.Path({str(out)!r}), [{VARIANTS[name]!r}]); "
            f"path, files = found[{VARIANTS[name]!r}]; "
            f"pathlib.Path({str(out / 'prepared.json')!r}).write_text(json.dumps([str(path), [str(f) for f in files]]))"
        )
        if not (out / "prepared.json").exists():
            run([python, "-c", code], self.folder / "logs" / f"serving-{name}.log", self.arguments.threads)
        self.paths[name] = json.loads((out / "prepared.json").read_text())

    def measure(self, name, python):
        """One server: its start, its memory, and what one and many clients get."""
        path, files = self.paths[name]
        with serving(name, python, path, self.folder / "logs" / f"serve-{name}.log", self.arguments.threads) as server:
            idle = resident_mb(server.process.pid)
            asked = ["--characters", "16-256", "--new_tokens", "64", "--requests", str(self.arguments.requests)]
            one = self.load(server, name, "one", ["--clients", "1", *asked])
            compare = ["--compare"] if name == "tfgpt" else []
            many = self.load(server, name, "many", ["--clients", str(self.arguments.clients), *asked, *compare])
            return {
                "name": f"{name} {VARIANTS[name]}",
                "one": one["tokens_per_second"],
                "many": many["tokens_per_second"],
                "first_one": one["time_to_first_token_ms"],
                "first_many": many["time_to_first_token_ms"],
                "between_many": many["time_between_tokens_ms"],
                "different": many.get("different_texts", "–"),
                "start": round(server.seconds, 2),
                "idle_mb": round(idle),
                "busy_mb": round(resident_mb(server.process.pid)),
                "file_mb": round(sum(pathlib.Path(file).stat().st_size for file in files) / 1e6, 1),
            }

    def load(self, server, name, what, options):
        """The figures of one run of the clients."""
        out = self.folder / "logs" / f"load-{name}-{what}.json"
        text = ["--text", str(ROOT / "benchmarks" / "serving.py")]
        command = [sys.executable, "serving/load_test.py", server.url, server.model, *options, *text, "--json", out]
        run(command, self.folder / "logs" / f"load-{name}-{what}.log", self.arguments.threads)
        return json.loads(out.read_text())


class Server:
    """A process that answers.

    Args:
        process: the `subprocess.Popen`.
        url, model: where, and as what.
        seconds: from its start to its first answer.
    """

    def __init__(self, process, url, model, seconds):
        self.process, self.url, self.model, self.seconds = process, url, model, seconds


@contextlib.contextmanager
def serving(name, python, path, log, threads):
    """A contestant's server, until the block's end."""
    port, other = free_ports(2)
    if name == "tfgpt":
        options = ["--engine", "onnx", "--variant", VARIANTS[name], "--threads", threads]
        ports = ["--rest_port", port, "--grpc_port", other]
        command, model = [python, "-m", "tfgpt.cli", "serve", path, *options, *ports], pathlib.Path(path).name
    else:
        options = ["--n_threads", threads, "--n_threads_batch", threads, "--n_ctx", 0, "--flash_attn", "true"]
        options += ["--interrupt_requests", "false"]  # or a new request ends the one that is being answered
        command = [python, "-m", "llama_cpp.server", "--model", path, "--port", port, "--model_alias", "m", *options]
        model = "m"
    url, start = f"http://127.0.0.1:{port}", time.monotonic()
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [str(part) for part in command], cwd=ROOT, env=environment(threads), stdout=output, stderr=output
        )
        try:
            wait(process, f"{url}/v1/models", log, start)
            yield Server(process, url, model, time.monotonic() - start)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait(process, url, log, start):
    """Returns when the server answers."""
    while time.monotonic() - start < WAIT:
        if process.poll() is not None:
            raise ProcessFailed(last_words(log, process.returncode))
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.02)
    raise ProcessFailed(f"no answer within {WAIT} s")


def free_ports(count):
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def resident_mb(pid):
    """Resident memory of a process, in 10^6 bytes."""
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def write(rows, pythons, arguments, folder):
    """Writes the table of the best round of each."""
    best = {}
    for row in rows:
        if row["name"] not in best or row["many"] > best[row["name"]]["many"]:
            best[row["name"]] = row
    columns = {
        "one": "1 client, tokens/s",
        "many": f"{arguments.clients} clients, tokens/s",
        "first_many": "… first token, ms",
        "between_many": "… between tokens, ms",
        "different": "… other texts",
        "start": "start, s",
        "file_mb": "files, MB",
        "idle_mb": "idle, MB",
        "busy_mb": "after, MB",
    }
    table = report.markdown_table(
        ["", *columns.values()], [[row["name"], *(str(row[key]) for key in columns)] for row in best.values()]
    )
    about = report.machine()
    notes = f"""
    {arguments.size} with random weights; prompts of 16 to 256 tokens, 64 new tokens, greedy and streamed;
    {arguments.requests} requests; {arguments.threads} threads, which the clients share; {arguments.rounds}
    alternating rounds, that with the most tokens/s under load. Other texts: those that are not what the prompt gave
    alone. Start: to the first answer. Memory: resident.
    """
    versions = [{"versions": pythons[name][1]} for name in pythons]
    (folder / "serving.md").write_text(table + report.paragraphs(notes) + report.on_what(versions, about) + "\n")
    report.write_json(folder / "serving.json", {"about": about, "rows": rows})
    print(f"\n{table}\n{folder / 'serving.md'}, .json")


if __name__ == "__main__":
    main()
