"""Writing into a preallocated KV cache."""

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
    # Under TensorFlow, slice_update is an operator of XLA's: it copies the whole buffer for every token, and a server
    # without XLA may lack it. This one writes in place where nothing else holds the buffer, as in a decoding loop.
    import tensorflow as tf

    axis = 0b1011  # whole axes, all but the slots'
    return tf.raw_ops.TensorStridedSliceUpdate(
        input=buffer,
        begin=[0, 0, index, 0],
        end=[0, 0, index + ops.shape(new)[2], 0],
        strides=[1, 1, 1, 1],
        value=new,
        begin_mask=axis,
        end_mask=axis,
    )
