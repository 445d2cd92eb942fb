"""What a run with everything switched on leaves to look at: CSV, TensorBoard, Weights & Biases."""

import csv
import importlib.util
import json

import numpy as np
import pytest

from tfgpt.errors import UserError
from tfgpt.models import GPT2CausalLM
from tfgpt.training.run_config import RunConfig
from tfgpt.training.trainer import train

TEXT = "the quick brown fox jumps over the lazy dog and the dog sleeps on. " * 120

LAYERS = ["token_embedding", "position_embedding", "block_0", "final_norm"]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "foxes.txt"
    path.write_text(TEXT)
    return path


def small(text_file, out, **fields):
    defaults = {"preset": "gpt2-test", "tokenizer": "character", "steps": 20, "batch_size": 8, "learning_rate": 3e-3}
    defaults |= {"warmup_steps": 2, "evaluate_every": 10, "log_every": 5, "validation_batches": 2, "sample_tokens": 0}
    defaults |= {"num_layers": 1, "compile": "none"}
    return RunConfig(data=[str(text_file)], out=str(out), initializer_range=0.1, **(defaults | fields))


@pytest.fixture(scope="module")
def seen(text_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("seen") / "model"
    fields = {"optimizer": "muon", "schedule": "wsd", "accumulate_steps": 2, "ema_decay": 0.8, "label_smoothing": 0.1}
    fields |= {"z_loss": 1e-4, "log_gradients": True, "measure_peak": True, "precision": "mixed_float16"}
    return out, train(small(text_file, out, sample_tokens=4, **fields))


def rows(out):
    return list(csv.DictReader((out / "training" / "metrics.csv").open()))


def test_the_record_has_every_measure(seen):
    out, result = seen
    training = [row for row in rows(out) if row["loss"]]
    assert [row["step"] for row in training] == ["5", "10", "15", "20"]
    for row in training:
        norms = [float(row[f"gradient_norm/{layer}"]) for layer in LAYERS]
        # Means over steps of the norms of parts and of the whole: as each step's, but for the mean of the roots.
        assert float(row["gradient_norm"]) == pytest.approx(np.sqrt(np.sum(np.square(norms))), rel=0.05)
        assert float(row["utilization"]) > 0
        assert float(row["loss_scale"]) == 2.0 ** (15 - int(row["skipped_steps"]))
        float(row["noise_scale"])
    summary = json.loads((out / "training" / "summary.json").read_text())
    assert summary["utilization"] == result.utilization > 0
    assert summary["peak"] == result.peak > 1e8


def test_tensorboard_has_it_too(seen):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, _ = seen
    events = EventAccumulator(str(out / "training" / "tensorboard"), {"tensors": 0})
    tags = set(events.Reload().Tags()["tensors"])
    scalars = {"loss", "validation_loss", "learning_rate", "tokens_per_second", "loss_scale", "noise_scale"}
    assert scalars | {"utilization", "gradient_norm", "sample"} <= tags
    assert {f"gradient_norm/{layer}" for layer in LAYERS} <= tags
    model = GPT2CausalLM.from_preset(out)
    histograms = {tag for tag in tags if tag.startswith("weights/")}
    assert len(histograms) == len(model.trainable_variables)
    [first, last] = events.Tensors("loss")[0], events.Tensors("loss")[-1]
    assert (first.step, last.step) == (5, 20)
    logged = float(np.frombuffer(last.tensor_proto.tensor_content or b"", "float32")[0])
    assert logged == pytest.approx(float([row for row in rows(out) if row["loss"]][-1]["loss"]), rel=1e-4)


def test_a_run_that_asks_for_nothing_has_the_plain_record(text_file, tmp_path):
    train(small(text_file, tmp_path / "model"))
    assert list(rows(tmp_path / "model")[0]) == [
        *("step", "loss", "validation_loss", "learning_rate", "tokens_per_second", "seconds")
    ]


def test_the_average_is_evaluated_and_written_and_training_never_sees_it(text_file, tmp_path):
    plain, averaged = tmp_path / "plain", tmp_path / "averaged"
    train(small(text_file, plain))
    result = train(small(text_file, averaged, ema_decay=0.8))
    weights = {
        name: GPT2CausalLM.from_preset(path).get_weights()
        for name, path in {"raw": plain / "training/last", "last": averaged / "training/last", "ema": averaged}.items()
    }
    for raw, last, ema in zip(*weights.values(), strict=True):
        np.testing.assert_allclose(last, raw, rtol=1e-4, atol=1e-5)  # threads may add in another order
        assert np.abs(ema - raw).max() > 1e-4
    # The validation losses of the record and the result are of the weights that were written.
    from tfgpt.text import TokenShards
    from tfgpt.training.evaluation import evaluate_tokens

    split = TokenShards.open(averaged / "training" / "tokens").split("validation")
    tokens = split.read(0, split.num_tokens)
    again = evaluate_tokens(GPT2CausalLM.from_preset(averaged), tokens, split.num_bytes, stride=32)
    assert again.loss == pytest.approx(result.loss, rel=1e-5)
    validation = [[row["validation_loss"] for row in rows(out) if row["validation_loss"]] for out in (plain, averaged)]
    assert validation[0] != validation[1]


def test_wandb_that_is_missing_is_said_before_anything_is_done(text_file, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find_spec(name))
    with pytest.raises(UserError, match=r"not installed, expected pip install 'tfgpt\[wandb\]'"):
        train(small(text_file, tmp_path / "model", wandb="foxes"))
    assert not (tmp_path / "model").exists()


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed (the extra `wandb`)")
def test_wandb_offline(text_file, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    fields = {"log_gradients": True, "sample_tokens": 4}
    train(small(text_file, tmp_path / "model", wandb="foxes", **fields))
    [log] = (tmp_path / "model" / "training").rglob("run-*.wandb")
    keys = set()
    for data in _records(log.read_bytes()):
        from wandb.proto import wandb_internal_pb2

        record = wandb_internal_pb2.Record.FromString(data)
        keys |= {item.key or "/".join(item.nested_key) for item in record.history.item}
    assert {"loss", "validation_loss", "learning_rate", "tokens_per_second", "gradient_norm"} <= keys
    assert any(key.startswith("sample") for key in keys)
    assert any(key.startswith("weights/") for key in keys)


def _records(data, block=32768):
    """The records of a .wandb file: a LevelDB log, whose records come in fragments of (crc, length, type, bytes)."""
    place, whole = 7, b""  # past wandb's own header
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the only fragment, or the last
            yield whole
            whole = b""
