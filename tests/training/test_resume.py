import csv
import dataclasses
import json
import math
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

from tfgpt.errors import UserError
from tfgpt.models import GPT2CausalLM
from tfgpt.text import CharacterTokenizer, prepare
from tfgpt.training import language_modeling
from tfgpt.training.callbacks import Checkpoints, EarlyStopping, read_rows
from tfgpt.training.resume import as_begun, is_unfinished
from tfgpt.training.run_config import RunConfig
from tfgpt.training.trainer import RunObserver, train

TEXT = "the quick brown fox jumps over the lazy dog and the dog sleeps on. " * 60


class Watcher(RunObserver):
    """Keeps the notes; ends the process, as far as a test can, at a step."""

    def __init__(self, last_step=math.inf):
        self.last_step, self.notes = last_step, []

    def row(self, row):
        if "loss" in row and row["step"] >= self.last_step:
            raise KeyboardInterrupt

    def note(self, text):
        self.notes.append(text)


def config(out, **fields):
    text = pathlib.Path(out).parent / "foxes.txt"
    text.write_text(TEXT)
    defaults = {
        "preset": "gpt2-test",
        "tokenizer": "character",
        "steps": 40,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 5,
        "evaluate_every": 20,
        "log_every": 5,
        "validation_batches": 2,
        "sample_tokens": 8,
        "initializer_range": 0.1,
        "dropout": 0.1,
        "patience": 5,
        "checkpoint_every": 10,
        "tensorboard": False,
        "compile": "none",
    }
    return RunConfig(data=[str(text)], out=str(out), **(defaults | fields))


def broken_off(out, step, **fields):
    with pytest.raises(KeyboardInterrupt):
        train(config(out, **fields), Watcher(step))


def outcome(out):
    """All that a finished run leaves, but for the time it took; the optimizer's variables, too."""
    training = out / "training"
    with open(training / "metrics.csv") as file:
        rows = [
            {name: value for name, value in row.items() if name not in ("seconds", "tokens_per_second")}
            for row in csv.DictReader(file)
        ]
    summary = json.loads((training / "summary.json").read_text())
    for name in ("directory", "tokens_per_second"):
        summary.pop(name)
    files = ["model.safetensors", "training/last/model.safetensors"]
    files += [f"training/checkpoints/000040/{name}.safetensors" for name in ("model", "optimizer")]
    samples = (training / "samples.txt").read_text() if summary["samples"] else ""
    return rows, summary, samples, *((out / name).read_bytes() for name in files)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A whole run."""
    out = tmp_path_factory.mktemp("unbroken") / "model"
    train(config(out))
    return out


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The same run, ended in step 35, with checkpoints of steps 20 and 30."""
    out = tmp_path_factory.mktemp("ended") / "model"
    broken_off(out, 35)
    assert sorted(path.name for path in (out / "training" / "checkpoints").iterdir()) == ["000020", "000030"]
    return out


@pytest.fixture
def unfinished(ended, tmp_path):
    """A copy of it."""
    shutil.copytree(ended, tmp_path / "model")
    (tmp_path / "foxes.txt").write_text(TEXT)
    return tmp_path / "model"


def continued(out, data, **fields):
    """The configuration that continues `ended` in a copy."""
    return dataclasses.replace(config(out, **fields), data=[str(data.parent / "foxes.txt")])


# === Bit for bit ===


def test_a_continued_run_is_the_unbroken_one(unbroken, unfinished, ended):
    watcher = Watcher()
    train(continued(unfinished, ended), watcher)
    assert watcher.notes == [f"the run in {unfinished} goes on after step 30"]
    assert outcome(unfinished) == outcome(unbroken)
    rows = list(csv.DictReader((unfinished / "training" / "metrics.csv").open()))
    seconds = [float(row["seconds"]) for row in rows]
    assert len(rows) == 10 and seconds == sorted(seconds)


def test_a_torn_checkpoint_is_left_for_the_one_before(unbroken, unfinished, ended):
    weights = unfinished / "training" / "checkpoints" / "000030" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    watcher = Watcher()
    train(continued(unfinished, ended), watcher)
    assert "000030 is damaged, so the run goes on from 000020" in watcher.notes[0]
    assert watcher.notes[1].endswith("goes on after step 20")
    assert outcome(unfinished) == outcome(unbroken)


