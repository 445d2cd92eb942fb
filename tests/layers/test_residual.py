import keras
import numpy as np
import pytest

from tfgpt.layers import MultiHeadAttention, ResidualBlock

random = np.random.default_rng(0)
x = random.normal(size=(2, 5, 8)).astype("float32") * 3 + 1


def normalize(x, gamma, beta, epsilon):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def made(normalization, **options):
    block = ResidualBlock(keras.layers.Dense(8), normalization=normalization, **options)
    block(x)
    block.set_weights([random.normal(size=w.shape) for w in block.weights])
    kernel, bias = block.sublayer.get_weights()
    return block, lambda x: x @ kernel + bias


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_formulas(epsilon):
    block, f = made("pre", epsilon=epsilon)
    np.testing.assert_allclose(block(x), x + f(normalize(x, *block.norm.get_weights(), epsilon)), atol=1e-4)
    block, f = made("post", epsilon=epsilon)
    np.testing.assert_allclose(block(x), normalize(x + f(x), *block.norm.get_weights(), epsilon), atol=1e-4)
    block, f = made("none", epsilon=epsilon)
    np.testing.assert_allclose(block(x), x + f(x), atol=1e-4)
    assert block.norm is None and len(block.weights) == 2


def test_formulas_without_a_residual_connection():
    block, f = made("pre", residual=False)
    np.testing.assert_allclose(block(x), f(normalize(x, *block.norm.get_weights(), 1e-5)), atol=1e-4)
    block, f = made("post", residual=False)
    np.testing.assert_allclose(block(x), normalize(f(x), *block.norm.get_weights(), 1e-5), atol=1e-4)
    block, f = made("none", residual=False)
    np.testing.assert_allclose(block(x), f(x), atol=1e-4)


def test_unknown_normalization():
    with pytest.raises(ValueError, match="'sandwich', expected one of pre, post, none"):
        ResidualBlock(keras.layers.Dense(8), normalization="sandwich")


@pytest.mark.parametrize("normalization", ["pre", "none"])
def test_dropout_is_on_the_branch_alone_and_only_in_training(normalization):
    block, _ = made(normalization, dropout=0.5)
    inference = block(x).numpy()
    np.testing.assert_array_equal(block(x, training=False), inference)
    branch = inference - x
    trained = block(x, training=True).numpy() - x
    kept = np.isclose(trained, 2 * branch, atol=1e-5)
    dropped = np.isclose(trained, 0, atol=1e-5)
    assert (kept | dropped).all() and kept.any() and dropped.any()


def test_training_reaches_the_sublayer():
    block = ResidualBlock(keras.layers.Dropout(0.5), normalization="none")
    np.testing.assert_array_equal(block(x, training=False), 2 * x)
    assert not np.array_equal(block(x, training=True), 2 * x)


def test_through_gets_the_normalized_input_and_its_extras_are_returned():
    block = ResidualBlock(MultiHeadAttention(2), normalization="pre")
    mask = np.tri(5, dtype=bool)
    seen = []

    def through(y):
        seen.append(y)
        return block.sublayer(y, attention_mask=mask, return_attention_weights=True)

    y, weights = block(x, through=through)
    normalized = normalize(x, 1, 0, 1e-5)
    np.testing.assert_allclose(seen[0], normalized, atol=1e-5)
    expected, expected_weights = block.sublayer(normalized, attention_mask=mask, return_attention_weights=True)
    np.testing.assert_allclose(y, x + expected, atol=1e-5)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-6)
