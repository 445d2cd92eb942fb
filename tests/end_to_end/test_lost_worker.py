"""A worker of a cluster is killed mid-run: the launcher starts all again, and the run is the unbroken one."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tfgpt.training.callbacks import read_rows

TEXT = "the quick brown fox jumps over the lazy dog and the dog sleeps on. " * 120
OPTIONS = "--preset gpt2-test --tokenizer character --initializer_range 0.1 --dropout 0.1 --batch_size 4 --steps 60"
OPTIONS += " --learning_rate 3e-3 --evaluate_every 20 --log_every 5 --checkpoint_every 5 --validation_batches 2"
OPTIONS += " --sample_tokens 0 --no_tensorboard"


def launch(folder, name):
    command = [sys.executable, "-m", "tfgpt.cli", "launch", "--workers", "2", "--restarts", "3", "--", "train"]
    command += [*OPTIONS.split(), "--data", str(folder / "foxes.txt"), "--out", str(folder / name)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def worker(launcher, index):
    """The process id of a launcher's worker."""
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher.pid and f'"index": {index}' in (path / "environ").read_text():
                return int(path.name)
        except OSError:  # it has ended
            continue
    raise AssertionError(f"there is no worker {index}")


@pytest.mark.slow
def test_a_killed_worker_costs_no_more_than_time(tmp_path):
    (tmp_path / "foxes.txt").write_text(TEXT)
    whole = launch(tmp_path, "whole")
    said = whole.communicate(timeout=420)[0]
    assert whole.returncode == 0, said

    launcher = launch(tmp_path, "killed")
    try:
        metrics, deadline = tmp_path / "killed" / "training" / "metrics.csv", time.monotonic() + 300
        while not any(row["step"] >= 10 for row in read_rows(metrics, 1e9)):
            assert launcher.poll() is None and time.monotonic() < deadline, launcher.communicate()[0]
            time.sleep(0.05)
        os.kill(worker(launcher, 1), signal.SIGKILL)
        said = launcher.communicate(timeout=420)[0]
    finally:
        launcher.send_signal(signal.SIGTERM)
    assert launcher.returncode == 0, said
    assert "restart 1 of 3" in said and "goes on after step" in said, said

    whole, killed = (
        json.loads((tmp_path / name / "training" / "summary.json").read_text()) for name in ("whole", "killed")
    )
    assert whole["steps"] == killed["steps"] == 60
    assert abs(killed["loss"] - whole["loss"]) < 1e-4
    curves = [
        [
            (row["step"], row["loss"])
            for row in read_rows(tmp_path / name / "training" / "metrics.csv", 60)
            if "loss" in row
        ]
        for name in ("whole", "killed")
    ]
    assert [step for step, _ in curves[1]] == list(range(5, 61, 5))
    assert all(abs(a - b) < 1e-4 for (_, a), (_, b) in zip(*curves, strict=True))