@pytest.mark.parametrize(
    "fields",
    [
        {"compile": "step", "steps_per_execution": 1},
        {"compile": "step", "precision": "bfloat16_products"},
        {"compile": "kernels", "precision": "mixed_bfloat16", "recompute": True, "dropout": 0.0},
        {"precision": "mixed_bfloat16"},
        {"precision": "mixed_float16", "compile": "step"},
        {"ema_decay": 0.9, "sample_tokens": 8},
        {"accumulate_steps": 2, "log_gradients": True},  # the noise scale's moving average, too
        {"optimizer": "muon", "schedule": "wsd", "z_loss": 1e-4, "label_smoothing": 0.1},
    ],
)
def test_other_arrangements_continue_bit_for_bit(tmp_path, fields):
    fields = {"sample_tokens": 0} | fields
    train(config(tmp_path / "whole", **fields))
    broken_off(tmp_path / "parts", 25, **fields)
    train(config(tmp_path / "parts", **fields))
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


@pytest.fixture
def mixture(tmp_path):
    """Fields of a run on two prepared data sets."""
    (tmp_path / "foxes.txt").write_text(TEXT)
    (tmp_path / "more.txt").write_text(TEXT[::-1])
    options = {"workers": 1, "validation_fraction": 0.2}
    prepare([str(tmp_path / "foxes.txt")], tmp_path / "foxes", "character", **options)
    prepare([str(tmp_path / "more.txt")], tmp_path / "more", str(tmp_path / "foxes"), **options)
    return {"data": [str(tmp_path / "foxes"), str(tmp_path / "more")], "data_weights": [0.7, 0.3], "sample_tokens": 0}


def test_a_mixture_of_prepared_data_continues_bit_for_bit(tmp_path, mixture):
    train(dataclasses.replace(config(tmp_path / "whole"), **mixture))
    parts = dataclasses.replace(config(tmp_path / "parts"), **mixture)
    with pytest.raises(KeyboardInterrupt):
        train(parts, Watcher(25))
    train(parts)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_prepared_data_that_were_made_anew_are_refused(tmp_path, mixture):
    run = dataclasses.replace(config(tmp_path / "model"), **mixture)
    with pytest.raises(KeyboardInterrupt):
        train(run, Watcher(5))
    (tmp_path / "more.txt").write_text(TEXT)
    prepare([str(tmp_path / "more.txt")], tmp_path / "more", str(tmp_path / "foxes"), workers=1, overwrite=True)
    with pytest.raises(UserError, match="^.*/more was prepared anew, expected the tokens .*--overwrite starts anew$"):
        train(run)
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(run, overwrite=True), Watcher(5))


def test_a_run_that_ended_in_its_last_evaluation_takes_no_more_steps(unbroken, unfinished, ended, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(language_modeling, "evaluate_tokens", killed)
        with pytest.raises(KeyboardInterrupt):
            train(continued(unfinished, ended))
    assert not (unfinished / "training" / "summary.json").exists()
    watcher = Watcher(0)  # any row would end it
    train(continued(unfinished, ended), watcher)
    assert outcome(unfinished) == outcome(unbroken)
    with pytest.raises(UserError, match="holds a model already"):
        train(continued(unfinished, ended))


def test_the_best_weights_are_written_though_the_process_ended_before_them(tmp_path, monkeypatch):
    def killed(self):
        raise KeyboardInterrupt

    out = tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save_best", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config(out))
    assert not (out / "config.json").exists()
    broken_off(out, 25)
    kept = safetensors.numpy.load_file(out / "training" / "checkpoints" / "000020" / "model.safetensors")
    best = GPT2CausalLM.from_preset(out).backbone.token_embedding.get_weights()[0]
    np.testing.assert_array_equal(best, kept["0000.embeddings"])


def test_a_full_disk_costs_no_checkpoint(unbroken, unfinished, ended, monkeypatch):
    from tfgpt.training import run_state

    def full(tensors, path):
        path.write_bytes(b"half")
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(run_state.safetensors.numpy, "save_file", full)
        with pytest.raises(UserError, match=r"cannot write .*000040: .*No space left.*goes on from .*000030$") as error:
            train(continued(unfinished, ended))
    assert "\n" not in str(error.value)
    assert not list(unfinished.rglob(".*partial*"))
    train(continued(unfinished, ended))
    assert outcome(unfinished) == outcome(unbroken)


# === What is refused ===


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_layers": 3}, "num_layers is 3, expected None as in the unfinished run"),
        ({"batch_size": 8}, "batch_size is 8, expected 4 as in the unfinished run"),
        ({"tokenizer": "bpe"}, "tokenizer is 'bpe', expected 'character'"),
        ({"steps": 80}, "steps is 80, expected 40"),
        ({"evaluate_every": 10}, "evaluate_every is 10, expected 20"),
        ({"log_every": 10, "steps_per_execution": 5}, "log_every is 10, expected 5"),
        ({"seed": 1}, "seed is 1, expected 0"),
        ({"learning_rate": 2e-2}, "learning_rate is 0.02, expected 0.01"),
    ],
)
def test_another_configuration_is_refused_by_name(unfinished, ended, fields, message):
    with pytest.raises(UserError, match=f"^{message}.*; --overwrite starts anew$") as error:
        is_unfinished(continued(unfinished, ended, **fields))
    assert "\n" not in str(error.value)


