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
from tfgpt.training.kernels import fused_kernel
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


# === Whole steps ===

SHAPE = {"vocabulary_size": 30, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": 8}
EVERYTHING = {"label_smoothing": 0.1, "z_loss": 1e-2, "accumulate_steps": 2, "log_gradients": True}


def trained(fused, dtype=None, jit_compile=False, model_fields=None, **fields):
    """A model after four steps, their logs, and a validation loss."""
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    model = TrainingCausalLM(
        GPT2Backbone(**SHAPE, initializer_range=0.2, dtype=dtype), fused=fused, **(model_fields or {})
    )
    defaults = {"steps": 6, "warmup_steps": 2, "learning_rate": 0.01, "weight_decay": 0.5, "epsilon": 1e-4}
    config = RunConfig(data=["x"], out="y", **(defaults | {"clip_norm": 0.3} | fields))
    optimizer = make_optimizer(config, model.trainable_variables, fused=fused)
    model.compile(optimizer, TokenLoss(), jit_compile=jit_compile)
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
    plain, plain_logs = trained(False, model_fields=model_fields, **fields)
    fused, fused_logs = trained(True, model_fields=model_fields, **fields)
    assert isinstance(fused.optimizer, FusedAdamW) and not isinstance(plain.optimizer, FusedAdamW)
    for a, b in zip(plain_logs, fused_logs, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert b[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    for a, b in zip(plain.optimizer.variables, fused.optimizer.variables, strict=True):
        np.testing.assert_allclose(b.numpy(), a.numpy(), rtol=1e-5, atol=1e-5, err_msg=a.path)
    for a, b in zip(plain.trainable_variables, fused.trainable_variables, strict=True):
        np.testing.assert_allclose(b.numpy(), a.numpy(), rtol=1e-5, atol=1e-5, err_msg=a.path)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_steps_are_near_float32s(dtype):
    _, exact_logs = trained(False, model_fields=EVERYTHING)
    model, logs = trained(True, dtype, model_fields=EVERYTHING)
    for a, b in zip(exact_logs, logs, strict=True):
        for name in {"loss", "val_loss", "gradient_norm"} & a.keys():
            assert b[name] == pytest.approx(a[name], rel=0.02), name
    assert {v.dtype for v in model.trainable_variables} == {"float32"}


def test_kernels_stay_within_the_step():
    trained(True)
    seen = []
    with kernels(None):
        gelu_tanh(tf.ones(1))

    def choose(function, **constants):
        seen.append(function.__name__)
        return functools.partial(function, **constants)

    with kernels(choose):
        trained(False)  # which has the choice of its own: none
        gelu_tanh(tf.ones(1))
    assert seen == ["gelu_tanh"]
