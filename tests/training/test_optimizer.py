import math

import keras
import numpy as np
import pytest

from tfgpt.training.optimizer import learning_rate_schedule, make_optimizer
from tfgpt.training.run_config import RunConfig


def test_schedule_is_linear_then_cosine():
    schedule = learning_rate_schedule(1e-3, 1e-4, warmup_steps=100, steps=2000)

    def expected(step):
        if step < 100:
            return 1e-3 * step / 100
        return 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - 100) / 1900)) * 9e-4

    for step in (0, 1, 50, 99, 100, 101, 700, 1500, 1999, 2000):
        assert float(schedule(step)) == pytest.approx(expected(step), rel=1e-5, abs=1e-9)
    assert float(schedule(5000)) == pytest.approx(1e-4, rel=1e-5)


def test_schedule_without_warmup_begins_at_the_top():
    schedule = learning_rate_schedule(1e-2, 0.0, warmup_steps=0, steps=10)
    assert float(schedule(0)) == pytest.approx(1e-2)
    assert float(schedule(10)) == pytest.approx(0.0, abs=1e-9)


def test_one_step_is_adamw_on_matrices_only():
    matrix = keras.Variable(np.full((2, 2), 2.0, "float32"), name="matrix")
    vector = keras.Variable(np.full((2,), 2.0, "float32"), name="vector")
    run = RunConfig(
        data=["x"],
        out="y",
        steps=10,
        warmup_steps=0,
        learning_rate=0.1,
        min_learning_rate=0.1,
        weight_decay=0.5,
        beta_1=0.9,
        beta_2=0.99,
        clip_norm=0.0,
    )
    optimizer = make_optimizer(run, [matrix, vector])
    gradient = np.array([[0.3, -0.3], [0.3, -0.3]], "float32")
    optimizer.apply([keras.ops.array(gradient), keras.ops.array(gradient[0])], [matrix, vector])
    # After one step Adam's bias-corrected moments are g and g², so the update is the learning rate times the sign.
    np.testing.assert_allclose(vector.numpy(), 2.0 - 0.1 * np.sign(gradient[0]), rtol=1e-5)
    np.testing.assert_allclose(matrix.numpy(), 2.0 * (1 - 0.1 * 0.5) - 0.1 * np.sign(gradient), rtol=1e-5)


def test_gradients_are_clipped_by_their_global_norm():
    variable = keras.Variable(np.zeros(4, "float32"))
    run = RunConfig(data=["x"], out="y", steps=10, clip_norm=1.0)
    optimizer = make_optimizer(run, [variable])
    clipped = optimizer._clip_gradients([keras.ops.array(np.full(4, 10.0, "float32"))])
    np.testing.assert_allclose(np.linalg.norm(np.asarray(clipped[0])), 1.0, rtol=1e-5)
