"""Several workers on one machine: a process each, with `TF_CONFIG` and a free port of the loopback device."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading

from tfgpt.errors import UserError

GRACE_SECONDS = 30  # between SIGTERM and SIGKILL, as in Kubernetes
KEPT_LINES = 40  # of what a worker other than the first says
USER_ERROR = 2


def launch_workers(command, workers, restarts=0, grace_seconds=GRACE_SECONDS):
    """Runs `tfgpt COMMAND` as a cluster of workers, and waits for all of them.

    The first worker is the chief, and its output is the run's. What another worker says is shown when it fails and the
    chief does not tell the same. When one fails, the others, who would wait for it forever, are ended. SIGINT and
    SIGTERM go on to every worker.

    Args:
        command: arguments of `tfgpt`, such as ["train", "--data", ...].
        workers: how many.
        restarts: how often the group is started anew after a worker was lost. Bad input and signals to the launcher
            restart nothing.
        grace_seconds: from SIGTERM to SIGKILL.

    Returns:
        The exit code: 0, or that of the first worker that failed (128 + its number for a signal, as in a shell).
    """
    if not command:
        raise UserError(
            "launch has nothing to run, expected a command after --, as in: tfgpt launch --workers 2 -- train"
        )
    if workers < 1 or restarts < 0:
        raise UserError(f"found {workers} workers and {restarts} restarts, expected at least 1 and 0")
    for restart in range(restarts + 1):
        group = _Group(command, workers, grace_seconds)
        code = group.run()
        if code in (0, USER_ERROR) or group.signalled or restart == restarts:
            return code
        print(f"tfgpt: {group.loss}; restart {restart + 1} of {restarts}", file=sys.stderr, flush=True)


class _Group:
    """One life of a cluster.

    Args:
        command, workers, grace_seconds: as in `launch_workers`.
    """

    def __init__(self, command, workers, grace_seconds):
        self.command, self.workers, self.grace_seconds = command, workers, grace_seconds
        self.signalled = False
        self.loss = None  # a sentence about the worker that failed first

    def run(self):
        ended = queue.Queue()
        with self._signals_passed_on():
            self._processes = []
            try:
                for index, environment in enumerate(cluster_environments(self.workers)):
                    self._processes.append(self._start(index, environment, ended))
                code = self._wait(ended)
            finally:
                self._end()
        return code

    def _start(self, index, environment, ended):
        quiet = index > 0
        process = subprocess.Popen(
            [sys.executable, "-m", "tfgpt.cli", *self.command],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if quiet else None,
            stderr=subprocess.STDOUT if quiet else None,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C comes by way of the launcher, once
        )
        process.lines = collections.deque(maxlen=KEPT_LINES)

        def watch():
            if quiet:
                process.lines.extend(process.stdout)
            ended.put((index, process.wait()))

        process.watcher = threading.Thread(target=watch, daemon=True)
        process.watcher.start()
        return process

    def _wait(self, ended):
        for _ in range(self.workers):
            index, status = _get(ended)
            if status == 0:
                continue
            code = 128 - status if status < 0 else status
            reason = f"signal {-status}" if status < 0 else f"exit code {status}"
            self.loss = f"worker {index} was lost ({reason})"
            if index > 0 and not self.signalled:
                self._show(index, code)
            return code
        return 0

    def _show(self, index, code):
        """Prints what a worker said, unless it is a mistake in the command, which the chief finds as well."""
        if code == USER_ERROR:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if self._processes[0].wait(timeout=self.grace_seconds) == USER_ERROR:
                    return
        for line in self._processes[index].lines:
            print(f"[worker {index}] {line.rstrip()}", file=sys.stderr)

    def _end(self):
        for number, timeout in ((signal.SIGTERM, self.grace_seconds), (signal.SIGKILL, None)):
            running = [process for process in self._processes if process.poll() is None]
            for process in running:
                _signal(process, number)
            for process in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout)

    @contextlib.contextmanager
    def _signals_passed_on(self):
        def pass_on(number, frame):
            self.signalled = True
            for process in self._processes:
                _signal(process, number)

        previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def cluster_environments(workers):
    """The variables to set for each worker of a cluster on this machine.

    Example:

    >>> [first, second] = cluster_environments(2)
    >>> json.loads(second["TF_CONFIG"])["task"]
    {'type': 'worker', 'index': 1}
    """
    with contextlib.ExitStack() as stack:  # all are open at once, so that no two get the same port
        sockets = [stack.enter_context(socket.socket()) for _ in range(workers)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    cluster = {"worker": addresses}
    return [
        {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})}
        for index in range(workers)
    ]


def _get(ended):
    while True:  # a wait without end would hold signals back on some platforms
        with contextlib.suppress(queue.Empty):
            return ended.get(timeout=0.2)


def _signal(process, number):
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
