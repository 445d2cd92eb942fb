import keras
import numpy as np
import pytest
import tensorflow as tf

from tfgpt.training.losses import TokenLoss, token_losses


def definition(logits, targets, label_smoothing, z_loss):
    """The papers' formulas in float64: cross-entropy against smoothed one-hot targets, and z log² Z."""
    logits = logits.astype(np.float64)
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    log_probabilities = logits - log_z[..., None]
    classes = logits.shape[-1]
    wanted = np.eye(classes)[targets] * (1 - label_smoothing) + label_smoothing / classes
    return -(wanted * log_probabilities).sum(-1) + z_loss * log_z**2


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return rng.normal(0, 5, (3, 7, 40)).astype("float32"), rng.integers(0, 40, (3, 7))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.1])
def test_losses_are_the_papers(batch, label_smoothing, z_loss):
    losses = token_losses(*batch, label_smoothing, z_loss)
    np.testing.assert_allclose(losses, definition(*batch, label_smoothing, z_loss), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_finite_differences(batch):
    logits, targets = batch[0][:1, :2], batch[1][:1, :2]
    with tf.GradientTape() as tape:
        watched = tf.constant(logits)
        tape.watch(watched)
        loss = tf.reduce_sum(token_losses(watched, targets, 0.1, 0.01))
    gradient = tape.gradient(loss, watched).numpy()
    for place in [(0, 0, 3), (0, 1, 39), (0, 0, targets[0, 0])]:
        step = np.zeros(logits.shape)
        step[place] = 1e-4
        high, low = (definition(logits + sign * step, targets, 0.1, 0.01).sum() for sign in (1, -1))
        assert gradient[place] == pytest.approx((high - low) / 2e-4, rel=1e-3, abs=1e-6)


def test_half_precision_logits_have_float32_losses(batch):
    logits = tf.cast(batch[0], "bfloat16")
    losses = token_losses(logits, batch[1], 0.1, 1e-4)
    assert losses.dtype == tf.float32
    expected = definition(tf.cast(logits, "float32").numpy(), batch[1], 0.1, 1e-4)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)


def test_the_mean_counts_no_rows_of_weight_zero(batch):
    weights = np.repeat([[1.0], [1.0], [0.0]], 7, axis=1)
    expected = definition(*batch, 0.1, 1e-3)[:2].mean()
    assert float(TokenLoss(0.1, 1e-3)(batch[1], batch[0], weights)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_the_largest_token_id_is_kept_whatever_the_policy(policy):
    keras.config.set_dtype_policy(policy)
    try:
        logits = np.zeros((1, 1, 50257), "float32")
        logits[..., 50255] = 50.0
        assert float(TokenLoss()(np.array([[50255]]), logits)) == pytest.approx(0.0, abs=1e-6)
    finally:
        keras.config.set_dtype_policy("float32")


def test_it_is_saved_with_its_settings():
    loss = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(TokenLoss(0.1, 1e-4)))
    assert (loss.label_smoothing, loss.z_loss, loss.reduction) == (0.1, 1e-4, "mean_with_sample_weight")
