import keras
import numpy as np
import pytest

from tfgpt.layers import TransformerDecoderBlock, TransformerEncoderBlock, decoder_mask

B, T, S, D, H, F = 2, 5, 7, 8, 2, 12


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype("float32")


def made(block_class, **options):
    block = block_class(H, F, **options)
    block.build((B, T, D), **({"memory_shape": (B, S, 6)} if options.get("cross_attention") else {}))
    block.set_weights([normal(*w.shape, seed=i) for i, w in enumerate(block.weights)])
    return block


def residual(block, x, f):
    """The residual formula around `f`, with the block's own normalization in its place."""

    def norm(x):
        gamma, beta = block.norm.get_weights()
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + block.epsilon) * gamma + beta

    if block.normalization == "pre":
        return x + np.asarray(f(norm(x)))
    x = x + np.asarray(f(x))
    return norm(x) if block.normalization == "post" else x


NORMALIZATIONS = pytest.mark.parametrize("normalization", ["pre", "post", "none"])


# === Composition: attention and feed-forward have tests of their own ===


@NORMALIZATIONS
def test_encoder_block(normalization):
    block, x = made(TransformerEncoderBlock, normalization=normalization, layer_norm_epsilon=0.01), normal(B, T, D)
    for mask in (None, np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)[:, None, None]):
        y, weights = block(x, attention_mask=mask, return_attention_weights=True)
        expected = residual(block.attention, x, lambda x: block.attention.sublayer(x, attention_mask=mask))  # noqa: B023
        expected = residual(block.feed_forward, expected, block.feed_forward.sublayer)
        np.testing.assert_allclose(y, expected, atol=1e-3, rtol=1e-4)
        np.testing.assert_array_equal(block(x, attention_mask=mask), y)
        assert weights.shape == (B, H, T, T)


@NORMALIZATIONS
def test_decoder_block_is_causal_by_default(normalization):
    block, x = made(TransformerDecoderBlock, normalization=normalization), normal(B, T, D)
    y, weights = block(x, return_attention_weights=True)
    expected = residual(block.attention, x, lambda x: block.attention.sublayer(x, use_causal_mask=True))
    expected = residual(block.feed_forward, expected, block.feed_forward.sublayer)
    np.testing.assert_allclose(y, expected, atol=1e-3, rtol=1e-4)
    assert (np.triu(weights, k=1) == 0).all()
    np.testing.assert_allclose(block(x, attention_mask=decoder_mask(T, T)), y, atol=1e-5)


@NORMALIZATIONS
def test_decoder_block_with_cross_attention(normalization):
    block = made(TransformerDecoderBlock, normalization=normalization, cross_attention=True)
    x, memory = normal(B, T, D), normal(B, S, 6)
    mask = (np.arange(S) < np.array([[4], [7]]))[:, None, None]
    y, weights, memory_weights = block(x, memory=memory, memory_attention_mask=mask, return_attention_weights=True)
    expected = residual(block.attention, x, lambda x: block.attention.sublayer(x, use_causal_mask=True))
    expected = residual(
        block.memory_attention,
        expected,
        lambda x: block.memory_attention.sublayer(x, memory=memory, attention_mask=mask),
    )
    expected = residual(block.feed_forward, expected, block.feed_forward.sublayer)
    np.testing.assert_allclose(y, expected, atol=1e-3, rtol=1e-4)
    assert weights.shape == (B, H, T, T) and memory_weights.shape == (B, H, T, S)
    assert (np.asarray(memory_weights)[0, :, :, 4:] == 0).all()


# === Caches ===


