import hashlib
import json
import shutil
import subprocess

import keras
import numpy as np
import pytest
import safetensors.numpy

from tfgpt.errors import UserError
from tfgpt.training import run_state
from tfgpt.training.run_state import (
    DamagedCheckpoint,
    list_checkpoints,
    prune_checkpoints,
    restore_newest,
    restore_state,
    save_state,
)


def make_model(width=3, seed=0, **optimizer):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(width), keras.layers.Dropout(0.5)])
    inner = keras.optimizers.AdamW(1e-2, use_ema=True, **optimizer)
    model.compile(keras.optimizers.LossScaleOptimizer(inner), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def fit(model):
    x = np.random.default_rng(0).normal(size=(8, 2)).astype("float32")
    model.fit(x, np.zeros((8, 3), "float32"), batch_size=4, shuffle=False, verbose=0)


def values(model):
    return [v.numpy().copy() for v in (*model.variables, *model.optimizer.variables)]


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


def test_everything_that_training_changes_comes_back(tmp_path):
    model = make_model()
    before = values(model)
    fit(model)
    kept = values(model)
    # The seed of dropout, the loss scale's counter, moments, averages and the step are among what has changed.
    changed = [
        v.name for v, old in zip((*model.variables, *model.optimizer.variables), before) if (v != old).numpy().any()
    ]
    for name in ("kernel", "seed_generator_state", "step_counter", "iteration", "momentum", "velocity", "average"):
        assert any(name in c for c in changed), changed
    save_state(tmp_path / "000002", model, {"step": 2, "text": "Ω"})
    other = make_model(seed=1)
    assert restore_state(tmp_path / "000002", other) == {"step": 2, "text": "Ω"}
    assert same(values(other), kept)
    fit(model)
    fit(other)
    assert same(values(other), values(model))


def test_the_files_are_readable_by_others(tmp_path):
    model = make_model()
    save_state(tmp_path / "c", model, {})
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "SHA256SUMS",
        "c",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    tensors = safetensors.numpy.load_file(tmp_path / "c" / "model.safetensors")
    np.testing.assert_array_equal(tensors["0000.kernel"], model.layers[0].kernel.numpy())
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "c", capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("OK") == 3


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """A model, the folder of its checkpoints of steps 1 and 2, and its variables at step 1."""
    model, folder = make_model(), tmp_path_factory.mktemp("two")
    save_state(folder / "000001", model, {"step": 1})
    kept = values(model)
    fit(model)
    save_state(folder / "000002", model, {"step": 2})
    return model, folder, kept


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "missing"])
def test_damage_falls_back_to_the_checkpoint_before(two_checkpoints, tmp_path, name, damage):
    model, folder, kept = two_checkpoints
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "000002" / name
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"flip": contents, "cut": contents[:-7], "empty": b""}[damage])
    warnings = []
    path, extra = restore_newest(tmp_path, model, warnings.append)
    assert (path.name, extra) == ("000001", {"step": 1})
    assert same(values(model), kept)
    assert len(warnings) == 1 and "000002 is damaged, so the run goes on from 000001" in warnings[0]
    assert "\n" not in warnings[0]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["000001"]  # the damaged one counts no more


def test_no_whole_checkpoint_is_an_error(tmp_path):
    model = make_model()
    with pytest.raises(UserError, match="has no checkpoint"):
        restore_newest(tmp_path, model, print)
    save_state(tmp_path / "000001", model, {})
    (tmp_path / "000001" / "state.json").write_text("{}")
    with pytest.raises(UserError, match="no whole checkpoint, expected one to continue from .*state.json has changed"):
        restore_newest(tmp_path, model, print)
    assert (tmp_path / "000001").exists()


def test_another_model_is_refused_and_left_as_it_was(tmp_path):
    save_state(tmp_path / "c", make_model(), {})
    wider, plain = make_model(width=4), keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    before = values(wider)
    with pytest.raises(UserError, match=r"has 0000.kernel of shape \(2, 3\), expected \(2, 4\)"):
        restore_state(tmp_path / "c", wider)
    assert same(values(wider), before)
    plain.compile("sgd", "mse")
    plain.optimizer.build(plain.trainable_variables)
    with pytest.raises(UserError, match="has 3 tensors, expected the 2 of this run's configuration; .*0002.state"):
        restore_state(tmp_path / "c", plain)


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    model = make_model()
    save_state(tmp_path / "000001", model, {"step": 1})
    save_file, files = safetensors.numpy.save_file, []

    def full(tensors, path):
        save_file(tensors, path)
        files.append(path)
        if len(files) == 2:
            raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(run_state.safetensors.numpy, "save_file", full)
    for path in ("000001", "000002"):  # the same one again, and another
        files.clear()
        with pytest.raises(UserError, match=f"cannot write .*{path}: .*No space left"):
            save_state(tmp_path / path, model, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]
    assert restore_state(tmp_path / "000001", model) == {"step": 1}


def test_the_newest_are_kept(tmp_path):
    for name in ("000009", "000100", "1000000", "000010", "000050.damaged", ".000200.x.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    prune_checkpoints(tmp_path, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["000100", "1000000"]
    assert not list(tmp_path.glob("*.pruned.partial"))


def test_checksums_are_of_the_whole_files(tmp_path):
    save_state(tmp_path / "c", make_model(), {"a": 1})
    for line in (tmp_path / "c" / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / "c" / name).read_bytes()).hexdigest() == digest
    (tmp_path / "c" / "state.json").write_text(json.dumps({"a": 2}))
    with pytest.raises(DamagedCheckpoint, match="state.json has changed: found SHA-256 .*, expected "):
        restore_state(tmp_path / "c", make_model())
