"""Batches of sentence pairs as `tf.data` pipelines: an endless one to train on, a finite one to validate on."""

import numpy as np
import tensorflow as tf

from tfgpt.text.pair_batches import bucket_widths, rows_of_width
from tfgpt.text.windows import PREFETCH, without_autotune

NAMES = ("source_ids", "source_padding_mask", "target_ids")


def training_pairs(pairs, sampler, start_step=0):
    """An endless dataset of `(inputs, targets, weights)` (see `EncodedPairs.batch`).

    Batch `i` depends on the sampler's seed and `start_step + i` alone, so that a run which stopped after step m goes on
    with `start_step=m` as if it had not.

    Args:
        pairs: `EncodedPairs`.
        sampler: a `PairSampler` of their lengths.
        start_step: the number of the first batch.
    """
    return _dataset(tf.data.Dataset.counter(start=start_step), lambda step: pairs.batch(*sampler.batch(step)))


def sequential_pairs(pairs, tokens_per_batch, num_buckets=6):
    """A finite dataset of `(inputs, targets, weights)` that has every pair once, shortest first.

    The last batch of each width is filled up with rows of weight 0.

    Args:
        pairs: `EncodedPairs`.
        tokens_per_batch: rows times width of a batch, about.
        num_buckets: how many widths.
    """
    batches = sequential_batches(pairs.lengths, tokens_per_batch, num_buckets)
    return _dataset(tf.data.Dataset.range(len(batches)), lambda number: pairs.batch(*batches[int(number)]))


def sequential_batches(lengths, tokens_per_batch, num_buckets=6):
    """Batches (numbers, width) that hold every sequence once, numbers -1 where a batch is filled up.

    Example:

    >>> sequential_batches(np.array([9, 3, 4, 2]), tokens_per_batch=8, num_buckets=2)
    [(array([1, 2]), 4), (array([ 3, -1]), 4), (array([0]), 12)]
    """
    widths = bucket_widths(lengths, num_buckets)
    buckets = np.searchsorted(widths, lengths)
    batches = []
    for bucket, width in enumerate(widths):
        rows = rows_of_width(tokens_per_batch, width)
        members = np.flatnonzero(buckets == bucket)
        for start in range(0, len(members), rows):
            numbers = members[start : start + rows]
            batches.append((np.pad(numbers, (0, rows - len(numbers)), constant_values=-1), width))
    return batches


def _dataset(numbers, read):
    def flat(number):
        inputs, targets, weights = read(number)
        return (*(inputs[name] for name in NAMES), targets, weights)

    def batch(number):
        # Stateful is what TensorFlow calls a function that it may not fold or merge with another; ours is pure.
        *arrays, weights = tf.numpy_function(flat, [number], [tf.int32] * 4 + [tf.float32], stateful=False)
        *inputs, targets = [tf.ensure_shape(array, (None, None)) for array in arrays]
        return dict(zip(NAMES, inputs, strict=True)), targets, tf.ensure_shape(weights, (None, None))

    return without_autotune(numbers.map(batch).prefetch(PREFETCH))
