import keras
import numpy as np
import pytest
from keras import ops

from tfgpt.layers import MultiHeadAttention

B, T, S, D, H = 2, 5, 7, 8, 2
K = D // H


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype("float32")


def made(**options):
    """An attention layer all of whose weights, biases too, are random."""
    layer = MultiHeadAttention(H, **options)
    layer.build((B, T, D), **({"memory_shape": (B, S, 6)} if layer.cross_attention else {}))
    layer.set_weights([normal(*w.shape, seed=i) for i, w in enumerate(layer.weights)])
    return layer


def reference(layer, x, memory=None, mask=True):
    """Equation 1 of the paper, head by head; `mask` broadcasts to (B, H, T, S)."""

    def affine(dense, x):
        return x @ dense.kernel.numpy() + (0 if dense.bias is None else dense.bias.numpy())

    if memory is None:
        q, k, v = np.split(affine(layer.query_key_value, x), 3, axis=-1)
    else:
        q, (k, v) = affine(layer.query, x), np.split(affine(layer.key_value, memory), 2, axis=-1)
    mask = np.broadcast_to(mask, (len(x), H, q.shape[1], k.shape[1]))
    weights, outputs = np.empty(mask.shape), np.empty(q.shape)
    for b in range(len(x)):
        for h in range(H):
            head = slice(h * K, (h + 1) * K)
            scores = np.where(mask[b, h], q[b, :, head] @ k[b, :, head].T / np.sqrt(K), -np.inf)
            weights[b, h] = np.exp(scores - scores.max(-1, keepdims=True))
            weights[b, h] /= weights[b, h].sum(-1, keepdims=True)
            outputs[b, :, head] = weights[b, h] @ v[b, :, head]
    return affine(layer.output_dense, outputs), weights


def masks(keys):
    """Masks of every shape that broadcasts to (B, H, T, S), each row with one key at least."""
    shapes = [(T, keys), (1, 1, T, keys), (B, 1, 1, keys), (B, 1, T, keys), (1, H, T, keys), (B, H, T, keys)]
    masks = [np.random.default_rng(0).random(shape) < 0.5 for shape in shapes]
    for mask in masks:
        mask[..., 0] = True
    return masks


# === Against the formula ===


@pytest.mark.parametrize("use_bias", [True, False])
def test_self_attention(use_bias):
    layer, x = made(use_bias=use_bias), normal(B, T, D)
    y, weights = layer(x, return_attention_weights=True)
    expected, expected_weights = reference(layer, x)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-5)
    np.testing.assert_allclose(np.sum(weights, axis=-1), 1, atol=1e-6)
    np.testing.assert_array_equal(layer(x), y)
    assert len(layer.weights) == (4 if use_bias else 2)


def test_causal_attention():
    layer, x = made(), normal(B, T, D)
    y, weights = layer(x, use_causal_mask=True, return_attention_weights=True)
    np.testing.assert_allclose(y, reference(layer, x, mask=np.tri(T, dtype=bool))[0], atol=1e-4)
    future = np.triu(np.ones((T, T), bool), k=1)
    assert (np.array(weights)[:, :, future] == 0).all() and (np.array(weights)[:, :, ~future] > 0).all()


@pytest.mark.parametrize("mask", masks(T))
def test_masks_broadcast(mask):
    layer, x = made(), normal(B, T, D)
    for causal in (False, True):
        y, weights = layer(x, attention_mask=mask, use_causal_mask=causal, return_attention_weights=True)
        both = mask & np.tri(T, dtype=bool) if causal else mask
        expected, expected_weights = reference(layer, x, mask=both)
        np.testing.assert_allclose(y, expected, atol=1e-4)
        np.testing.assert_allclose(weights, expected_weights, atol=1e-5)
        assert (np.array(weights)[~np.broadcast_to(both, weights.shape)] == 0).all()


