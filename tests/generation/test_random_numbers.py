import numpy as np
import pytest
import tensorflow as tf

from tfgpt.generation.random_numbers import threefry_2x32, uniform


def numbers(seeds, index):
    return uniform(tf.constant(seeds, tf.int64), tf.constant(index, tf.int32)).numpy()


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
    key, counter = ([tf.constant([word], tf.uint32) for word in pair] for pair in (key, counter))
    assert tuple(int(word.numpy()[0]) for word in threefry_2x32(key, counter)) == expected


def test_the_number_is_the_top_24_bits_of_the_first_word():
    assert numbers([0], [0])[0] == (0x6B200159 >> 8) / 2**24
    seed = np.array([0x03707344_13198A2E], np.int64)
    words = threefry_2x32(
        (tf.constant([0x13198A2E], tf.uint32), tf.constant([0x03707344], tf.uint32)),
        (tf.constant([9], tf.uint32), tf.constant([0], tf.uint32)),
    )
    assert numbers(seed, [9])[0] == (int(words[0].numpy()[0]) >> 8) / 2**24


def test_a_row_depends_on_its_own_seed_and_index_alone():
    seeds, index = [3, 0, 7, 3, -1, 2**40], [0, 5, 5, 1, 2, 0]
    together = numbers(seeds, index)
    alone = [numbers([seed], [i])[0] for seed, i in zip(seeds, index, strict=True)]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(numbers(seeds[::-1], index[::-1]), together[::-1])


def test_every_bit_of_the_seed_counts():
    seeds = [0, *(1 << bit for bit in range(63)), -1, -(2**63)]
    assert len(set(numbers(seeds, [0] * len(seeds)).tolist())) == len(seeds)


@pytest.mark.parametrize("along", ["seeds", "index"])
def test_numbers_are_uniform(along):
    count, bins = 2**16, 64
    changing, fixed = np.arange(count), np.full(count, 12345)
    drawn = numbers(changing, fixed) if along == "seeds" else numbers(fixed, changing)
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0 and drawn.max() < 1
    observed = np.histogram(drawn, bins=bins, range=(0, 1))[0]
    assert ((observed - count / bins) ** 2 / (count / bins)).sum() < 103.4  # 63 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.013  # 3.3 standard errors