def test_other_data_is_refused(unfinished):
    with pytest.raises(UserError, match=r"^data is \[.*foxes.txt'\], expected \[.*foxes.txt'\] as in the unfinished"):
        is_unfinished(config(unfinished))


def test_auto_goes_on_as_the_run_began(unbroken, tmp_path):
    # On this machine auto would have it compiled.
    begun = {"precision": "float32", "compile": "none"}
    broken_off(tmp_path / "model", 25, **begun)
    for name, other, stored in [("precision", "mixed_bfloat16", "float32"), ("compile", "step", "none")]:
        with pytest.raises(UserError, match=f"^{name} is '{other}', expected '{stored}' as in the unfinished run"):
            train(config(tmp_path / "model", **begun | {name: other}))
    auto = config(tmp_path / "model", precision="auto", compile="auto")
    assert is_unfinished(auto)
    assert (as_begun(auto).precision, as_begun(auto).compile) == ("float32", "none")
    train(auto)
    assert outcome(tmp_path / "model")[3:] == outcome(unbroken)[3:]
    stored = json.loads((tmp_path / "model" / "training" / "config.json").read_text())
    assert (stored["precision"], stored["compile"]) == ("float32", "none")


def test_what_changes_no_weight_may_change(unfinished, ended):
    assert is_unfinished(continued(unfinished, ended, keep_checkpoints=5, checkpoint_every=5, tensorboard=True))
    assert not is_unfinished(continued(unfinished, ended, overwrite=True, seed=1))


def test_corrupted_shards_are_named(unfinished, ended):
    shard = unfinished / "training" / "tokens" / "train-00000.npy"
    contents = bytearray(shard.read_bytes())
    contents[-1] ^= 1
    shard.write_bytes(contents)
    with pytest.raises(UserError, match="train-00000.npy has changed: found SHA-256"):
        train(continued(unfinished, ended))


def test_another_tokenizer_is_refused(unfinished, ended):
    CharacterTokenizer.train(["other letters"]).save(unfinished / "training" / "tokenizer")
    with pytest.raises(UserError, match="was written with another tokenizer"):
        train(continued(unfinished, ended))


def test_a_finished_run_and_a_model_without_state_are_refused(unbroken, unfinished, ended):
    before = (unbroken / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="holds a model already, expected a new directory or --overwrite"):
        train(config(unbroken))
    assert (unbroken / "model.safetensors").read_bytes() == before
    shutil.rmtree(unfinished / "training" / "checkpoints")
    with pytest.raises(UserError, match="holds a model already"):
        is_unfinished(continued(unfinished, ended))


def test_a_summary_of_an_interrupted_run_does_not_finish_it(unfinished, ended):
    summary = unfinished / "training" / "summary.json"
    summary.write_text('{"interrupted": true}')
    assert is_unfinished(continued(unfinished, ended))
    summary.write_text('{"interrupted": false}')
    with pytest.raises(UserError, match="holds a model already"):
        is_unfinished(continued(unfinished, ended))


