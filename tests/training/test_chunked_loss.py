"""The loss a chunk of the logits at a time: against one tape over all of them, and against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfgpt.models import GPT2Backbone, GPT2CausalLM
from tfgpt.training import chunked_loss as module
from tfgpt.training.chunked_loss import chunked_loss, chunked_loss_sum, number_of_chunks
from tfgpt.training.losses import TokenLoss, token_losses
from tfgpt.training.train_step import TrainingCausalLM

N, D, V = 14, 6, 20
SETTINGS = {"label_smoothing": 0.1, "z_loss": 1e-2}
AT_ONCE = [10**6, 7 * V, 4 * V, 3 * V + 1, V, 1]  # logits, in 1, 2, 4 and 5 (the last ones padded), 14 and 14 chunks


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    hidden, embedding = rng.normal(0, 1, (N, D)).astype("float32"), rng.normal(0, 1, (V, D)).astype("float32")
    return hidden, tf.Variable(embedding), rng.integers(0, V, N), (rng.random(N) * (rng.random(N) < 0.6)).astype("f4")


def by_one_tape(hidden, embedding, targets, weights, dtype="float32"):
    hidden = tf.constant(hidden)
    with tf.GradientTape() as tape:
        tape.watch(hidden)
        logits = tf.matmul(tf.cast(hidden, dtype), tf.cast(embedding, dtype), transpose_b=True)
        loss = tf.reduce_sum(token_losses(logits, targets, **SETTINGS) * weights)
    return [loss, *tape.gradient(loss, [hidden, embedding])]


def by_numpy(hidden, embedding, targets, weights):
    """Of the formula: d loss / d logits = w ((1 + 2 z log Z) softmax - (1 - ε) one-hot - ε / V)."""
    hidden, embedding = hidden.astype("float64"), embedding.numpy().astype("float64")
    epsilon, z = SETTINGS.values()
    logits = hidden @ embedding.T
    log_z = np.log(np.exp(logits).sum(-1, keepdims=True))
    soft = (1 - epsilon) * np.eye(V)[targets] + epsilon / V
    losses = ((log_z - logits) * soft).sum(-1) + z * log_z[:, 0] ** 2
    d_logits = weights[:, None] * ((1 + 2 * z * log_z) * np.exp(logits - log_z) - soft)
    return (losses * weights).sum(), d_logits @ embedding, d_logits.T @ hidden


def in_chunks(hidden, embedding, targets, weights, dtype="float32"):
    def project(rows):
        return tf.matmul(tf.cast(rows, dtype), tf.cast(embedding, dtype), transpose_b=True)

    loss, d_hidden, [d_embedding] = chunked_loss(
        project, [embedding], tf.convert_to_tensor(hidden), targets, weights, **SETTINGS
    )
    return [loss, d_hidden, d_embedding]


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("at_once", AT_ONCE)
def test_sum_and_gradients_are_those_of_the_whole_logits(batch, at_once, graph, monkeypatch):
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", at_once)
    found = (tf.function(in_chunks, autograph=False) if graph else in_chunks)(*batch)
    for a, b, c in zip(found, by_one_tape(*batch), by_numpy(*batch), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(a, c, rtol=1e-4, atol=1e-5)
    [hidden, embedding, targets, weights] = batch
    alone = chunked_loss_sum(lambda x: x @ tf.transpose(embedding), V, hidden, targets, weights, **SETTINGS)
    assert float(alone) == pytest.approx(float(found[0]), rel=1e-5)


@pytest.mark.parametrize("at_once", [10**6, 4 * V])
def test_bfloat16_logits_have_float32_sums(batch, at_once, monkeypatch):
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", at_once)
    found = in_chunks(*batch, dtype="bfloat16")
    assert {x.dtype for x in found} == {tf.float32}
    for a, b in zip(found, by_one_tape(*batch, dtype="bfloat16"), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=0.02 * np.abs(b).max())


def test_unknown_rows_are_one_chunk(batch, monkeypatch):
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", V)
    hidden, embedding, targets, weights = batch
    specs = [tf.TensorSpec((None, D)), tf.TensorSpec((None,), "int64"), tf.TensorSpec((None,))]
    step = tf.function(lambda h, t, w: in_chunks(h, embedding, t, w), input_signature=specs, autograph=False)
    for a, b in zip(step(hidden, targets, weights), by_one_tape(*batch), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_prime_number_of_rows_has_few_chunks():
    assert number_of_chunks(1999, 50257) == 2  # not 1999
    assert number_of_chunks(None, 50257) == 1
    for rows in (1, 1335, 1336, 4099, 100_003):
        count = number_of_chunks(rows, 50257)
        assert -(-rows // count) * 50257 <= module.LOGITS_AT_ONCE
        assert count == 1 or -(-rows // (count - 1)) * 50257 > module.LOGITS_AT_ONCE


def largest_tensor(function, *arguments):
    """The most elements of any tensor in a traced function and those that it calls."""
    graphs, largest, seen = [function.get_concrete_function(*arguments).graph], 0, set()
    while graphs:
        graph = graphs.pop()
        shapes = [tensor.shape for operation in graph.get_operations() for tensor in operation.outputs]
        largest = max([largest, *(s.num_elements() for s in shapes if s.is_fully_defined())])
        graphs += [called.graph for name, called in graph._functions.items() if name not in seen]
        seen |= set(graph._functions)
    return largest


B, T = 4, 8
LARGE = 500  # a vocabulary whose logits outweigh every other tensor


@pytest.fixture(scope="module")
def models():
    """A training model, and Keras' own step with the same weights; compiled with a smoothed loss for validation."""
    pair = []
    for model_class in (TrainingCausalLM, GPT2CausalLM):
        keras.utils.set_random_seed(0)
        shape = {"vocabulary_size": LARGE, "num_layers": 1, "num_heads": 2, "hidden_dim": 4, "max_sequence_length": T}
        model = model_class(GPT2Backbone(**shape, initializer_range=0.3))
        model.compile(keras.optimizers.SGD(0.0), TokenLoss(0.1, 1e-2), jit_compile=False)
        model.optimizer.build(model.trainable_variables)
        pair.append(model)
    return pair


