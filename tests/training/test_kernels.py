"""Compiled chains and products with gradients of their own, against the plain functions and TensorFlow's gradients."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfgpt.layers import gelu_tanh
from tfgpt.layers.attention import attention_weights
from tfgpt.layers.dense import affine
from tfgpt.layers.embedding import project
from tfgpt.layers.fusible import kernels
from tfgpt.layers.normalization import normalize
from tfgpt.models import GPT2Backbone
from tfgpt.training.chunked_loss import loss_and_gradient
from tfgpt.training.kernels import choose_kernels, fused_kernel, step_kernel
from tfgpt.training.losses import TokenLoss
from tfgpt.training.optimizer import FusedAdamW, make_optimizer
from tfgpt.training.run_config import RunConfig
from tfgpt.training.train_step import TrainingCausalLM

# How far roundings of one bfloat16 (8 bits) may add up, relative to the largest entry.
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2, "float16": 4e-3}
B, H, T, S = 2, 3, 4, 5


def drawn(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(0, 1, shape).astype("float32") for shape in shapes]


def masks():
    ragged = np.random.default_rng(1).random((B, 1, T, S)) < 0.6
    ragged[..., 0] = True
    nowhere = ragged.copy()
    nowhere[1, 0, 2] = False  # a padded query, whose keys are all masked
    return {"none": [], "(T, S)": [np.tri(T, S, dtype=bool)], "(B, 1, T, S)": [ragged], "a row of none": [nowhere]}


def cases():
    """Name, function, constants, tensors that are cast, tensors that stay as they are."""
    yield "gelu_tanh", gelu_tanh, {}, drawn((7, 5)), []
    x, gamma, beta = drawn((7, 5), (5,), (5,))
    yield "normalize", normalize, {"epsilon": 1e-5}, [x], [gamma, beta]
    for name, (rows, units) in {"wide": (4, 9), "narrow": (9, 4)}.items():
        x, kernel, bias = drawn((7, rows), (rows, units), (units,))
        yield f"affine {name}", affine, {}, [x, kernel, bias], []
        yield f"affine {name} without bias", affine, {}, [x, kernel], []
    yield "project", project, {}, drawn((7, 4), (9, 4)), []
    for name, mask in masks().items():
        for dtype in ("float32", "compute"):
            yield f"softmax to {dtype}, mask {name}", attention_weights, {"dtype": dtype}, drawn((B, H, T, S)), mask


def outputs_and_gradients(call, tensors, compiled, unknown_rows):
    """The output and its gradients by all floating tensors, for an upstream gradient that is nowhere constant."""

    def both(*tensors):
        floating = [tensor for tensor in tensors if tensor.dtype.is_floating]
        with tf.GradientTape() as tape:
            tape.watch(floating)
            y = call(*tensors)
        ramp = tf.cast(tf.reshape(tf.sin(tf.range(tf.cast(tf.size(y), "float32"))), tf.shape(y)), y.dtype)
        return [y, *tape.gradient(y, floating, output_gradients=ramp)]

    if not compiled:
        return both(*tensors)
    specs = [tf.TensorSpec(x.shape, x.dtype) for x in tensors]
    if unknown_rows:
        specs[0] = tf.TensorSpec((None, *specs[0].shape[1:]), specs[0].dtype)
    return tf.function(both, input_signature=specs, autograph=False)(*tensors)


@pytest.mark.parametrize("way", ["eager", "graph", "unknown rows"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("function, constants, cast, kept", [pytest.param(*c, id=name) for name, *c in cases()])
def test_forward_and_gradients_are_those_of_the_plain_function(function, constants, cast, kept, dtype, way):
    if constants.get("dtype") == "compute":
        constants = {"dtype": dtype}
    tensors = [*(tf.cast(x, dtype) for x in cast), *map(tf.constant, kept)]
    # The plain function of the same, rounded, inputs: in float32, by TensorFlow's own gradients.
    wide = [x if x.dtype == tf.bool else tf.cast(x, "float32") for x in tensors]
    plain = functools.partial(function, **constants | ({"dtype": "float32"} if "dtype" in constants else {}))
    expected = outputs_and_gradients(plain, wide, compiled=False, unknown_rows=False)
    with kernels(fused_kernel):
        found = outputs_and_gradients(
            functools.partial(function, **constants), tensors, way != "eager", way == "unknown rows"
        )
    # Outputs and gradients have the dtypes of the plain function's.
    floating = [x for x in tensors if x.dtype.is_floating]
    assert [x.dtype for x in found] == [constants.get("dtype", dtype), *(x.dtype for x in floating)]
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        a, b = tf.cast(a, "float32").numpy(), b.numpy()
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[dtype] * max(1.0, np.abs(b).max()))


def test_the_softmax_and_its_gradient_by_numpy():
    [scores], [mask] = drawn((B, H, T, S)), masks()["(B, 1, T, S)"]
    upstream = np.cos(np.arange(scores.size)).reshape(scores.shape)
    y = np.exp(scores.astype("float64")) * mask
    y /= y.sum(-1, keepdims=True)
    with kernels(fused_kernel), tf.GradientTape() as tape:
        x = tf.constant(scores)
        tape.watch(x)
        found = attention_weights(x, tf.constant(mask), dtype="float32")
    np.testing.assert_allclose(found, y, rtol=1e-5, atol=1e-6)
    gradient = tape.gradient(found, x, output_gradients=tf.constant(upstream, "float32"))
    np.testing.assert_allclose(gradient, y * (upstream - (y * upstream).sum(-1, keepdims=True)), rtol=1e-4, atol=1e-6)


def test_one_kernel_takes_one_dtype_and_shape_after_another():
    # It is cached by the function; its traces must not be.
    with kernels(fused_kernel):
        for dtype, shape in [("float32", (3, 4)), ("bfloat16", (3, 4)), ("float32", (5,)), ("float16", (2, 2))]:
            [x] = drawn(shape)
            y = gelu_tanh(tf.cast(x, dtype))
            assert y.dtype == dtype
            np.testing.assert_allclose(tf.cast(y, "float32"), gelu_tanh(x), atol=TOLERANCE[dtype] * 3)
        [x, gamma, beta] = drawn((3, 4), (4,), (4,))
        for epsilon in (1e-5, 1.0):
            expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * gamma + beta
            np.testing.assert_allclose(normalize(x, gamma, beta, epsilon=epsilon), expected, rtol=1e-4, atol=1e-5)


def test_variables_are_read_as_their_layer_has_them_cast():
    dense = keras.layers.Dense(4, dtype="mixed_bfloat16")
    dense.build((None, 3))
    dense.call = lambda x: affine(x, dense.kernel, dense.bias)  # within Keras' autocast
    with kernels(fused_kernel), tf.GradientTape() as tape:
        y = dense(tf.ones((2, 3)))
    assert y.dtype == tf.bfloat16
    gradients = tape.gradient(y, [v.value for v in dense.trainable_variables])
    assert [g.dtype for g in gradients] == ["float32", "float32"]
    np.testing.assert_array_equal(gradients[0], np.full((3, 4), 2.0))


def test_the_loss_and_its_gradient():
    [logits, weights] = drawn((6, 11), (6,))
    targets, settings = np.arange(6, dtype="int32"), {"label_smoothing": 0.1, "z_loss": 1e-2}
    expected = loss_and_gradient(*map(tf.constant, (logits, targets, weights)), **settings)
    with kernels(fused_kernel):
        found = loss_and_gradient(*map(tf.constant, (logits, targets, weights)), **settings)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# === Within a step that XLA compiles ===

BFLOAT16 = functools.partial(step_kernel, bfloat16_products=True)


def rounded(x):
    """An array's entries as bfloat16 has them, by NumPy: half to even in the upper half of a float32's bits."""
    bits = np.asarray(x, "float32").view("uint32").astype("uint64")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype("uint32").view("float32").astype("float64")


def compiled(function, *tensors):
    """The output and its gradients, for an upstream gradient of the output's own size."""

    @tf.function(jit_compile=True, autograph=False)
    def both(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            y = function(*tensors)
        return [y, *tape.gradient(y, tensors, output_gradients=tf.sin(y))]

    return [x.numpy() for x in both(*map(tf.constant, tensors))]


@pytest.mark.parametrize("bias", [True, False])
def test_bfloat16_products_by_numpy(bias):
    x, kernel, b = drawn((7, 5), (5, 3), (3,))
    tensors = [x, kernel, b][: 2 + bias]
    with kernels(BFLOAT16):
        y, *gradients = compiled(affine, *tensors)
    expected = rounded(x) @ rounded(kernel) + (b if bias else 0)
    upstream = np.sin(y)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(gradients[0], rounded(upstream) @ rounded(kernel).T, rtol=0, atol=2e-6)
    np.testing.assert_allclose(gradients[1], rounded(x).T @ rounded(upstream), rtol=0, atol=2e-6)
    if bias:
        np.testing.assert_allclose(gradients[2], upstream.sum(0), rtol=0, atol=2e-6)
    assert np.abs(expected - (x @ kernel + (b if bias else 0))).max() > 1e-3  # more than the test lets pass


def test_the_projection_in_bfloat16_by_numpy():
    x, embeddings = drawn((7, 5), (11, 5))
    with kernels(BFLOAT16):
        y, d_x, d_embeddings = compiled(project, x, embeddings)
    np.testing.assert_allclose(y, rounded(x) @ rounded(embeddings).T, rtol=0, atol=2e-6)
    np.testing.assert_allclose(d_x, rounded(np.sin(y)) @ rounded(embeddings), rtol=0, atol=1e-5)
    np.testing.assert_allclose(d_embeddings, rounded(np.sin(y)).T @ rounded(x), rtol=0, atol=2e-6)


def test_normalization_of_rows_is_that_of_any_axes():
    tensors = drawn((2, 3, 5), (5,), (5,))
    function = functools.partial(normalize, epsilon=1e-5)
    plain = compiled(function, *tensors)
    with kernels(step_kernel):
        found = compiled(function, *tensors)
    for a, b in zip(plain, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


def test_what_a_run_chooses():
    def chosen(**fields):
        return choose_kernels(RunConfig(data=["x"], out="y", **fields))

    assert chosen(compile="none") is None
    assert chosen(compile="kernels") is fused_kernel
    for precision, bfloat16_products in (("float32", False), ("mixed_bfloat16", False), ("bfloat16_products", True)):
        found = chosen(compile="step", precision=precision)
        assert found.func is step_kernel and found.keywords == {"bfloat16_products": bfloat16_products}


# === Whole steps ===

SHAPE = {"vocabulary_size": 30, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": 8}
EVERYTHING = {"label_smoothing": 0.1, "z_loss": 1e-2, "accumulate_steps": 2, "log_gradients": True}


def trained(chosen, dtype=None, jit_compile=False, run_eagerly=False, model_fields=None, **fields):
    """A model after four steps by the kernels chosen, their logs, and a validation loss."""
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    model = TrainingCausalLM(
        GPT2Backbone(**SHAPE, initializer_range=0.2, dtype=dtype), kernels=chosen, **(model_fields or {})
    )
    defaults = {"steps": 6, "warmup_steps": 2, "learning_rate": 0.01, "weight_decay": 0.5, "epsilon": 1e-4}
    config = RunConfig(data=["x"], out="y", **(defaults | {"clip_norm": 0.3} | fields))
    optimizer = make_optimizer(config, model.trainable_variables, fused=chosen is not None)
    model.compile(optimizer, TokenLoss(), jit_compile=jit_compile, run_eagerly=run_eagerly)
    logs = []
    for _ in range(4):
        model.reset_metrics()
        ids = rng.integers(0, 30, (4, 9))
        weights = rng.integers(0, 2, (4, 8)).astype("float32")
        logs.append(model.train_on_batch(ids[:, :-1], ids[:, 1:], weights, return_dict=True))
    logs.append({"val_loss": model.test_on_batch(ids[:, :-1], ids[:, 1:], weights)})
    return model, logs


@pytest.mark.parametrize(
    "model_fields, fields",
    [
        ({}, {}),
        (EVERYTHING, {"ema_decay": 0.5}),
        ({}, {"clip_norm": 0.0, "weight_decay": 0.0}),
    ],
)
def test_float32_steps_are_those_without_kernels(model_fields, fields):
    plain, plain_logs = trained(None, model_fields=model_fields, **fields)
    fused, fused_logs = trained(fused_kernel, model_fields=model_fields, **fields)
    assert isinstance(fused.optimizer, FusedAdamW) and not isinstance(plain.optimizer, FusedAdamW)
    for a, b in zip(plain_logs, fused_logs, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert b[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    for a, b in zip(plain.optimizer.variables, fused.optimizer.variables, strict=True):
        np.testing.assert_allclose(b.numpy(), a.numpy(), rtol=1e-5, atol=1e-5, err_msg=a.path)
    for a, b in zip(plain.trainable_variables, fused.trainable_variables, strict=True):
        np.testing.assert_allclose(b.numpy(), a.numpy(), rtol=1e-5, atol=1e-5, err_msg=a.path)


@pytest.mark.parametrize("model_fields", [{}, EVERYTHING])
def test_a_compiled_step_is_that_without_kernels(model_fields):
    plain, plain_logs = trained(None, model_fields=model_fields)
    compiled, logs = trained(step_kernel, jit_compile=True, model_fields=model_fields)
    for a, b in zip(plain_logs, logs, strict=True):
        for name, value in a.items():
            assert b[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    for a, b in zip(plain.trainable_variables, compiled.trainable_variables, strict=True):
        np.testing.assert_allclose(b.numpy(), a.numpy(), rtol=1e-5, atol=1e-5, err_msg=a.path)


@pytest.mark.parametrize("model_fields", [{}, EVERYTHING])
def test_a_step_with_bfloat16_products_is_near_float32s(model_fields):
    _, exact_logs = trained(None, model_fields=model_fields)
    model, logs = trained(BFLOAT16, jit_compile=True, model_fields=model_fields)
    for a, b in zip(exact_logs, logs, strict=True):
        for name in {"loss", "val_loss", "gradient_norm"} & a.keys():
            assert b[name] == pytest.approx(a[name], rel=0.02), name
            assert b[name] != a[name], name  # it is another arithmetic
    _, eager_logs = trained(BFLOAT16, model_fields=model_fields, run_eagerly=True)
    for a, b in zip(eager_logs, logs, strict=True):  # the same roundings, summed in another order
        for name in {"loss", "val_loss", "gradient_norm"} & a.keys():
            assert b[name] == pytest.approx(a[name], rel=2e-3), name
    assert {v.dtype for v in model.variables if "float" in v.dtype} == {"float32"}


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_steps_are_near_float32s(dtype):
    _, exact_logs = trained(None, model_fields=EVERYTHING)
    model, logs = trained(fused_kernel, dtype, model_fields=EVERYTHING)
    for a, b in zip(exact_logs, logs, strict=True):
        for name in {"loss", "val_loss", "gradient_norm"} & a.keys():
            assert b[name] == pytest.approx(a[name], rel=0.02), name
    assert {v.dtype for v in model.trainable_variables} == {"float32"}


def test_kernels_stay_within_the_step():
    trained(fused_kernel)
    seen = []
    with kernels(None):
        gelu_tanh(tf.ones(1))

    def choose(function, **constants):
        seen.append(function.__name__)
        return functools.partial(function, **constants)

    with kernels(choose):
        trained(None)  # which has the choice of its own: none
        gelu_tanh(tf.ones(1))
    assert seen == ["gelu_tanh"]
