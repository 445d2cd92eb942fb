import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from tfgpt.errors import UserError
from tfgpt.models import GPT2CausalLM
from tfgpt.training.run_config import RunConfig
from tfgpt.training.trainer import train

TEXT = "the quick brown fox jumps over the lazy dog and the dog sleeps on. " * 120


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "foxes.txt"
    path.write_text(TEXT)
    return path


def small(text_file, out, **fields):
    defaults = {
        "preset": "gpt2-test",
        "tokenizer": "character",
        "steps": 60,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "warmup_steps": 5,
        "evaluate_every": 20,
        "log_every": 5,
        "validation_batches": 2,
        "sample_tokens": 8,
        "initializer_range": 0.1,
    }
    return RunConfig(data=[str(text_file)], out=str(out), **(defaults | fields))


@pytest.fixture(scope="module")
def run(text_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "model"
    return out, train(small(text_file, out))


def test_the_loss_falls_far_below_chance(run):
    _, result = run
    assert result.steps == 60
    assert result.loss < 2.0  # chance over 28 characters is 3.3


def test_the_directory_holds_what_the_house_says(run):
    out, _ = run
    names = {path.name for path in out.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "model.safetensors",
        "training",
    } == names
    training = {path.name for path in (out / "training").iterdir()}
    assert {"config.json", "metrics.csv", "summary.json", "samples.txt", "loss.png", "tokens", "last"} <= training
    assert (out / "training" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "training" / "tensorboard").glob("events.out.tfevents.*"))


def test_metrics_have_a_row_an_interval_and_agree_with_the_summary(run):
    out, result = run
    rows = list(csv.DictReader((out / "training" / "metrics.csv").open()))
    losses = [row for row in rows if row["loss"]]
    assert [int(row["step"]) for row in losses] == list(range(5, 61, 5))
    assert [int(row["step"]) for row in rows if row["validation_loss"]] == [20, 40, 60]
    assert float(losses[-1]["loss"]) < float(losses[0]["loss"])
    assert json.loads((out / "training" / "summary.json").read_text())["loss"] == result.loss


def test_the_loss_of_each_row_is_that_of_its_own_steps(text_file, tmp_path):
    # One step a row: Keras' running means must come apart into single losses, found here by a loop of our own.
    from tfgpt.text import TokenShards, training_windows
    from tfgpt.training.optimizer import make_optimizer

    config = small(text_file, tmp_path / "model", steps=4, evaluate_every=4, log_every=1, warmup_steps=0)
    train(config)
    rows = list(csv.DictReader((tmp_path / "model" / "training" / "metrics.csv").open()))
    keras.utils.set_random_seed(config.seed)
    model = GPT2CausalLM.from_preset(tmp_path / "model", load_weights=False)
    optimizer = make_optimizer(config, model.trainable_variables)
    split = TokenShards.open(tmp_path / "model" / "training" / "tokens").split("train")
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for row, batch in zip(rows, training_windows(split, 32, 8, config.seed).take(4), strict=False):
        loss = float(model.train_on_batch(*batch))
        assert float(row["loss"]) == pytest.approx(loss, rel=1e-3)
        model.reset_metrics()


def test_the_model_directory_gives_the_loss_that_was_reported(run):
    from tfgpt.text import TokenShards
    from tfgpt.training.evaluation import evaluate_tokens

    out, result = run
    split = TokenShards.open(out / "training" / "tokens").split("validation")
    model = GPT2CausalLM.from_preset(out)
    again = evaluate_tokens(model, split.read(0, split.num_tokens), split.num_bytes, stride=32)
    assert again.loss == pytest.approx(result.loss, rel=1e-5)
    assert model.tokenizer.decode(model.tokenizer.encode("the dog")) == "the dog"


def test_the_same_seed_gives_the_same_model(text_file, tmp_path, run):
    _out, result = run
    again = train(small(text_file, tmp_path / "again"))
    assert again.loss == pytest.approx(result.loss, rel=1e-3)
    other = train(small(text_file, tmp_path / "other", seed=1))
    assert abs(other.loss - result.loss) > 1e-6


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains(text_file, tmp_path, precision):
    result = train(small(text_file, tmp_path / "model", precision=precision, sample_tokens=0))
    assert result.loss < 2.2
    weights = GPT2CausalLM.from_preset(tmp_path / "model").get_weights()
    assert all(np.isfinite(weight).all() and weight.dtype == np.float32 for weight in weights)


def test_float16_scales_its_loss(text_file, tmp_path):
    from tfgpt.text import CharacterTokenizer
    from tfgpt.training.language_modeling import make_model

    config = small(text_file, tmp_path, precision="mixed_float16")
    tokenizer = CharacterTokenizer.train([TEXT])
    shape = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 8}
    model = make_model(config, shape, tokenizer)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


