import gc

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfgpt.training.optimizer import FusedAdamW, make_optimizer
from tfgpt.training.run_config import RunConfig


def test_one_step_is_adamw_on_matrices_only():
    matrix = keras.Variable(np.full((2, 2), 2.0, "float32"), name="matrix")
    vector = keras.Variable(np.full((2,), 2.0, "float32"), name="vector")
    run = RunConfig(
        data=["x"],
        out="y",
        steps=10,
        warmup_steps=0,
        learning_rate=0.1,
        min_learning_rate=0.1,
        weight_decay=0.5,
        beta_1=0.9,
        beta_2=0.99,
        clip_norm=0.0,
    )
    optimizer = make_optimizer(run, [matrix, vector])
    gradient = np.array([[0.3, -0.3], [0.3, -0.3]], "float32")
    optimizer.apply([keras.ops.array(gradient), keras.ops.array(gradient[0])], [matrix, vector])
    # After one step Adam's bias-corrected moments are g and g², so the update is the learning rate times the sign.
    np.testing.assert_allclose(vector.numpy(), 2.0 - 0.1 * np.sign(gradient[0]), rtol=1e-5)
    np.testing.assert_allclose(matrix.numpy(), 2.0 * (1 - 0.1 * 0.5) - 0.1 * np.sign(gradient), rtol=1e-5)


# === The optimizers by name, against their papers in NumPy: three steps of a matrix and a vector ===

SHAPES = [(4, 6), (5,)]
RATE, DECAY = 0.02, 0.3


def start_and_gradients():
    rng = np.random.default_rng(3)
    return [rng.normal(0, 1, s) for s in SHAPES], [[rng.normal(0, 1, s) for s in SHAPES] for _ in range(3)]


def ours(name, start, gradients):
    variables = [keras.Variable(x.astype("float32"), name=f"kernel_{i}") for i, x in enumerate(start)]
    rates = {"learning_rate": RATE, "min_learning_rate": RATE, "warmup_steps": 0, "weight_decay": DECAY}
    betas = {"beta_1": 0.9, "beta_2": 0.99, "epsilon": 1e-8, "clip_norm": 0.0}
    optimizer = make_optimizer(RunConfig(data=["x"], out="y", steps=10, optimizer=name, **rates, **betas), variables)
    for step in gradients:
        optimizer.apply([keras.ops.array(g.astype("float32")) for g in step], variables)
    return [variable.numpy() for variable in variables]


def adamw(x, gradients, decay):
    m = v = 0
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        x = x * (1 - RATE * decay) - RATE * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
    return x


def lion(x, gradients, decay):
    """Chen et al. 2023, algorithm 2."""
    m = np.zeros_like(x)
    for g in gradients:
        x = x - RATE * (np.sign(0.9 * m + 0.1 * g) + decay * x)
        m = 0.99 * m + 0.01 * g
    return x


def adafactor(x, gradients, decay):
    """Shazeer and Stern 2018, algorithms 4 and 5, with the rate of algorithm 5 relative to the tensor's size."""
    rms = lambda y: np.sqrt(np.mean(y**2))  # noqa: E731
    rows = columns = v = 0
    for t, g in enumerate(gradients, 1):
        beta = 1 - t**-0.8
        square = g**2 + 1e-30
        x = x * (1 - RATE * decay)  # Keras decays first
        if x.ndim == 2:
            rows = beta * rows + (1 - beta) * square.sum(1)
            columns = beta * columns + (1 - beta) * square.sum(0)
            v = np.outer(rows, columns) / rows.sum()
        else:
            v = beta * v + (1 - beta) * square
        update = g / np.sqrt(v)
        x = x - max(1e-3, rms(x)) * RATE * update / max(1.0, rms(update))
    return x


def muon(x, gradients, decay):
    """Jordan et al. 2024, scaled by 0.2 sqrt(max(n, m)) (Liu et al. 2025, equation 4); AdamW for vectors."""
    if x.ndim != 2:
        return adamw(x, gradients, decay)
    m = np.zeros_like(x)
    for g in gradients:
        m = 0.95 * m + g
        o = g + 0.95 * m
        o = o / np.linalg.norm(o)
        for _ in range(5):
            a = o @ o.T
            o = 3.4445 * o + (-4.7750 * a + 2.0315 * a @ a) @ o
        x = x * (1 - RATE * decay) - RATE * 0.2 * np.sqrt(max(x.shape)) * o
    return x


@pytest.mark.parametrize("definition", [adamw, lion, adafactor, muon])
def test_the_optimizers_are_the_papers_and_decay_matrices_only(definition):
    start, gradients = start_and_gradients()
    found = ours(definition.__name__, start, gradients)
    for i, x in enumerate(start):
        expected = definition(x, [step[i] for step in gradients], DECAY if x.ndim == 2 else 0.0)
        assert np.abs(expected - x).max() > RATE / 2
        np.testing.assert_allclose(found[i], expected, rtol=2e-4, atol=2e-5)


