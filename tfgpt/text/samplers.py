"""Which windows of tokens the batch of a step holds: a pure function of the seed and the step's number."""

import dataclasses
import functools
import math

import numpy as np

from tfgpt.errors import UserError
from tfgpt.text.permutation import KeyedPermutation

ORDER = 1  # beside the seed and the epoch, keys the order of windows apart from their phases
MIX = 2  # beside the seed and the cycle, keys the order in which a mixture's parts take turns

# Samples in which the parts of a mixture have exactly their shares: two decimals of a percent.
CYCLE = 10_000


@dataclasses.dataclass(frozen=True)
class TokenMixture:
    """Splits that are trained on together.

    Attributes:
        splits: a tuple of `TokenSplit`s of one tokenizer.
        weights: how often windows come from each, in any unit; all above 0.

    Raises:
        UserError: if the weights are not one positive number a split.
    """

    splits: tuple
    weights: tuple

    def __post_init__(self):
        if len(self.weights) != len(self.splits):
            raise UserError(f"found {len(self.weights)} weights for {len(self.splits)} data sets; expected one each")
        if not all(math.isfinite(weight) and weight > 0 for weight in self.weights):
            raise UserError(f"the weights of the data sets are {[*self.weights]}; expected numbers above 0")


def make_sampler(split, window, batch_size, seed):
    """The sampler of a `TokenSplit` or a `TokenMixture`."""
    sampler = MixtureSampler if isinstance(split, TokenMixture) else WindowSampler
    return sampler(split, window, batch_size, seed)


