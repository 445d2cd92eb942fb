import warnings

import numpy as np
import pytest
import tensorflow as tf

from tfgpt.generation import random_numbers as witness
from tfgpt.runtime.random_numbers import threefry_2x32, uniform

SEEDS = [0, 1, 7, 2**31, 2**32 - 1, 2**32, 2**33 + 5, 2**62, 2**63 - 1, -1, -2, -(2**32), -(2**62), -(2**63)]


def words(pair):
    return tuple(np.array([word], np.uint32) for word in pair)


@pytest.fixture(autouse=True)
def no_warnings():
    """uint32 wraps around here on purpose; NumPy warns of it where it meets scalars."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_random123s_known_answers(counter, key, expected):
    """kat_vectors of the Random123 distribution, threefry2x32 with 20 rounds."""
    found = threefry_2x32(words(key), words(counter))
    assert tuple(int(word[0]) for word in found) == expected


@pytest.mark.parametrize("index", [0, 1, 63, 2**16 + 1, 2**31 - 1])
def test_special_seeds_give_tensorflows_numbers(index):
    index = np.full(len(SEEDS), index, np.int32)
    found = uniform(np.array(SEEDS), index)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, witness.uniform(tf.constant(SEEDS, tf.int64), tf.constant(index)))
    assert len(set(found.tolist())) == len(SEEDS)


def test_random_seeds_give_tensorflows_numbers():
    rng = np.random.default_rng(0)
    seeds = rng.integers(-(2**63), 2**63 - 1, 5000)
    index = rng.integers(0, 2**31, 5000, dtype=np.int32)
    found = uniform(seeds, index)
    np.testing.assert_array_equal(found, witness.uniform(tf.constant(seeds), tf.constant(index)))
    assert found.min() >= 0 and 0.99 < found.max() < 1


def test_a_list_of_seeds_and_one_index_for_all_rows():
    np.testing.assert_array_equal(uniform(SEEDS, 9), uniform(np.array(SEEDS), np.full(len(SEEDS), 9, np.int32)))
    np.testing.assert_array_equal(uniform(SEEDS[3:4], np.int64(9)), uniform(SEEDS, 9)[3:4])
