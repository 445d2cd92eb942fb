"""The training benchmark: what its processes measure and refuse, and its command line."""

import argparse
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import report, training
from benchmarks.processes import ROOT, ProcessFailed
from benchmarks.trainers import SHAPES, measure, token_batches

TINY = SHAPES["tiny"]


def trainer_with_losses(losses, calls):
    losses = iter(losses)

    def train(batches):
        calls.append(batches)
        return next(losses)

    return lambda: train


def test_every_trainer_takes_the_same_steps_on_the_same_tokens():
    first, second = [], []
    result = measure(trainer_with_losses([4.0, 3.9, 3.8, 3.7], first), TINY)
    measure(trainer_with_losses([4.0, 3.9, 3.8, 3.7], second), TINY)
    assert [len(batches) for batches in first] == [2, 2, 20, 20]
    assert all(batches.shape[1:] == (2, 17) for batches in first)
    assert all(np.array_equal(a, b) for a, b in zip(first, second)) and not np.array_equal(first[2], first[3])
    assert (result["first_loss"], result["loss"], len(result["block_seconds"])) == (4.0, 3.7, 2)
    assert result["tokens_per_second"] == 20 * 2 * 16 / min(result["block_seconds"])


@pytest.mark.parametrize("last", [math.nan, math.inf, 4.1])
def test_a_loss_that_is_not_finite_or_does_not_fall_fails(last):
    with pytest.raises(SystemExit, match=r"loss went from 4\.000 to .*, expected finite"):
        measure(trainer_with_losses([4.0, 3.9, 3.8, last], []), TINY)


def test_tokens_have_something_to_teach():
    counts = np.bincount(token_batches(np.random.default_rng(0), TINY, 1000).ravel(), minlength=TINY.vocabulary)
    assert counts.shape == (TINY.vocabulary,)
    # Token i has the cubes from i / V to (i + 1) / V.
    expected = np.diff(np.cbrt(np.arange(TINY.vocabulary + 1) / TINY.vocabulary))
    np.testing.assert_allclose(counts / counts.sum(), expected, atol=0.01)


@pytest.fixture
def measure_script(tmp_path, monkeypatch):
    """Measures a trainer whose Python is a shell script."""

    def measure_script(script, free_gb=12.0):
        monkeypatch.setattr(report, "available_memory_gb", lambda: free_gb)
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        arguments = argparse.Namespace(out=tmp_path, threads=2)
        return training.measure(training.TRAINERS[0], python, "tiny", arguments)

    return measure_script


def test_a_trainer_without_enough_memory_is_a_row_and_not_a_failure(measure_script):
    assert measure_script("echo 'terminate: std::bad_alloc'; exit 134") == {"out_of_memory_gb": 11.0}
    with pytest.raises(ProcessFailed, match="something else"):
        measure_script("echo something else; exit 1")
    with pytest.raises(ProcessFailed, match="bad_alloc"):
        measure_script("echo 'std::bad_alloc'; exit 134", free_gb=math.inf)  # no limit was set


def test_tables_compare_with_the_best_peer_and_say_whose_memory_was_refused():
    ours, peer, hungry = (x for x in training.TRAINERS if x.name in ("tfgpt", "torch eager float32", HUNGRY))
    figures = {"first_step_seconds": 5.0, "peak_mb": 900.0, "first_loss": 4.0, "loss": 3.5}
    outcomes = {
        ("tiny", ours.name): [figures | {"tokens_per_second": 300.0}, figures | {"tokens_per_second": 250.0}],
        ("tiny", peer.name): [figures | {"tokens_per_second": 200.0, "peak_mb": 901.0}],
        ("tiny", hungry.name): [{"out_of_memory_gb": 20.4}],
    }
    versions = {x.name: ("python", {}) for x in (ours, peer, hungry)}
    rows = training.describe([ours, peer, hungry], ["tiny", "small"], outcomes, versions)["tiny"]
    assert [training.cells(row) for row in rows] == [
        ["tfgpt", "300", "1.50", "5.0", "900", "4.000", "3.500"],
        ["torch eager float32", "200", "1.00", "5.0", "901", "4.000", "3.500"],
        [HUNGRY, "out of memory at 20 GB", "–", "–", "–", "–", "–"],
    ]


HUNGRY = "keras-hub graph mixed_bfloat16"


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "benchmarks.training", "--shapes", "tiny", "--rounds", "1", "--only", "tfgpt"]
    finished = subprocess.run([*command, "--out", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    [row] = json.loads((tmp_path / "training-tiny.json").read_text())["trainers"]["tiny"]
    # Of the tokens' distribution, which no model can go below but by what a block happens to hold.
    shares = np.diff(np.cbrt(np.arange(TINY.vocabulary + 1) / TINY.vocabulary))
    entropy = -(shares * np.log(shares)).sum()
    assert entropy - 0.2 < row["loss"] < row["first_loss"] < math.log(TINY.vocabulary) + 0.1
    assert row["name"] == "tfgpt" and row["tokens_per_second"] > 0 and row["peak_mb"] > 0
    assert "| tfgpt | " in (tmp_path / "training-tiny.md").read_text()
    assert (tmp_path / "training-tiny.png").read_bytes().startswith(b"\x89PNG")
