"""A random order of N things that is computed where it is looked at, not stored."""

import functools

import numpy as np

ROUNDS = 8


class EpochOrder:
    """Which of N things samples are: sample i belongs to epoch i // N, and every epoch takes each thing once.

    Args:
        size: N.
        seed: a non-negative int.

    Example:

    >>> sorted(EpochOrder(3, seed=0)(np.arange(3, 6)).tolist())
    [0, 1, 2]
    """

    def __init__(self, size, seed):
        self.size = size
        self._order = functools.lru_cache(maxsize=4)(lambda epoch: KeyedPermutation(size, (seed, epoch)))

    def __call__(self, samples):
        """The things of an int array of samples."""
        epochs, places = np.divmod(samples, self.size)
        things = np.empty_like(places)
        for epoch in np.unique(epochs):
            things[epochs == epoch] = self._order(int(epoch))(places[epochs == epoch])
        return things


class KeyedPermutation:
    """A pseudo-random permutation of 0 to N - 1 in constant memory.

    Numbers are written as pairs (left, right) of digits to the bases a and b, the smallest near the square root of N,
    and pass through a Feistel network: in turn a keyed hash of one digit is added to the other. What lands past N, of
    a b - N < a + b numbers, is passed through again until it does not (Black and Rogaway 2002, "Ciphers with arbitrary
    finite domains", sections 3 and 4). It shuffles data; it keeps no secrets.

    Args:
        size: N, at least 1.
        key: a sequence of non-negative integers, the seed.

    Example:

    >>> KeyedPermutation(5, key=(0, 1))(np.arange(5)).tolist()
    [3, 4, 0, 1, 2]
    """

    def __init__(self, size, key):
        self.size = size
        self._bases = [np.uint64(_ceil_sqrt(size)), np.uint64(-(-size // _ceil_sqrt(size)))]
        self._keys = np.random.default_rng(key).integers(2**64, size=ROUNDS, dtype=np.uint64)

    def __call__(self, numbers):
        """Where the permutation takes an int array of numbers from 0 to N - 1, as int64."""
        numbers = self._encipher(np.asarray(numbers, np.uint64))
        while (outside := numbers >= self.size).any():
            numbers[outside] = self._encipher(numbers[outside])
        return numbers.astype(np.int64)

    def _encipher(self, numbers):
        digits = list(np.divmod(numbers, self._bases[1]))
        for place, key in enumerate(self._keys):
            changed, other = place % 2, 1 - place % 2
            digits[changed] = (digits[changed] + _mix(digits[other] + key) % self._bases[changed]) % self._bases[
                changed
            ]
        return digits[0] * self._bases[1] + digits[1]


def _mix(numbers):
    """SplitMix64's finalizer (Steele, Lea and Flood 2014): each bit in changes each bit out half of the time."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _ceil_sqrt(number):
    return int(np.ceil(np.sqrt(number)))
