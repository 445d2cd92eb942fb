import keras
import numpy as np
import pytest

from tfgpt.models import GPT2Backbone
from tfgpt.training.averaging import averaged_weights
from tfgpt.training.losses import TokenLoss
from tfgpt.training.optimizer import make_optimizer
from tfgpt.training.run_config import RunConfig
from tfgpt.training.train_step import TrainingCausalLM


def compiled(dtype="float32", **fields):
    keras.utils.set_random_seed(0)
    shape = {"vocabulary_size": 11, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 4}
    model = TrainingCausalLM(GPT2Backbone(**shape, dtype=dtype), accumulate_steps=2)
    config = RunConfig(data=["x"], out="y", steps=10, learning_rate=0.03, warmup_steps=0, **fields)
    optimizer = make_optimizer(config, model.trainable_variables)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, TokenLoss(), jit_compile=False)
    return model


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_the_average_is_the_formula_and_is_given_back(dtype):
    model = compiled(dtype, ema_decay=0.8)
    start = model.get_weights()
    with averaged_weights(model):  # no update yet, and so no average
        for a, b in zip(start, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    rng = np.random.default_rng(0)
    averages = None
    for _ in range(5):
        model.train_on_batch(rng.integers(0, 11, (4, 4)), rng.integers(0, 11, (4, 4)))
        raw = [weight.astype(np.float64) for weight in model.get_weights()]
        averages = raw if averages is None else [0.8 * a + 0.2 * w for a, w in zip(averages, raw, strict=True)]
    raw = model.get_weights()
    with averaged_weights(model):
        for found, expected, w in zip(model.get_weights(), averages, raw, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
            assert not np.array_equal(found, w)
    for a, b in zip(raw, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_an_average_nothing_happens():
    model = compiled()
    model.train_on_batch(np.zeros((4, 4), int), np.ones((4, 4), int))
    raw = model.get_weights()
    with averaged_weights(model):
        for a, b in zip(raw, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_weights_come_back_after_a_failure():
    model = compiled(ema_decay=0.5)
    for token in (1, 2):
        model.train_on_batch(np.zeros((4, 4), int), np.full((4, 4), token))
    raw = model.get_weights()
    with pytest.raises(OSError, match="disk full"), averaged_weights(model):
        raise OSError("disk full")
    for a, b in zip(raw, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