def test_early_stopping_stops(text_file, tmp_path):
    # A learning rate that only ever makes it worse.
    rate = {"learning_rate": 0.5, "min_learning_rate": 0.5, "warmup_steps": 100}
    result = train(small(text_file, tmp_path / "model", steps=200, patience=1, sample_tokens=0, **rate))
    assert result.best_step < result.steps < 200


def test_best_and_last_weights_are_both_kept(text_file, tmp_path):
    # A learning rate that wrecks the model at the end leaves the best weights at the top.
    out = tmp_path / "model"
    result = train(
        small(text_file, out, steps=40, learning_rate=0.5, warmup_steps=40, min_learning_rate=0.5, sample_tokens=0)
    )
    assert result.best_step == 20
    best = GPT2CausalLM.from_preset(out).get_weights()
    last = GPT2CausalLM.from_preset(out / "training" / "last").get_weights()
    assert not all(np.array_equal(a, b) for a, b in zip(best, last, strict=True))


def test_bpe_is_trained_on_the_text(text_file, tmp_path):
    train(small(text_file, tmp_path / "model", tokenizer="bpe", vocabulary_size=300, steps=20, sample_tokens=0))
    model = GPT2CausalLM.from_preset(tmp_path / "model")
    assert model.backbone.vocabulary_size == model.tokenizer.vocabulary_size <= 300
    assert model.tokenizer.end_token_id == model.tokenizer.vocabulary_size - 1


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"preset": "gpt2-meduim"}, "unknown preset 'gpt2-meduim'.*did you mean 'gpt2-medium'"),
        ({"tokenizer": "wordpiece"}, "tokenizer is 'wordpiece', expected bpe, character or a directory"),
        ({"max_sequence_length": 5000}, "expected at least 5001"),
        ({"num_heads": 3}, "hidden_dim is 32, expected a multiple of num_heads 3"),
        ({"data": ["nowhere/*.txt"]}, "nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_model(text_file, tmp_path, fields, message):
    out = tmp_path / "model"
    config = small(text_file, out, **{k: v for k, v in fields.items() if k != "data"})
    config.data = fields.get("data", config.data)
    with pytest.raises(UserError, match=message) as error:
        train(config)
    assert "\n" not in str(error.value)
    assert not (out / "config.json").exists()
    assert not list(out.rglob("*.partial"))


def test_an_empty_corpus(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("  \n")
    with pytest.raises(UserError, match=r"empty\.txt"):
        train(small(empty, tmp_path / "model"))


def test_a_model_is_not_overwritten_unasked(text_file, run):
    out, _ = run
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="holds a model already"):
        train(small(text_file, out))
    assert (out / "model.safetensors").read_bytes() == before


def test_a_diverging_run_stops_with_a_sentence(text_file, tmp_path):
    with pytest.raises(UserError, match="the loss became"):
        train(small(text_file, tmp_path / "model", learning_rate=1e30, warmup_steps=0, clip_norm=0.0))


def test_ctrl_c_keeps_the_last_checkpoint(text_file, tmp_path):
    out = tmp_path / "model"
    command = [sys.executable, "-m", "tfgpt.cli", "train", "--data", str(text_file), "--out", str(out)]
    command += ["--preset", "gpt2-test", "--tokenizer", "character", "--steps", "1000000", "--evaluate_every", "20"]
    command += ["--log_every", "10", "--sample_tokens", "0", "--validation_batches", "1"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 120
            while not (out / "config.json").exists():
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 130, (tmp_path / "log").read_text()
        finally:
            process.kill()
    assert "interrupted after step" in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    for directory in (out, out / "training" / "last"):
        GPT2CausalLM.from_preset(directory)
    assert not list(pathlib.Path(out).rglob("*.partial"))


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="file size limits are POSIX")
def test_a_full_disk_is_one_sentence(text_file, tmp_path):
    # A limit on file sizes fails the write of the weights as a full disk does.
    out = tmp_path / "model"
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
        "from tfgpt.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "train", "--data", str(text_file), "--out", str(out)]
    command += ["--preset", "gpt2-test", "--tokenizer", "character", "--steps", "10", "--sample_tokens", "0"]
    command += ["--warmup_steps", "1", "--no_tensorboard"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr and "Traceback" not in done.stderr
    assert not (out / "config.json").exists()
    assert not list(out.rglob("*.partial"))


def test_validation_counts_no_padding(text_file, tmp_path):
    # One ragged batch holds the whole split, so the loss in the record must be the whole split's.
    config = small(text_file, tmp_path / "model", steps=5, evaluate_every=5, batch_size=64, sample_tokens=0)
    result = train(config)
    rows = list(csv.DictReader((tmp_path / "model" / "training" / "metrics.csv").open()))
    assert float(rows[-1]["validation_loss"]) == pytest.approx(result.loss, rel=1e-4)


def test_bad_input_leaves_nothing_at_all(text_file, tmp_path):
    with pytest.raises(UserError):
        train(small(text_file, tmp_path / "model", max_sequence_length=5000))
    assert list(tmp_path.iterdir()) == []
