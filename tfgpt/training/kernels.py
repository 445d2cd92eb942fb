"""Which kernels compute a training step on a CPU.

TensorFlow compiles a whole step with XLA or none of it. For wide models neither is best: oneDNN's products in graph
mode use a CPU's bfloat16 units to the full, and XLA's do not; but graph mode runs GELU as nine operators, each of which
reads and writes all of its tensors and goes to float32 and back. So products stay operators of the graph, and each
elementwise chain becomes one small compiled function: `fused_kernel`.

Narrow models are compiled as a whole. XLA's products of bfloat16 matrices are fast if they are to come out as float32,
and only then, which Keras never asks for: `step_kernel`.
"""

from __future__ import annotations

import functools

import tensorflow as tf

from tfgpt.layers.attention import attention_weights
from tfgpt.layers.dense import affine
from tfgpt.layers.embedding import project
from tfgpt.layers.normalization import normalize


def choose_kernels(config):
    """What `tfgpt.layers.fusible.kernels` is to be given for the steps of a run; None leaves functions as they are.

    Args:
        config: the arranged `FitConfig`.
    """
    if config.compile == "kernels":
        return fused_kernel
    if config.compile == "step":
        return functools.partial(step_kernel, bfloat16_products=config.precision == "bfloat16_products")
    return None


def fused_kernel(function, **constants):
    """The kernel of a fusible function (see `tfgpt.layers.fusible.kernels`).

    Example:

    >>> from tfgpt.layers import gelu_tanh
    >>> from tfgpt.layers.fusible import kernels
    >>> with kernels(fused_kernel):
    ...     round(float(gelu_tanh(tf.constant([1.0]))[0]), 4)
    0.8412
    """
    kernel = _KERNELS.get(function, _compiled)
    return kernel(function, tuple(constants.items()))


@functools.cache
def _compiled(function, constants):
    """The function compiled, and its gradient from its inputs alone, compiled with what it needs of the forward pass.

    Memory traffic is what these chains cost: to compute some of a chain again is cheaper than to keep what is inside.
    """
    function = functools.partial(function, **dict(constants))
    forward = tf.function(function, jit_compile=True, autograph=False)

    @tf.function(jit_compile=True, autograph=False)
    def backward(tensors, upstream):
        floating = [tensor for tensor in tensors if tensor.dtype.is_floating]  # a mask has no gradient
        with tf.GradientTape() as tape:
            tape.watch(floating)
            outputs = function(*tensors)
        return tape.gradient(outputs, floating, output_gradients=upstream)

    @_of_tensors
    @tf.custom_gradient
    def kernel(*tensors):
        def gradient(upstream):
            gradients = iter(backward(tensors, upstream))
            return [next(gradients) if tensor.dtype.is_floating else None for tensor in tensors]

        return forward(*tensors), gradient

    return kernel


@functools.cache
def _softmax(function, constants):
    """The softmax compiled, and its gradient from its output, which the product with the values keeps anyway."""
    forward = tf.function(functools.partial(function, **dict(constants)), jit_compile=True, autograph=False)

    @tf.function(jit_compile=True, autograph=False)
    def backward(weights, upstream, dtype, *mask):
        y, d_y = tf.cast(weights, "float32"), tf.cast(upstream, "float32")
        d_x = y * (d_y - tf.reduce_sum(y * d_y, axis=-1, keepdims=True))
        if mask:  # a masked key has the weight 0, but not where all keys of a query are masked
            d_x = tf.where(*mask, d_x, 0.0)
        return tf.cast(d_x, dtype)

    @_of_tensors
    @tf.custom_gradient
    def kernel(scores, *mask):
        weights = forward(scores, *mask)
        return weights, lambda upstream: [backward(weights, upstream, scores.dtype, *mask), *(None for _ in mask)]

    return kernel


def _of_tensors(kernel):
    """Keras' variables as tensors, which custom gradients need."""
    return lambda *tensors: kernel(*map(tf.convert_to_tensor, tensors))


@_of_tensors
@tf.custom_gradient
def _affine(x, kernel, *bias):
    """`x W + b` with the gradients' products in the forms that oneDNN is fast at in bfloat16."""

    def gradient(upstream):
        d_x = tf.matmul(upstream, kernel, transpose_b=True)
        if kernel.shape[1] > kernel.shape[0]:
            # A transposed first factor can cost twice the time of the product; to transpose it beforehand, in a form
            # that TensorFlow does not fold back into the product, costs a twentieth.
            transposed = tf.reshape(tf.transpose(x[:, None, :], (2, 1, 0)), (x.shape[1], -1))
            d_kernel = tf.matmul(transposed, upstream)
        else:
            d_kernel = tf.matmul(x, upstream, transpose_a=True)
        if not bias:
            return d_x, d_kernel
        ones = tf.ones((1, tf.shape(upstream)[0]), upstream.dtype)  # sums in float32, where BiasAddGrad does not
        return d_x, d_kernel, tf.matmul(ones, upstream)[0]

    y = tf.matmul(x, kernel)
    return (tf.nn.bias_add(y, *bias) if bias else y), gradient


