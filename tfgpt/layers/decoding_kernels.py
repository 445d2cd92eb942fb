"""What decoding token by token needs, and keras.ops has no good TensorFlow kernel for.

Layers import Keras only, but here: what keras.ops turns into would copy the whole KV cache for every token, and takes
oneDNN's kernels, whose start alone costs several times the arithmetic of one token's attention.
"""

import keras
from keras import ops


def write_slots(buffer, new, index):
    """A buffer (B, H, S, K) with `new` (B, H, T, K) at its slots `index` to `index + T`.

    Args:
        buffer: keys or values.
        new: those of the new tokens.
        index: an int or a scalar tensor.

    Example:

    >>> write_slots(ops.zeros((1, 1, 3, 1)), ops.ones((1, 1, 1, 1)), 1)[0, 0, :, 0].numpy().tolist()
    [0.0, 1.0, 0.0]
    """
    if keras.backend.backend() != "tensorflow":
        return ops.slice_update(buffer, (0, 0, index, 0), new)
    # slice_update is an operator of XLA's, which copies, and which a server without XLA may lack. This one writes in
    # place where nothing else holds the buffer, as in a decoding loop.
    import tensorflow as tf

    length = ops.shape(new)[2] if new.shape[2] is None else new.shape[2]
    whole_axes = 0b1011  # all but the slots'
    return tf.raw_ops.TensorStridedSliceUpdate(
        input=buffer,
        begin=[0, 0, index, 0],
        end=[0, 0, index + length, 0],
        strides=[1, 1, 1, 1],
        value=new,
        begin_mask=whole_axes,
        end_mask=whole_axes,
    )


def matmul(a, b, transpose_b=False):
    """The product of stacks of small matrices: `a` (..., M, N) and `b` (..., N, P), or (..., P, N) transposed."""
    if keras.backend.backend() != "tensorflow" or a.dtype == "float16":  # of which version 3 has no CPU kernel
        return ops.matmul(a, ops.swapaxes(b, -1, -2) if transpose_b else b)
    import tensorflow as tf

    # Version 3 differs in allowing other output types; TensorFlow hands version 2 to oneDNN.
    return tf.raw_ops.BatchMatMulV3(x=a, y=b, Tout=a.dtype, adj_y=transpose_b)


def softmax(x):
    """The softmax over the last axis, of operators that TensorFlow does not hand to oneDNN."""
    e = ops.exp(x - ops.max(x, axis=-1, keepdims=True))
    return e / ops.sum(e, axis=-1, keepdims=True)
