import keras
import numpy as np
import pytest

from tfgpt.layers import Dense

random = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(7, 4), (2, 7, 4), (2, 3, 7, 4), (0, 7, 4)])
def test_affine_map_of_the_last_axis(shape):
    dense = Dense(6, bias_initializer="random_normal")
    x = random.normal(size=shape).astype("float32")
    y = dense(x)
    assert y.shape == (*shape[:-1], 6)
    np.testing.assert_allclose(y, x @ dense.kernel.numpy() + dense.bias.numpy(), atol=1e-6)


def test_no_bias():
    dense = Dense(6, use_bias=False)
    x = random.normal(size=(2, 7, 4)).astype("float32")
    np.testing.assert_allclose(dense(x), x @ dense.kernel.numpy(), atol=1e-6)
    assert dense.bias is None and len(dense.weights) == 1


def test_equals_keras_dense():
    ours, theirs = Dense(6), keras.layers.Dense(6)
    x = random.normal(size=(2, 7, 4)).astype("float32")
    ours(x), theirs(x)
    theirs.set_weights([random.normal(size=w.shape) for w in theirs.weights])
    ours.set_weights(theirs.get_weights())
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-6)


def test_unknown_lengths():
    dense = Dense(6)
    inputs = keras.Input((None, 4))
    model = keras.Model(inputs, dense(inputs))
    assert model.output_shape == (None, None, 6)
    for length in (1, 5):
        x = random.normal(size=(2, length, 4)).astype("float32")
        np.testing.assert_allclose(model(x), x @ dense.kernel.numpy(), atol=1e-6)
