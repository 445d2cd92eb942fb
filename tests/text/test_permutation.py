import itertools
import math

import numpy as np
import pytest

from tfgpt.text import KeyedPermutation


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 101, 4096, 10007])
def test_every_number_comes_once(size):
    assert sorted(KeyedPermutation(size, (0, 1))(np.arange(size))) == list(range(size))


def test_each_number_is_taken_by_itself():
    permutation = KeyedPermutation(1000, (3,))
    whole = permutation(np.arange(1000))
    np.testing.assert_array_equal(permutation(np.array([7, 999, 7])), whole[[7, 999, 7]])


def test_every_order_of_four_is_equally_likely():
    orders = [tuple(KeyedPermutation(4, (seed,))(np.arange(4))) for seed in range(2400)]
    counts = [orders.count(order) for order in itertools.permutations(range(4))]
    chi_square = sum((count - 100) ** 2 / 100 for count in counts)
    assert chi_square < 49.7  # 23 degrees of freedom: exceeded by chance once in a thousand


def test_numbers_far_apart_in_one_order_are_so_in_another():
    size = 100_000
    first, second = (KeyedPermutation(size, (0, epoch))(np.arange(size)) for epoch in (0, 1))
    for order in (first, second):
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 5 / math.sqrt(size)
        assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 5 / math.sqrt(size)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(size)
    assert (first == second).sum() < 10  # one is expected


def test_a_large_permutation_takes_no_memory():
    size = 10**15
    numbers = KeyedPermutation(size, (1,))(np.arange(size - 1000, size))
    assert len(set(numbers.tolist())) == 1000 and numbers.min() >= 0 and numbers.max() < size
    assert abs(numbers.mean() / size - 0.5) < 0.05