@pytest.mark.parametrize("mask", [True, *masks(S)])
def test_cross_attention(mask):
    layer, x, memory = made(cross_attention=True), normal(B, T, D), normal(B, S, 6)
    attention_mask = None if mask is True else mask
    y, weights = layer(x, memory=memory, attention_mask=attention_mask, return_attention_weights=True)
    expected, expected_weights = reference(layer, x, memory, mask)
    assert y.shape == (B, T, D) and weights.shape == (B, H, T, S)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_rows_without_any_key_are_finite_and_leave_others_alone(dtype):
    layer, x = made(dtype=dtype), normal(B, T, D)
    mask = np.ones((B, 1, T, T), bool)
    mask[1, :, 2] = False
    y, weights = layer(x, attention_mask=mask, return_attention_weights=True)
    y = ops.cast(y, "float32").numpy()
    assert np.isfinite(y).all() and np.isfinite(weights).all()
    everything = ops.cast(layer(x), "float32").numpy()
    np.testing.assert_array_equal(y[0], everything[0])
    np.testing.assert_array_equal(np.delete(y[1], 2, axis=0), np.delete(everything[1], 2, axis=0))


# === Key-value caches ===


@pytest.mark.parametrize("steps", [[5], [1, 1, 1, 1, 1], [3, 1, 1], [2, 3]])
@pytest.mark.parametrize("preallocated", [False, True])
@pytest.mark.filterwarnings("ignore:You are using a softmax over axis")  # of a single key: right so
def test_cache_equals_one_pass(steps, preallocated):
    layer, x = made(), normal(B, T, D)
    slots = 9 if preallocated else 0  # more than are filled
    cache = (np.zeros((B, H, slots, K), "float32"),) * 2
    outputs, start = [], 0
    for step in steps:
        y, cache = layer(
            x[:, start : start + step],
            cache=cache,
            cache_index=start if preallocated else None,
            use_causal_mask=True,
        )
        outputs.append(y)
        start += step
    assert cache[0].shape == cache[1].shape == (B, H, slots or T, K)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), layer(x, use_causal_mask=True), atol=1e-5)


def test_cache_holds_keys_and_values():
    layer, x = made(), normal(B, T, D)
    _, (keys, values) = layer(x, cache=(np.zeros((B, H, 0, K), "float32"),) * 2)
    projected = x @ layer.query_key_value.kernel.numpy() + layer.query_key_value.bias.numpy()
    for found, part in ((keys, projected[..., D : 2 * D]), (values, projected[..., 2 * D :])):
        np.testing.assert_allclose(found, part.reshape(B, T, H, K).transpose(0, 2, 1, 3), atol=1e-5)


def test_cache_with_weights_and_a_mask():
    layer, x = made(), normal(B, T, D)
    padding = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], bool)[:, None, None]
    expected, expected_weights = layer(x, attention_mask=padding, use_causal_mask=True, return_attention_weights=True)
    empty = (np.zeros((B, H, 0, K), "float32"),) * 2
    _, cache = layer(x[:, :3], attention_mask=padding[..., :3], use_causal_mask=True, cache=empty)
    y, _, weights = layer(
        x[:, 3:], attention_mask=padding, use_causal_mask=True, cache=cache, return_attention_weights=True
    )
    np.testing.assert_allclose(y, expected[:, 3:], atol=1e-5)
    np.testing.assert_allclose(weights, expected_weights[:, :, 3:], atol=1e-6)


def test_cross_attention_cache():
    layer, x, memory = made(cross_attention=True), normal(B, T, D), normal(B, S, 6)
    cache = layer.keys_and_values(memory)
    assert cache[0].shape == cache[1].shape == (B, H, S, K)
    y, same = layer(x, cache=cache)
    np.testing.assert_allclose(y, layer(x, memory=memory), atol=1e-6)
    for before, after in zip(cache, same, strict=True):
        np.testing.assert_array_equal(before, after)


# === Properties ===


def test_the_future_changes_nothing():
    layer, x = made(), normal(B, T, D)
    other = x.copy()
    other[:, 3:] = normal(B, T - 3, D, seed=1)
    y, changed = layer(x, use_causal_mask=True).numpy(), layer(other, use_causal_mask=True).numpy()
    np.testing.assert_allclose(changed[:, :3], y[:, :3], atol=1e-5)
    assert np.abs(changed[:, 3:] - y[:, 3:]).max() > 0.1


