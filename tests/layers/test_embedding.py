import keras
import numpy as np

from tfgpt.layers import TokenEmbedding

random = np.random.default_rng(0)


def test_look_up_and_its_reverse():
    layer = TokenEmbedding(10, 4)
    ids = random.integers(0, 10, (2, 5))
    x = layer(ids)
    matrix = layer.embeddings.numpy()
    np.testing.assert_array_equal(x, matrix[ids])
    for shape in ((3, 4), (2, 5, 4)):
        hidden = random.normal(size=shape).astype("float32")
        logits = layer(hidden, reverse=True)
        assert logits.shape == (*shape[:-1], 10)
        np.testing.assert_allclose(logits, hidden @ matrix.T, atol=1e-6)
    assert len(layer.weights) == 1


def test_symbolic_shapes():
    layer = TokenEmbedding(10, 4)
    x = layer(keras.Input((None,), dtype="int32"))
    assert x.shape == (None, None, 4)
    assert layer(x, reverse=True).shape == (None, None, 10)


def test_first_and_last_id():
    layer = TokenEmbedding(10, 4)
    np.testing.assert_array_equal(layer(np.array([[0, 9]]))[0], layer.embeddings.numpy()[[0, 9]])