@pytest.mark.parametrize("preallocated", [False, True])
@pytest.mark.parametrize("cross_attention", [False, True])
def test_cache_equals_one_pass(preallocated, cross_attention):
    block = made(TransformerDecoderBlock, cross_attention=cross_attention)
    x, memory = normal(B, T, D), normal(B, S, 6) if cross_attention else None
    expected = block(x, memory=memory)
    memory_cache = block.memory_attention.sublayer.keys_and_values(memory) if cross_attention else None
    slots = 6 if preallocated else 0
    cache, outputs = (np.zeros((B, H, slots, D // H), "float32"),) * 2, []
    for start, stop in ((0, 3), (3, 4), (4, 5)):
        y, cache = block(
            x[:, start:stop],
            attention_mask=decoder_mask(stop - start, slots or stop, offset=start),
            cache=cache,
            cache_index=start if preallocated else None,
            memory_cache=memory_cache,
        )
        outputs.append(y)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), expected, atol=1e-4, rtol=1e-4)


def test_order_of_outputs_with_cache_and_weights():
    block = made(TransformerDecoderBlock, cross_attention=True)
    x, memory = normal(B, T, D), normal(B, S, 6)
    empty = (np.zeros((B, H, 0, D // H), "float32"),) * 2
    memory_cache = block.memory_attention.sublayer.keys_and_values(memory)
    y, cache, weights, memory_weights = block(x, cache=empty, memory_cache=memory_cache, return_attention_weights=True)
    assert y.shape == (B, T, D)
    assert cache[0].shape == cache[1].shape == (B, H, T, D // H)
    assert weights.shape == (B, H, T, T) and memory_weights.shape == (B, H, T, S)


# === Properties ===


@NORMALIZATIONS
def test_neighbours_change_nothing(normalization):
    block, x = made(TransformerDecoderBlock, normalization=normalization), normal(B, T, D)
    y = block(x)
    other = x.copy()
    other[:, 3:] = normal(B, T - 3, D, seed=1)
    np.testing.assert_allclose(block(other)[:, :3], y[:, :3], atol=1e-5, rtol=1e-5)  # the future
    np.testing.assert_allclose(block(x[1:]), y[1:], atol=1e-5, rtol=1e-5)  # batch mates

    block = made(TransformerEncoderBlock, normalization=normalization)
    padded = np.concatenate([x, normal(B, 20, D, seed=1)], axis=1)
    found = block(padded, attention_mask=np.arange(T + 20) < T)[:, :T]
    np.testing.assert_allclose(found, block(x), atol=1e-5, rtol=1e-5)  # padding


# === Configuration ===


@pytest.mark.parametrize("block_class", [TransformerEncoderBlock, TransformerDecoderBlock])
def test_dropout_only_in_training(block_class):
    x = normal(B, T, D)
    for options in ({"dropout": 0.5}, {"dropout": 0.5, "attention_dropout": 0.0}, {"attention_dropout": 0.5}):
        block = made(block_class, **options)
        np.testing.assert_array_equal(block(x, training=False), block(x))
        assert not np.allclose(block(x, training=True), block(x))


def test_attention_dropout_is_dropout_by_default():
    assert TransformerDecoderBlock(H, F, dropout=0.3).attention.sublayer.dropout == 0.3
    block = TransformerDecoderBlock(H, F, dropout=0.3, attention_dropout=0.0)
    assert block.attention.sublayer.dropout == 0.0 and block.feed_forward.dropout_layer.rate == 0.3


def test_initializers():
    block = TransformerDecoderBlock(
        H,
        512,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.5),
        output_initializer=keras.initializers.RandomNormal(stddev=0.1),
        cross_attention=True,
    )
    block.build((None, None, 256), memory_shape=(None, None, 256))
    attention, memory, feed_forward = (
        part.sublayer for part in (block.attention, block.memory_attention, block.feed_forward)
    )
    readers = [attention.query_key_value, memory.query, memory.key_value, feed_forward.intermediate_dense]
    writers = [attention.output_dense, memory.output_dense, feed_forward.output_dense]
    np.testing.assert_allclose([np.std(dense.kernel) for dense in readers], 0.5, rtol=0.03)
    np.testing.assert_allclose([np.std(dense.kernel) for dense in writers], 0.1, rtol=0.03)
    firsts = {round(float(dense.kernel[0, 0] / np.std(dense.kernel)), 4) for dense in readers + writers}
    assert len(firsts) == len(readers + writers)  # no two kernels have the same numbers


def test_no_bias():
    block = TransformerDecoderBlock(H, F, use_bias=False, normalization="none")
    block.build((None, None, D))
    assert [w.shape for w in block.weights] == [(D, 3 * D), (D, D), (D, F), (F, D)]


def test_a_decoder_block_with_a_padding_mask_is_still_causal():
    block = TransformerDecoderBlock(num_heads=2, intermediate_dim=16)
    x = np.random.default_rng(0).normal(size=(1, 5, 8)).astype("float32")
    mask = np.ones((1, 1, 1, 5), bool)
    changed = x.copy()
    changed[:, 4] += 1.0
    first, second = (np.asarray(block(inputs, attention_mask=mask)) for inputs in (x, changed))
    np.testing.assert_allclose(first[:, :4], second[:, :4], atol=1e-6)
