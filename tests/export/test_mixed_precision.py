"""Models trained in half precision export to float32 and pass parity."""

import csv
import math

import keras
import numpy as np
import pytest
import safetensors.numpy

from tfgpt.export import export_release
from tfgpt.models.gpt2 import preset_config
from tfgpt.text import BytePairTokenizer
from tfgpt.training.language_modeling import make_model
from tfgpt.training.trainer import train


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_a_model_trained_in_half_precision_is_exported(make_run_config, tmp_path, precision):
    config = make_run_config(
        tmp_path / "model", precision=precision, num_layers=1, steps=40, evaluate_every=40, log_every=10
    )
    train(config)
    with open(tmp_path / "model" / "training" / "metrics.csv") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.9 * losses[0]
    weights = safetensors.numpy.load_file(tmp_path / "model" / "model.safetensors")
    assert {array.dtype for array in weights.values()} == {np.dtype("float32")}

    reports = export_release(tmp_path / "model", tmp_path / "release")
    assert [report.runtime for report in reports] == ["saved_model", "onnx", "onnx/float32"]
    assert all(report.passed and report.scaled_logit_difference < 1e-4 for report in reports)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_the_loss_is_scaled_in_float16_alone(make_run_config, tmp_path, precision):
    config = make_run_config(tmp_path / "model", precision=precision)
    tokenizer = BytePairTokenizer.train(["some words to merge"], vocabulary_size=300)
    model = make_model(config, preset_config(config.preset), tokenizer)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (precision == "mixed_float16")
    assert model.dtype_policy.name == precision
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
