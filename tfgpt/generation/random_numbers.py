"""Random numbers that depend on a row's seed and the token's index only, not on the batch around it."""

import tensorflow as tf

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry_2x32(key, counter):
    """The Threefry-2x32 block function with 20 rounds (Salmon et al. 2011, "Parallel random numbers").

    Args:
        key: a pair of uint32 tensors.
        counter: a pair of uint32 tensors of the same shape.

    Returns:
        A pair of uint32 tensors.
    """
    keys = (key[0], key[1], _xor(_xor(key[0], key[1]), tf.constant(0x1BD11BDA, tf.uint32)))
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = _xor(_rotate_left(y, rotation), x)
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + tf.constant(group + 1, tf.uint32)
    return x, y


def uniform(seeds, index):
    """Numbers in [0, 1), one a row.

    Args:
        seeds: (B,) int64.
        index: (B,) int32, which number of each row's stream.

    Returns:
        (B,) float32, multiples of 2^-24.
    """
    low = tf.cast(tf.bitwise.bitwise_and(seeds, 0xFFFFFFFF), tf.uint32)
    high = tf.cast(tf.bitwise.bitwise_and(tf.bitwise.right_shift(seeds, 32), 0xFFFFFFFF), tf.uint32)
    counter = tf.cast(index, tf.uint32)
    bits, _ = threefry_2x32((low, high), (counter, tf.zeros_like(counter)))
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24


def _xor(a, b):
    return tf.bitwise.bitwise_xor(a, b)


def _rotate_left(x, bits):
    left = tf.bitwise.left_shift(x, tf.constant(bits, tf.uint32))
    return tf.bitwise.bitwise_or(left, tf.bitwise.right_shift(x, tf.constant(32 - bits, tf.uint32)))
