"""Layer normalization against its paper's formula in NumPy, and Keras' layer as a second witness."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tfgpt.layers import LayerNormalization

RANDOM = np.random.default_rng(0)


def reference(x, gamma, beta, epsilon):
    x = np.asarray(x, "float64")
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + epsilon) * gamma + beta


def made(width, **arguments):
    layer = LayerNormalization(**arguments)
    layer.build((None, width))
    layer.set_weights([RANDOM.normal(size=width), RANDOM.normal(size=width)])
    return layer


@pytest.mark.parametrize("shape", [(3, 8), (2, 5, 8), (2, 3, 5, 8)])
@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_output(shape, epsilon):
    layer, x = made(8, epsilon=epsilon), RANDOM.normal(2.0, 3.0, shape).astype("float32")
    np.testing.assert_allclose(layer(x), reference(x, *layer.get_weights(), epsilon), atol=2e-6)


def test_gradients_are_those_of_keras():
    layer, theirs = made(16), keras.layers.LayerNormalization(epsilon=1e-5)
    theirs.build((None, 16))
    theirs.set_weights(layer.get_weights())
    x, weight = tf.constant(RANDOM.normal(size=(2, 3, 16)), "float32"), RANDOM.normal(size=(2, 3, 16))
    found = []
    for norm in (layer, theirs):
        variables = [variable.value for variable in norm.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(norm(x) * tf.constant(weight, "float32"))
        found.append(tape.gradient(loss, [x, *variables]))
    for ours, expected in zip(*found, strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_an_offset_of_the_input_changes_nothing():
    layer, x = made(32), RANDOM.normal(size=(4, 32)).astype("float32")
    np.testing.assert_allclose(layer(x + 1000), layer(x), atol=2e-3)  # float32 holds 1000 to 6e-5


@pytest.mark.parametrize("policy, dtype", [("mixed_bfloat16", "bfloat16"), ("mixed_float16", "float16")])
def test_the_statistics_are_float32_under_every_policy(policy, dtype):
    layer, x = made(512, dtype=policy), ops.cast(RANDOM.normal(30, 100, (2, 512)), dtype)  # squares leave float16
    y = layer(x)
    assert y.dtype == dtype and all(weight.dtype == "float32" for weight in layer.weights)
    expected = reference(ops.cast(x, "float32"), *layer.get_weights(), 1e-5)
    rounding = {"bfloat16": 2**-8, "float16": 2**-10}[dtype]  # one, to the output's dtype
    np.testing.assert_allclose(ops.cast(y, "float32"), expected, rtol=rounding, atol=1e-5)