def test_batch_mates_change_nothing():
    layer, x = made(), normal(B, T, D)
    np.testing.assert_allclose(layer(x[:1]), layer(x)[:1], atol=1e-5)


def test_more_padding_changes_nothing():
    layer, x = made(), normal(B, T, D)
    padded = np.concatenate([x, normal(B, 20, D, seed=1)], axis=1)
    mask = np.arange(T + 20) < T
    np.testing.assert_allclose(layer(padded, attention_mask=mask)[:, :T], layer(x), atol=1e-5)


# === Dropout, dtypes, initializers, errors ===


def test_dropout_is_on_the_weights_and_only_in_training():
    layer, x = made(dropout=0.5), normal(B, 64, D)
    y, weights = layer(x, return_attention_weights=True)
    np.testing.assert_array_equal(layer(x, training=False), y)
    np.testing.assert_allclose(y, reference(layer, x)[0], atol=1e-4)
    trained, kept = layer(x, training=True, return_attention_weights=True)
    assert not np.allclose(trained, y, atol=1e-3)
    np.testing.assert_array_equal(kept, weights)  # those before dropout
    # One value for all keys: without dropout the output is exactly that value, with it the kept weights' sum of it.
    layer.query_key_value.kernel.assign(np.zeros((D, 3 * D)))
    layer.output_dense.set_weights([np.eye(D), np.zeros(D)])
    sums = layer(x, training=True) / layer.query_key_value.bias[2 * D :]
    assert 0.02 < np.std(sums) < 0.5 and abs(np.mean(sums) - 1) < 0.1


@pytest.mark.parametrize("policy, dtype", [("mixed_bfloat16", "bfloat16"), ("mixed_float16", "float16")])
def test_softmax_is_float32_under_every_policy(policy, dtype):
    layer, length = made(dtype=policy), 300
    x = normal(B, length, D)
    y, weights = layer(x, return_attention_weights=True)
    assert (y.dtype, weights.dtype) == (dtype, "float32")
    assert all(w.dtype == "float32" for w in layer.weights)
    np.testing.assert_allclose(np.sum(weights, axis=-1), 1, atol=1e-5)  # half precision adds 300 weights to about 1e-2
    expected, _ = reference(layer, x)
    np.testing.assert_allclose(ops.cast(y, "float32"), expected, atol=0.1 * np.abs(expected).max())
    # Scores of some thousands: float16 has no exp(12), and float32 none beyond exp(88).
    y, weights = layer(10 * x, return_attention_weights=True)
    assert np.isfinite(weights).all() and np.isfinite(ops.cast(y, "float32")).all()
    np.testing.assert_allclose(np.sum(weights, axis=-1), 1, atol=1e-5)


def test_initializers():
    layer = MultiHeadAttention(
        H, kernel_initializer=keras.initializers.RandomNormal(stddev=0.5), output_initializer="zeros"
    )
    layer.build((None, None, 128))
    np.testing.assert_allclose(np.std(layer.query_key_value.kernel), 0.5, rtol=0.02)
    assert not np.any(layer.output_dense.kernel)
    assert not np.any(layer.query_key_value.bias)


def test_width_is_divisible_by_heads():
    with pytest.raises(ValueError, match="hidden dim 8 is not divisible by 3 attention heads"):
        MultiHeadAttention(3)(normal(B, T, D))


def test_symbolic_outputs():
    layer, inputs = MultiHeadAttention(H), keras.Input((None, D))
    outputs = layer(inputs, return_attention_weights=True)
    assert [output.shape for output in outputs] == [(None, None, D), (None, H, None, None)]
    model, x = keras.Model(inputs, outputs), normal(B, T, D)
    for found, expected in zip(model(x), layer(x, return_attention_weights=True), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert layer(inputs).shape == (None, None, D)
