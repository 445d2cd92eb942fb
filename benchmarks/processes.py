"""Processes of a benchmark: which Python has whose packages, and what a command takes.

The harness stays small, and imports nothing big before its last process has ended: on Linux the peak memory reported of
a child is never less than what its parent held when it started it.
"""

import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TIMEOUT = 3600  # seconds; a process that hangs is not to stop the others

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)

VERSIONS = """
import importlib.metadata, json, sys
versions = {}
for name in sys.argv[1:]:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(versions))
"""


class ProcessFailed(Exception):
    """A process of the benchmark did not end well; the message is its last words."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """A process that ended well.

    Args:
        seconds: from its start to its end.
        peak_mb: the most memory that it, or a child that it waited for, held at once, in 10^6 bytes.
    """

    seconds: float
    peak_mb: float


def run(command, log, threads, timeout=TIMEOUT):
    """Runs a command in the root of the repository, with its output in the file `log`.

    Raises:
        ProcessFailed: if it fails, or takes longer than `timeout` seconds.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command], cwd=ROOT, env=environment(threads), stdout=output, stderr=output
        )
        deadline = threading.Timer(timeout, process.kill)
        deadline.start()
        try:
            # wait4 gives the resources of this one process; Popen.wait would take them away.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            late = not deadline.is_alive()
            deadline.cancel()
            if process.returncode is None:  # Ctrl-C
                process.kill()
                process.wait()
        seconds = time.perf_counter() - start
    if process.returncode:
        reason = f"still running after {timeout} s" if late else last_words(log, process.returncode)
        raise ProcessFailed(f"{reason} (see {_relative(log)})")
    return Finished(seconds, peak_mb(usage))


def _relative(path):
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def last_words(log, returncode):
    """The last line that a process wrote, or what killed it."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if returncode < 0:
        return f"killed by signal {-returncode}"
    return lines[-1].strip()[:200] if lines else f"exit code {returncode}"


def environment(threads):
    """What every contestant runs under: so many threads, no GPU, no network."""
    return {
        **os.environ,
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TOKENIZERS_PARALLELISM": "false",
    }


def peak_mb(usage):
    """The peak memory in a `resource.struct_rusage`, in 10^6 bytes."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def own_peak_mb():
    """The peak memory of this process so far, in 10^6 bytes."""
    return peak_mb(resource.getrusage(resource.RUSAGE_SELF))


def find_pythons(needs, pythons):
    """For each name the Python that has the distributions it needs, and their versions.

    Args:
        needs: from names to tuples of distributions.
        pythons: paths, the preferred one first.

    Returns:
        From names to (python, {distribution: version}); those that none of them can run are left out.
    """
    distributions = sorted({distribution for needed in needs.values() for distribution in needed})
    found = {}
    for python in pythons:
        # Not resolved: a virtual environment's python is a link whose place says which environment it is.
        python = os.path.abspath(python)
        # -I: without what happens to lie in the current directory.
        command = [python, "-I", "-c", VERSIONS, *distributions]
        try:
            versions = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"{python} cannot be run, expected a Python of peers: {error}") from error
        for name, needed in needs.items():
            if set(needed) <= set(versions):
                found.setdefault(name, (python, {distribution: versions[distribution] for distribution in needed}))
    return found