def test_overwriting_starts_anew(unfinished, ended):
    (unfinished / "training" / "checkpoints" / ".000035.x.partial").mkdir()
    watcher = Watcher(5)
    with pytest.raises(KeyboardInterrupt):
        train(continued(unfinished, ended, overwrite=True, seed=1), watcher)
    assert watcher.notes == []
    assert [path.name for path in (unfinished / "training" / "checkpoints").iterdir()] == ["000000"]
    assert not (unfinished / "config.json").exists()
    assert not list(unfinished.rglob(".*partial*"))


# === Pieces ===


def test_early_stopping_goes_on_waiting():
    class Model:
        stop_training = False

    def waits(losses, state=None):
        callback = EarlyStopping(patience=2, score=lambda logs: logs["val_loss"])
        callback.set_model(Model())
        if state:
            callback.restore(json.loads(json.dumps(state)), 0)
        for loss in losses:
            callback.on_epoch_end(0, {"loss": 1.0} if loss is None else {"val_loss": loss})
        return callback

    assert waits([3.0, None, 2.0, 2.5]).state() == {"best_score": 2.0, "waited": 1}
    assert not waits([3.0, 2.0, 2.5, 1.9, 1.95]).stopped
    first = waits([3.0, 2.0, 2.5])
    assert not first.stopped and not first.model.stop_training
    second = waits([2.1], first.state())
    assert second.stopped and second.model.stop_training
    assert not waits([1.9, 2.0], first.state()).stopped
    assert waits([], second.state()).stopped  # ended after its checkpoint
    assert waits([]).state() == {"best_score": None, "waited": 0}


def test_rows_that_were_written_in_part_are_left_out(tmp_path):
    header = "step,loss,validation_loss,learning_rate,tokens_per_second,seconds\n"
    rows = "5,2.5,,0.1,100,1\n5,,2.75,,,2\n10,2.25,,0.1,100,3\n1"
    (tmp_path / "metrics.csv").write_text(header + rows)
    read = read_rows(tmp_path / "metrics.csv", 5)
    assert [(row["step"], row.get("loss"), row.get("validation_loss")) for row in read] == [
        (5, 2.5, None),
        (5, None, 2.75),
    ]
    assert len(read_rows(tmp_path / "metrics.csv", 100)) == 3
    assert read_rows(tmp_path / "none.csv", 5) == []


# === Signals ===


@pytest.mark.slow
def test_sigterm_leaves_a_run_that_goes_on(tmp_path):
    (tmp_path / "foxes.txt").write_text(TEXT)
    command = [sys.executable, "-m", "tfgpt.cli", "train", "--data", "foxes.txt", "--out", "model"]
    command += ["--preset", "gpt2-test", "--tokenizer", "character", "--steps", "1000000", "--no_tensorboard"]
    steps, root = [], pathlib.Path(__file__).resolve().parents[2]
    for turn in range(2):
        with open(tmp_path / f"log{turn}", "w") as log:
            environment = {"PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, env=environment)
            metrics, before = tmp_path / "model" / "training" / "metrics.csv", steps[-1] if steps else 0
            deadline = time.monotonic() + 300
            try:
                while not (metrics.exists() and max([0, *(r["step"] for r in read_rows(metrics, 1e9))]) > before):
                    assert process.poll() is None and time.monotonic() < deadline, (tmp_path / f"log{turn}").read_text()
                    time.sleep(0.1)
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=300) == 143, (tmp_path / f"log{turn}").read_text()
            finally:
                process.kill()
        said = (tmp_path / f"log{turn}").read_text()
        assert "Traceback" not in said
        newest = max((tmp_path / "model" / "training" / "checkpoints").iterdir())
        steps.append(json.loads((newest / "state.json").read_text())["step"])
        assert (
            f"terminated after step {steps[-1]}: the same command continues from {newest.relative_to(tmp_path)}" in said
        )
        assert len(read_rows(metrics, 1e9)) * 10 >= steps[-1]
    assert f"the run in model goes on after step {steps[0]}" in said
    assert steps[1] > steps[0]
