import math

import keras
import numpy as np
import pytest

from tfgpt.layers import FeedForward, gelu_tanh
from tfgpt.layers.feed_forward import get_activation

random = np.random.default_rng(0)


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2


def gelu_by_tanh(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


ACTIVATIONS = {
    "gelu_tanh": gelu_by_tanh,
    "gelu": gelu,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


def test_gelu_tanh():
    x = np.linspace(-12, 12, 481)
    np.testing.assert_allclose(gelu_tanh(keras.ops.array(x, "float64")), gelu_by_tanh(x), atol=1e-12)
    np.testing.assert_allclose(gelu_tanh(x.astype("float32")), keras.activations.gelu(x, approximate=True), atol=1e-6)
    assert np.isfinite(gelu_tanh(keras.ops.array([-1e4, 1e4], "float32"))).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_formula(name):
    layer = FeedForward(12, activation=name)
    x = random.normal(size=(2, 5, 8)).astype("float32")
    layer(x)
    layer.set_weights([random.normal(size=w.shape) for w in layer.weights])
    w1, b1, w2, b2 = layer.get_weights()
    assert (w1.shape, b1.shape, w2.shape, b2.shape) == ((8, 12), (12,), (12, 8), (8,))
    np.testing.assert_allclose(layer(x), ACTIVATIONS[name](x @ w1 + b1) @ w2 + b2, atol=1e-4)


def test_no_bias():
    layer = FeedForward(12, use_bias=False)
    x = random.normal(size=(2, 5, 8)).astype("float32")
    y = layer(x)
    w1, w2 = layer.get_weights()
    np.testing.assert_allclose(y, gelu_by_tanh(x @ w1) @ w2, atol=1e-5)


def test_initializers():
    layer = FeedForward(512, kernel_initializer=keras.initializers.RandomNormal(stddev=0.5))
    layer.build((None, None, 256))
    first, second = layer.intermediate_dense.kernel.numpy(), layer.output_dense.kernel.numpy()
    np.testing.assert_allclose([first.std(), second.std()], 0.5, rtol=0.02)
    assert not np.array_equal(first.ravel(), second.ravel())  # each has numbers of its own
    layer = FeedForward(512, output_initializer="zeros")
    layer.build((None, None, 256))
    assert layer.intermediate_dense.kernel.numpy().any() and not layer.output_dense.kernel.numpy().any()


def test_a_function_is_an_activation():
    assert get_activation(np.sin) is np.sin
    x = random.normal(size=(2, 5, 8)).astype("float32")
    layer = FeedForward(12, activation=keras.ops.square)
    y = layer(x)
    w1, _, w2, _ = layer.get_weights()
    np.testing.assert_allclose(y, (x @ w1) ** 2 @ w2, atol=1e-4)


def test_unknown_activation():
    with pytest.raises(ValueError, match="gelu_new"):
        FeedForward(12, activation="gelu_new")
