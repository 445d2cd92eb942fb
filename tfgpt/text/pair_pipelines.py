"""Batches of sentence pairs as `tf.data` pipelines: an endless one to train on, a finite one to validate on."""

import numpy as np
import tensorflow as tf

from tfgpt.errors import UserError
from tfgpt.text.pair_batches import bucket_widths, rows_of_width
from tfgpt.text.windows import PREFETCH, without_autotune

NAMES = ("source_ids", "source_padding_mask", "target_ids")


def training_pairs(pairs, sampler, start_step=0, num_pipelines=1, pipeline=0):
    """An endless dataset of `(inputs, targets, weights)` (see `EncodedPairs.batch`).

    Batch `i` depends on the sampler's seed and `start_step + i` alone. Of n input pipelines, as several workers have
    them, pipeline k gives the k-th part of each batch's rows.

    Args:
        pairs: `EncodedPairs`.
        sampler: a `PairSampler` of their lengths.
        start_step: the number of the first batch.
        num_pipelines, pipeline: n and k.

    Raises:
        UserError: if the pipelines cannot share the rows of every bucket evenly.
    """
    for rows, width in sampler.shapes:
        if rows % num_pipelines:
            raise UserError(
                f"a batch of width {width} has {rows} rows, expected a multiple of the {num_pipelines} input pipelines "
                "that share it: give a larger tokens_per_batch"
            )

    def read(step):
        numbers, width = sampler.batch(step)
        return pairs.batch(np.array_split(numbers, num_pipelines)[pipeline], width)

    return _dataset(tf.data.Dataset.counter(start=start_step), read)


def sequential_pairs(pairs, tokens_per_batch, num_buckets=6, num_pipelines=1, pipeline=0):
    """A finite dataset of `(inputs, targets, weights)` that has every pair once, shortest first.

    The last batch of each width is filled up with rows of weight 0.

    Args:
        pairs: `EncodedPairs`.
        tokens_per_batch: rows times width of a batch, about.
        num_buckets: how many widths.
        num_pipelines, pipeline: as in `training_pairs`.
    """
    batches = sequential_batches(pairs.lengths, tokens_per_batch, num_buckets, num_pipelines)

    def read(number):
        numbers, width = batches[int(number)]
        return pairs.batch(np.array_split(numbers, num_pipelines)[pipeline], width)

    return _dataset(tf.data.Dataset.range(len(batches)), read)


def sequential_batches(lengths, tokens_per_batch, num_buckets=6, row_multiple=1):
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
        rows += -rows % row_multiple
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