@_of_tensors
@tf.custom_gradient
def _project(x, embeddings):
    """`x Eᵀ`, whose gradient by E comes out as E lies in memory."""

    def gradient(upstream):
        return tf.matmul(upstream, embeddings), tf.matmul(upstream, x, transpose_a=True)

    return tf.matmul(x, embeddings, transpose_b=True), gradient


def step_kernel(function, bfloat16_products=False, **constants):
    """The kernel of a fusible function within a step that XLA compiles as a whole.

    Args:
        bfloat16_products: the factors of products with weights are rounded to bfloat16; sums are float32, and so are
            all other tensors.

    Example:

    >>> from tfgpt.layers.fusible import kernels
    >>> with kernels(functools.partial(step_kernel, bfloat16_products=True)):
    ...     float(affine(tf.constant([[1.0, 2**-9]]), tf.constant([[1 + 2**-9], [1.0]]))[0, 0])
    1.001953125
    """
    if function is normalize.__wrapped__:
        return functools.partial(_normalize_rows, **constants)
    if bfloat16_products and function in _IN_BFLOAT16:
        return _IN_BFLOAT16[function]
    return functools.partial(function, **constants)


def _normalize_rows(x, gamma, beta, epsilon):
    """Of rows (N, D): over more axes than that XLA sums the gradients of `gamma` and `beta` ten times as slowly."""
    rows = normalize.__wrapped__(tf.reshape(x, (-1, x.shape[-1])), gamma, beta, epsilon=epsilon)
    return tf.reshape(rows, tf.shape(x))


@_of_tensors
@tf.custom_gradient
def _affine_in_bfloat16(x, kernel, *bias):
    """`x W + b` in float32, but for factors, those of the gradients too, that are rounded to bfloat16."""

    def gradient(upstream):
        d_x = _bfloat16_product(upstream, kernel, adj_y=True)
        d_kernel = _bfloat16_product(x, upstream, adj_x=True)
        return (d_x, d_kernel, tf.reduce_sum(upstream, axis=0)) if bias else (d_x, d_kernel)

    y = _bfloat16_product(x, kernel)
    return (tf.nn.bias_add(y, *bias) if bias else y), gradient


@_of_tensors
@tf.custom_gradient
def _project_in_bfloat16(x, embeddings):
    """`x Eᵀ`, likewise."""

    def gradient(upstream):
        return _bfloat16_product(upstream, embeddings), _bfloat16_product(upstream, x, adj_x=True)

    return _bfloat16_product(x, embeddings, adj_y=True), gradient


_IN_BFLOAT16 = {affine.__wrapped__: _affine_in_bfloat16, project.__wrapped__: _project_in_bfloat16}


def _bfloat16_product(x, y, adj_x=False, adj_y=False):
    x, y = tf.cast(x, "bfloat16"), tf.cast(y, "bfloat16")
    if tf.executing_eagerly():  # only XLA has this product
        return tf.matmul(tf.cast(x, "float32"), tf.cast(y, "float32"), transpose_a=adj_x, transpose_b=adj_y)
    return tf.raw_ops.BatchMatMulV3(x=x, y=y, Tout=tf.float32, adj_x=adj_x, adj_y=adj_y)


_KERNELS = {
    affine.__wrapped__: lambda *_: _affine,
    project.__wrapped__: lambda *_: _project,
    attention_weights.__wrapped__: _softmax,
}


def adamw_update(variable, momentum, velocity, gradient, scale, rate, corrected_rate, decay, beta_1, beta_2, epsilon):
    """One pass over a variable for what are seven: clipping, decoupled decay and Adam (Loshchilov and Hutter 2019,
    algorithm 2), the arithmetic being Keras'. To be compiled by whoever holds the variables: a trace refers to them.

    Args:
        variable, momentum, velocity: `tf.Variable`s, updated.
        gradient: of the variable.
        scale: of the gradient, to clip it.
        rate: the learning rate, by which the variable decays.
        corrected_rate: the learning rate with Adam's correction for the start of its two averages.
        decay: weight decay, 0 for a variable that is excluded.
        beta_1, beta_2, epsilon: Adam's.
    """
    gradient = gradient * scale
    m = momentum + (gradient - momentum) * (1.0 - beta_1)
    v = velocity + (tf.square(gradient) - velocity) * (1.0 - beta_2)
    momentum.assign(m)
    velocity.assign(v)
    variable.assign(variable - variable * (decay * rate) - m * corrected_rate / (tf.sqrt(v) + epsilon))