def windows(rows, weighted=True):
    rng = np.random.default_rng(rows)
    ids = rng.integers(0, LARGE, (rows, T + 1)).astype("int32")
    weights = rng.integers(0, 2, (rows, T)).astype("float32")
    return (ids[:, :-1], ids[:, 1:], weights) if weighted else (ids[:, :-1], ids[:, 1:])


@pytest.mark.parametrize("step", ["train_step", "test_step"])
def test_no_tensor_of_a_step_is_as_large_as_the_logits(models, step, monkeypatch):
    tensors = [tf.constant(x) for x in windows(B)]

    def largest():
        return largest_tensor(tf.function(lambda *data: getattr(models[0], step)(data), autograph=False), *tensors)

    assert largest() == B * T * LARGE
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 8 * LARGE)
    assert largest() == 8 * LARGE


@pytest.mark.parametrize("rows_at_once", [10**6, 8, 5])
@pytest.mark.parametrize("weighted", [True, False])
def test_validation_is_that_of_keras(models, weighted, rows_at_once, monkeypatch):
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", rows_at_once * LARGE)
    ours, keras_own = models
    ours.make_test_function(force=True)
    data = windows(B, weighted)
    expected = keras_own.test_on_batch(*data)
    assert ours.test_on_batch(*data) == pytest.approx(expected, rel=1e-5)
    # A dataset without drop_remainder, whose batch axis is unknown.
    batches = tf.data.Dataset.from_tensor_slices(windows(7, weighted)).batch(B)
    assert ours.evaluate(batches, verbose=0) == pytest.approx(keras_own.evaluate(batches, verbose=0), rel=1e-5)
    nothing = (*windows(B)[:2], np.zeros((B, T), "float32"))
    assert ours.test_on_batch(*nothing) == keras_own.test_on_batch(*nothing) == 0.0


def test_validation_needs_a_token_loss():
    model = TrainingCausalLM(GPT2Backbone(10, 1, 1, 4, max_sequence_length=4))
    model.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(ValueError, match="expected a TokenLoss"):
        model.test_on_batch(np.ones((1, 4)), np.ones((1, 4)))