class WindowSampler:
    """Draws batches of windows of T + 1 tokens; batch `step` is a pure function of `seed` and `step`.

    The samples are numbered: batch `step` holds samples `step * B` to `step * B + B - 1`, and sample `i` belongs to
    epoch `i // windows_per_epoch`. Every epoch cuts each shard anew, at a random phase, into windows side by side, and
    takes each of them once, in random order. So an epoch sees no token twice and misses fewer than 2 (T + 1) of each
    shard, others in every epoch; over epochs each token is met at every place of the window. No window crosses from
    one shard into another. The order is a `KeyedPermutation`, so that memory does not grow with the text.

    Args:
        split: a `TokenSplit`.
        window: T.
        batch_size: B.
        seed: a non-negative int.

    Raises:
        UserError: if no shard of the split has T + 1 tokens.

    Example:

    >>> from tfgpt.text import TokenSplit
    >>> split = TokenSplit("train", "example", (np.arange(100, dtype="uint16"),), num_tokens=100, num_bytes=100)
    >>> sampler = WindowSampler(split, window=3, batch_size=2, seed=0)
    >>> sampler.batch(0).shape, sampler.windows_per_epoch
    ((2, 4), 24)
    """

    def __init__(self, split, window, batch_size, seed):
        if seed < 0:
            raise UserError(f"found the seed {seed}; expected 0 or more")
        # Plain views of the mapped arrays: each operation on a `memmap` costs microseconds more.
        arrays = [np.asarray(array) for array in split.arrays if len(array) > window]
        check_window(split, window, batch_size, max(map(len, split.arrays), default=0))
        self.batch_size = batch_size
        self.seed = seed
        self._length = window + 1
        # Row r of a shard's view is the window that starts at token r; no copy.
        self._views = [np.lib.stride_tricks.sliding_window_view(array, self._length) for array in arrays]
        # Their number may not change from one phase to the next, or samples could not be numbered: it is what fits
        # after a phase of T, the least that brings every token to every place; but one where that is none.
        self._counts = [max(1, (len(array) - window) // self._length) for array in arrays]
        # The largest phase of each shard, with which its last window ends at its last token.
        self._spare = [len(array) - count * self._length for array, count in zip(arrays, self._counts, strict=True)]
        self._bounds = np.cumsum([0, *self._counts])  # window numbers at which each shard starts
        # Two epochs: the one that ends within a batch and the one that begins there.
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    @property
    def windows_per_epoch(self):
        """N, the windows that an epoch takes."""
        return int(self._bounds[-1])

    def batch(self, step):
        """The batch of a step: int32 (B, T + 1)."""
        return self.samples(int(step) * self.batch_size + np.arange(self.batch_size))

    def samples(self, numbers):
        """The samples of these numbers, an int array (R,), in any order: int32 (R, T + 1)."""
        windows = np.empty((len(numbers), self._length), np.int32)
        epochs, places = np.divmod(numbers, self.windows_per_epoch)
        for epoch in np.unique(epochs):
            rows = np.flatnonzero(epochs == epoch)
            order, phases = self._epoch(int(epoch))
            self._gather(order(places[rows]), phases, windows, rows)
        return windows

    def _draw_epoch(self, epoch):
        phases = np.random.default_rng((self.seed, epoch)).integers(0, self._spare, endpoint=True)  # one a shard
        return KeyedPermutation(self.windows_per_epoch, (self.seed, epoch, ORDER)), phases

    def _gather(self, windows, phases, out, rows):
        shards = np.searchsorted(self._bounds, windows, side="right") - 1
        starts = (windows - self._bounds[shards]) * self._length + phases[shards]
        for shard in np.unique(shards):
            here = shards == shard
            out[rows[here]] = self._views[shard][starts[here]]


class MixtureSampler:
    """Draws batches of windows from several splits by weight; batch `step` is a pure function of `seed` and `step`.

    Every `CYCLE` samples hold each split's exact share of them, in random order. Each split's own samples are those of
    a `WindowSampler`, so that it is read an epoch after the other, however often, or seldom, the others are; only
    within a cycle do the end of one epoch and the beginning of the next mingle.

    Args:
        mixture: a `TokenMixture`.
        window: T.
        batch_size: B.
        seed: a non-negative int.

    Raises:
        UserError: if a split has no window, or a weight is too small a part of all.

    Example:

    >>> from tfgpt.text import TokenSplit
    >>> splits = [TokenSplit(name, name, (np.arange(n, n + 90),), 90, 90) for name, n in (("a", 0), ("b", 500))]
    >>> sampler = MixtureSampler(TokenMixture(tuple(splits), (3, 1)), window=3, batch_size=10_000, seed=0)
    >>> int((sampler.batch(0)[:, 0] < 500).sum())
    7500
    """

    def __init__(self, mixture, window, batch_size, seed):
        # Splits of one seed must not share their phases and orders.
        self._samplers = [
            WindowSampler(split, window, batch_size, seed + (number << 32))
            for number, split in enumerate(mixture.splits)
        ]
        self._counts = _shares(np.array(mixture.weights, float))
        self._bounds = np.cumsum([0, *self._counts])
        if not all(self._counts):
            raise UserError(f"the weights are {[*mixture.weights]}; expected each to be {1 / CYCLE} of all at least")
        self.batch_size, self.seed = batch_size, seed
        self._length = window + 1
        self._order = functools.lru_cache(maxsize=2)(lambda cycle: KeyedPermutation(CYCLE, (seed, cycle, MIX)))

    def batch(self, step):
        """The batch of a step: int32 (B, T + 1)."""
        return self.samples(int(step) * self.batch_size + np.arange(self.batch_size))

    def samples(self, numbers):
        """The samples of these numbers, an int array (R,), in any order: int32 (R, T + 1)."""
        cycles, places = np.divmod(numbers, CYCLE)
        for cycle in np.unique(cycles):
            places[cycles == cycle] = self._order(int(cycle))(places[cycles == cycle])
        windows = np.empty((len(numbers), self._length), np.int32)
        parts = np.searchsorted(self._bounds, places, side="right") - 1
        for part in np.unique(parts):
            rows = np.flatnonzero(parts == part)
            part_numbers = cycles[rows] * self._counts[part] + places[rows] - self._bounds[part]
            windows[rows] = self._samplers[part].samples(part_numbers)
        return windows


def _shares(weights):
    """Whole numbers that add up to `CYCLE`, as near to the weights as can be (largest remainders)."""
    exact = weights / weights.sum() * CYCLE
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: CYCLE - counts.sum()]] += 1
    return counts


def check_window(split, window, batch_size, num_tokens):
    """Raises a `UserError` if a split, with so many tokens in one place, has no window of T tokens and a target."""
    if window < 1 or batch_size < 1:
        raise UserError(f"found windows of {window} tokens in batches of {batch_size}; expected at least 1 of each")
    if num_tokens < window + 1:
        place = "" if num_tokens == split.num_tokens else f" in {len(split.arrays)} shards, at most {num_tokens} in one"
        raise UserError(
            f"the {split.name} split of {split.directory} has {split.num_tokens} tokens{place}; expected at least "
            f"{window + 1}, a window of {window} and its last target: give more text or a smaller window"
        )
