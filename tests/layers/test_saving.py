"""Every public layer: through its configuration, through a .keras file, and under each dtype policy."""

import inspect

import keras
import numpy as np
import pytest

from tfgpt import layers

NORMAL = keras.initializers.RandomNormal(stddev=0.3)
X, MEMORY, IDS = (5, 8), (7, 6), (5,)

# A layer with no argument at its default, and the shapes of the inputs that it is called on.
CASES = {
    "Dense": (lambda **d: layers.Dense(6, kernel_initializer=NORMAL, bias_initializer="ones", **d), [X]),
    "FeedForward": (
        lambda **d: layers.FeedForward(
            12, activation="relu", use_bias=False, kernel_initializer=NORMAL, output_initializer="ones", **d
        ),
        [X],
    ),
    "FeedForward gelu_tanh": (lambda **d: layers.FeedForward(12, **d), [X]),
    "LayerNormalization": (lambda **d: layers.LayerNormalization(epsilon=0.1, **d), [X]),
    "TokenEmbedding": (lambda **d: layers.TokenEmbedding(10, 8, embeddings_initializer=NORMAL, **d), [IDS]),
    "LearnedPositions": (lambda **d: layers.LearnedPositions(10, 8, embeddings_initializer=NORMAL, **d), [IDS]),
    "SinusoidalPositions": (lambda **d: layers.SinusoidalPositions(8, max_wavelength=50, **d), [IDS]),
    "MultiHeadAttention": (
        lambda **d: layers.MultiHeadAttention(
            2, dropout=0.2, use_bias=False, kernel_initializer=NORMAL, output_initializer="ones", **d
        ),
        [X],
    ),
    "MultiHeadAttention cross": (
        lambda **d: layers.MultiHeadAttention(2, cross_attention=True, kernel_initializer=NORMAL, **d),
        [X, MEMORY],
    ),
    "ResidualBlock": (
        lambda **d: layers.ResidualBlock(
            layers.FeedForward(12, **d), normalization="post", dropout=0.2, epsilon=0.1, residual=False, **d
        ),
        [X],
    ),
    "TransformerEncoderBlock": (
        lambda **d: layers.TransformerEncoderBlock(
            2,
            12,
            activation="relu",
            normalization="post",
            dropout=0.2,
            attention_dropout=0.1,
            layer_norm_epsilon=0.1,
            use_bias=False,
            kernel_initializer=NORMAL,
            output_initializer="ones",
            **d,
        ),
        [X],
    ),
    "TransformerDecoderBlock": (
        lambda **d: layers.TransformerDecoderBlock(2, 12, normalization="none", residual=False, **d),
        [X],
    ),
    "TransformerDecoderBlock cross": (
        lambda **d: layers.TransformerDecoderBlock(2, 12, cross_attention=True, kernel_initializer=NORMAL, **d),
        [X, MEMORY],
    ),
}
EVERY_LAYER = pytest.mark.parametrize("name", CASES)


def batch(shapes):
    random = np.random.default_rng(0)
    return [
        random.integers(0, 10, (2, *shape)) if shape == IDS else random.normal(size=(2, *shape)).astype("float32")
        for shape in shapes
    ]


def test_every_public_layer_is_here():
    public = {name for name in layers.__all__ if isinstance(getattr(layers, name), type)}
    assert {name.split()[0] for name in CASES} == public


@EVERY_LAYER
def test_configuration_round_trip(name):
    make, shapes = CASES[name]
    layer = make(dtype="mixed_bfloat16", name="of_its_own")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()
    arguments = set(inspect.signature(type(layer)).parameters) - {"kwargs"}
    if name == "TransformerEncoderBlock":
        arguments.remove("cross_attention")
    assert arguments <= set(layer.get_config())
    inputs = batch(shapes)
    expected = layer(*inputs)
    again(*inputs)
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(
        keras.ops.cast(again(*inputs), "float32"), keras.ops.cast(expected, "float32"), strict=True
    )


@EVERY_LAYER
def test_keras_file_round_trip(name, tmp_path):
    make, shapes = CASES[name]
    inputs = [keras.Input(shape, dtype="int32" if shape == IDS else "float32") for shape in shapes]
    model = keras.Model(inputs, make()(*inputs))
    random = np.random.default_rng(1)
    model.set_weights([random.normal(size=w.shape) for w in model.weights])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for before, after in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(loaded(batch(shapes)), model(batch(shapes)))


@pytest.mark.parametrize("policy, dtype", [("mixed_bfloat16", "bfloat16"), ("mixed_float16", "float16")])
@EVERY_LAYER
def test_mixed_precision(name, policy, dtype):
    make, shapes = CASES[name]
    half, single = make(dtype=policy), make(dtype="float32")
    inputs = batch(shapes)
    y, _ = half(*inputs), single(*inputs)
    assert y.dtype == dtype
    assert all(w.dtype == "float32" for w in half.weights)
    single.set_weights(half.get_weights())
    expected = single(*inputs)
    assert expected.dtype == "float32"
    error = np.abs(keras.ops.cast(y, "float32") - expected).max()
    assert 0 < error < 0.03 * np.abs(expected).max()
