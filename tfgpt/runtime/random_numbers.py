"""Random numbers that depend on a row's seed and the token's index only: those of `tfgpt.generation`, bit for bit."""

from __future__ import annotations

import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry_2x32(key, counter):
    """The Threefry-2x32 block function with 20 rounds (Salmon et al. 2011, "Parallel random numbers").

    Args:
        key: a pair of uint32 arrays; arrays wrap around in silence, where NumPy's scalars warn.
        counter: a pair of uint32 arrays of the same shape.

    Returns:
        A pair of uint32 arrays.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = _rotate_left(y, rotation) ^ x
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def uniform(seeds, index):
    """Numbers in [0, 1), one a row.

    Args:
        seeds: (B,) int64, or a list.
        index: (B,) integers, which number of each row's stream; or one for all rows.

    Returns:
        (B,) float32, multiples of 2^-24.
    """
    seeds = np.asarray(seeds, np.int64)
    low = (seeds & 0xFFFFFFFF).astype(np.uint32)
    high = (seeds >> 32 & 0xFFFFFFFF).astype(np.uint32)
    counter = np.broadcast_to(np.asarray(index, np.uint32), seeds.shape)
    bits, _ = threefry_2x32((low, high), (counter, np.zeros_like(counter)))
    return (bits >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def _rotate_left(x, bits):
    return x << np.uint32(bits) | x >> np.uint32(32 - bits)
