"""Windows of tokens as `tf.data` pipelines: a random, endless one to train on and a sequential one to evaluate on."""

import functools

import numpy as np
import tensorflow as tf

from tfgpt.errors import UserError

PREFETCH = 3  # batches; a fixed number, see `_without_autotune`


def training_windows(split, window, batch_size, seed, start_step=0, num_pipelines=1, pipeline=0):
    """An endless dataset of `(inputs, targets)`, int32 (B, T) each, targets one token ahead.

    Batch `i` depends on `seed` and `start_step + i` alone (see `WindowSampler`), so that a run which stopped after
    step n goes on with `start_step=n` as if it had not.

    Args:
        split: a `TokenSplit`.
        window: T, tokens a row.
        batch_size: B.
        seed: a non-negative int.
        start_step: the number of the first batch.
        num_pipelines: n pipelines share each batch, as the workers of a cluster do; n divides B.
        pipeline: the number k of this one, whose batches are rows k B / n to (k + 1) B / n of the whole ones.

    Raises:
        UserError: if the split is shorter than a window and its last target, T + 1 tokens.
    """
    sampler = WindowSampler(split, window, batch_size, seed)
    rows = _rows_of_pipeline(batch_size, num_pipelines, pipeline)

    def inputs_and_targets(step):
        # Stateful is what TensorFlow calls a function that it may not fold or merge with another; ours is pure.
        tokens = tf.numpy_function(lambda step: sampler.batch(step)[rows], [step], tf.int32, stateful=False)
        tokens = tf.ensure_shape(tokens, (batch_size // num_pipelines, window + 1))
        return tokens[:, :-1], tokens[:, 1:]

    steps = tf.data.Dataset.counter(start=start_step)
    return _without_autotune(steps.map(inputs_and_targets).prefetch(PREFETCH))


def sequential_windows(split, window, batch_size, num_batches=None, num_pipelines=1, pipeline=0):
    """A finite dataset of `(inputs, targets, weights)`, (B, T) each, in which every token of the split but the first
    is a target of weight 1 exactly once.

    Windows follow one another; where the last ones run past the split, they are filled with token 0 and weight 0.
    Weights are float32, as Keras takes them.

    Args:
        split: a `TokenSplit`.
        window: T, tokens a row.
        batch_size: B.
        num_batches: take so many batches at most, spread evenly over the split; by default all of them.
        num_pipelines, pipeline: as in `training_windows`.

    Raises:
        UserError: if the split is shorter than a window and its last target, T + 1 tokens.
    """
    _check(split, window, batch_size, split.num_tokens)
    size = batch_size * window
    all_batches = -(-(split.num_tokens - 1) // size)
    taken = np.linspace(0, all_batches - 1, min(num_batches or all_batches, all_batches)).round().astype(np.int64)
    rows = _rows_of_pipeline(batch_size, num_pipelines, pipeline)

    def batch(number):
        tokens = split.read(number * size, (number + 1) * size + 1)  # one more: the last target
        weights = np.arange(size) < len(tokens) - 1
        tokens = np.pad(tokens, (0, size + 1 - len(tokens)))
        shape = (batch_size, window)
        arrays = tokens[:-1], tokens[1:], weights.astype(np.float32)
        return tuple(array.reshape(shape)[rows] for array in arrays)

    def inputs_targets_and_weights(number):
        arrays = tf.numpy_function(batch, [number], (tf.int32, tf.int32, tf.float32), stateful=False)
        return tuple(tf.ensure_shape(array, (batch_size // num_pipelines, window)) for array in arrays)

    batches = tf.data.Dataset.from_tensor_slices(taken)
    return _without_autotune(batches.map(inputs_targets_and_weights).prefetch(PREFETCH))


class WindowSampler:
    """Draws batches of windows of T + 1 tokens; batch `step` is a pure function of `seed` and `step`.

    The samples are numbered: batch `step` holds samples `step * B` to `step * B + B - 1`, and sample `i` belongs to
    epoch `i // windows_per_epoch`. Every epoch cuts each shard anew, at a random phase, into windows side by side, and
    takes each of them once, in random order. So an epoch sees no token twice and misses fewer than 2 (T + 1) of each
    shard, others in every epoch; over epochs each token is met at every place of the window. No window crosses from
    one shard into another.

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
        _check(split, window, batch_size, max(map(len, split.arrays), default=0))
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
        first = int(step) * self.batch_size
        windows = np.empty((self.batch_size, self._length), np.int32)
        row = 0
        while row < self.batch_size:
            epoch, place = divmod(first + row, self.windows_per_epoch)
            order, phases = self._epoch(epoch)
            numbers = order[place : place + self.batch_size - row]
            self._gather(numbers, phases, windows[row : row + len(numbers)])
            row += len(numbers)
        return windows

    def _draw_epoch(self, epoch):
        random = np.random.default_rng((self.seed, epoch))
        phases = random.integers(0, self._spare, endpoint=True)  # one a shard
        return random.permutation(self.windows_per_epoch), phases

    def _gather(self, numbers, phases, out):
        if len(self._views) == 1:
            out[:] = self._views[0][numbers * self._length + phases[0]]
            return
        shards = np.searchsorted(self._bounds, numbers, side="right") - 1
        starts = (numbers - self._bounds[shards]) * self._length + phases[shards]
        for shard in np.unique(shards):
            rows = shards == shard
            out[rows] = self._views[shard][starts[rows]]


def _rows_of_pipeline(batch_size, num_pipelines, pipeline):
    if batch_size % num_pipelines:
        raise UserError(f"batch_size is {batch_size}, expected a multiple of the {num_pipelines} workers")
    share = batch_size // num_pipelines
    return slice(pipeline * share, (pipeline + 1) * share)


def _check(split, window, batch_size, num_tokens):
    if window < 1 or batch_size < 1:
        raise UserError(f"found windows of {window} tokens in batches of {batch_size}; expected at least 1 of each")
    if num_tokens < window + 1:
        place = "" if num_tokens == split.num_tokens else f" in {len(split.arrays)} shards, at most {num_tokens} in one"
        raise UserError(
            f"the {split.name} split of {split.directory} has {split.num_tokens} tokens{place}; expected at least "
            f"{window + 1}, a window of {window} and its last target: give more text or a smaller window"
        )


def _without_autotune(dataset):
    """Turns off tf.data's autotuning, whose thread can miss the wake-up that ends it: on TensorFlow 2.21 a `fit` that
    was done then hung for up to tens of seconds. For the same reason buffers have fixed sizes, not `AUTOTUNE`."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