def test_muon_leaves_embeddings_to_adamw():
    start, gradients = start_and_gradients()
    embedding = keras.layers.Embedding(4, 6, name="token_embedding")
    embedding.build()
    embedding.embeddings.assign(start[0])
    rates = {"learning_rate": RATE, "min_learning_rate": RATE, "warmup_steps": 0, "weight_decay": DECAY}
    config = RunConfig(data=["x"], out="y", steps=10, optimizer="muon", beta_2=0.99, clip_norm=0.0, **rates)
    optimizer = make_optimizer(config, embedding.trainable_variables)
    for step in gradients:
        optimizer.apply([keras.ops.array(step[0].astype("float32"))], embedding.trainable_variables)
    expected = adamw(start[0], [step[0] for step in gradients], DECAY)
    np.testing.assert_allclose(embedding.embeddings.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_clipped_by_their_global_norm():
    variable = keras.Variable(np.zeros(4, "float32"))
    run = RunConfig(data=["x"], out="y", steps=10, clip_norm=1.0)
    optimizer = make_optimizer(run, [variable])
    clipped = optimizer._clip_gradients([keras.ops.array(np.full(4, 10.0, "float32"))])
    np.testing.assert_allclose(np.linalg.norm(np.asarray(clipped[0])), 1.0, rtol=1e-5)


# === AdamW in one pass, against Keras' ===


def applying(optimizer, variables, compiled):
    def apply(*gradients):
        optimizer.apply(list(gradients), variables)

    return tf.function(apply, autograph=False) if compiled else apply


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("fields", [{}, {"clip_norm": 0.0}, {"weight_decay": 0.0}, {"ema_decay": 0.5}])
def test_fused_adamw_is_keras_own_step_by_step(fields, compiled):
    start, gradients = start_and_gradients()
    schedule = {"steps": 10, "warmup_steps": 2, "learning_rate": RATE, "min_learning_rate": 0.0}
    config = RunConfig(data=["x"], out="y", **schedule | {"weight_decay": DECAY, "clip_norm": 1.0} | fields)
    pair = []
    for fused in (False, True):
        variables = [keras.Variable(x.astype("float32"), name=f"kernel_{i}") for i, x in enumerate(start)]
        optimizer = make_optimizer(config, variables, fused)
        assert (type(optimizer) is FusedAdamW) == fused
        optimizer.build(variables)
        pair.append((optimizer, variables, applying(optimizer, variables, compiled)))
    # Norms of about 5 are clipped, those of about 0.005 are not.
    for number, step in enumerate([*gradients, *([x * 1e-3 for x in g] for g in gradients)], 1):
        for *_, apply in pair:
            apply(*(tf.constant(g, "float32") for g in step))
        for a, b in zip(pair[0][0].variables + pair[0][1], pair[1][0].variables + pair[1][1], strict=True):
            np.testing.assert_allclose(b.numpy(), a.numpy(), rtol=2e-6, atol=1e-7, err_msg=f"{a.path}, step {number}")
    assert np.abs(pair[1][1][0].numpy() - start[0]).max() > RATE / 2


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])  # the last one's square is infinite
def test_gradients_that_are_not_finite_are_as_with_keras(bad, clip_norm):
    start, [gradient, *_] = start_and_gradients()
    gradient[0][0, 0] = bad
    found = []
    for fused in (False, True):
        variables = [keras.Variable(x.astype("float32"), name=f"kernel_{i}") for i, x in enumerate(start)]
        config = RunConfig(data=["x"], out="y", steps=10, warmup_steps=0, clip_norm=clip_norm)
        make_optimizer(config, variables, fused).apply([tf.constant(g, "float32") for g in gradient], variables)
        found.append([variable.numpy() for variable in variables])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-6)
        assert not clip_norm or np.isnan(b).all()


def test_other_optimizers_are_never_fused():
    variables = [keras.Variable(np.ones((2, 2), "float32"))]
    optimizer = make_optimizer(RunConfig(data=["x"], out="y", optimizer="lion"), variables, fused=True)
    assert type(optimizer) is keras.optimizers.Lion


def test_an_optimizer_after_one_that_is_gone():
    # A compiled function holds on to no variables: one for all optimizers would fail the second.
    config = RunConfig(data=["x"], out="y", steps=10, warmup_steps=0)
    for _ in range(2):
        variables = [keras.Variable(np.ones((2, 3), "float32"), name="kernel")]
        optimizer = make_optimizer(config, variables, fused=True)
        optimizer.build(variables)
        step = applying(optimizer, variables, compiled=True)
        step(tf.ones((2, 3)))
        assert variables[0].numpy().max() < 1
        del variables, optimizer, step
        gc.collect()
