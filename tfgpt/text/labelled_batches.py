"""Batches of labelled texts: which texts a step's batch holds, and how they are padded, by the seed and the step."""

import functools

import numpy as np
import tensorflow as tf

from tfgpt.classification import pad_right
from tfgpt.errors import UserError
from tfgpt.text.permutation import KeyedPermutation
from tfgpt.text.windows import PREFETCH, rows_of_pipeline, without_autotune

POOL = 32  # batches whose texts are sorted by length among each other
WIDTH = 8  # widths of batches are multiples of it, so that few shapes occur
TURN, DROP = 1, 2  # beside the seed, key the turns that a pool's batches take, and the tokens that are dropped


class LabelledSampler:
    """Draws batches of labelled texts; batch `step` is a pure function of `seed` and `step`.

    Every epoch takes each text once, in random order. With bucketing, the texts of `POOL` batches are sorted by length
    and shared out anew, so that a batch's texts are of about one length, and the pool's batches take turns at random.

    Args:
        rows: the token ids of each text, none of them empty.
        classes: the class number of each.
        batch_size: B.
        seed: a non-negative int.
        width: what batches are padded to; None pads each to its longest text, in multiples of `WIDTH`.
        bucket: whether texts of a length share a batch.
        token_dropout: the probability with which each token of a text is left out, whenever it is drawn; one always
            stays (Iyyer et al. 2015, section 3.1, leave out words). Positions count what is left.

    Example:

    >>> sampler = LabelledSampler([[1, 2], [3], [4, 5, 6]], [0, 1, 0], batch_size=2, seed=0)
    >>> token_ids, padding_mask, classes = sampler.batch(0)
    >>> token_ids.shape, classes.shape
    ((2, 8), (2,))
    """

    def __init__(self, rows, classes, batch_size, seed, width=None, bucket=True, token_dropout=0.0):
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}, expected at least 1")
        self.rows = [np.asarray(row, np.int32) for row in rows]
        self.classes = np.asarray(classes, np.int32)
        self.lengths = np.array([len(row) for row in rows])
        self.batch_size, self.seed, self.width = batch_size, seed, width
        self.bucket, self.token_dropout = bucket, token_dropout
        self._order = functools.lru_cache(maxsize=4)(lambda epoch: KeyedPermutation(len(rows), (seed, epoch)))
        self._pool = functools.lru_cache(maxsize=2)(self._draw_pool)

    def batch(self, step):
        """The batch of a step: `token_ids` and `padding_mask` (B, T) int32, and classes (B,) int32."""
        step = int(step)
        if self.bucket:
            chosen = self._pool(step // POOL)[step % POOL]
        else:
            chosen = self._texts(step * self.batch_size + np.arange(self.batch_size))
        rows = [self.rows[number] for number in chosen]
        if self.token_dropout:
            random = np.random.default_rng((self.seed, step, DROP))
            rows = [self._thin(row, random) for row in rows]
        width = self.width or rounded_width(max(map(len, rows)))
        return *pad_right(rows, width), self.classes[chosen]

    def _texts(self, samples):
        """Which texts samples are: sample i belongs to epoch i // N."""
        epochs, places = np.divmod(samples, len(self.rows))
        texts = np.empty_like(places)
        for epoch in np.unique(epochs):
            texts[epochs == epoch] = self._order(int(epoch))(places[epochs == epoch])
        return texts

    def _draw_pool(self, number):
        size = POOL * self.batch_size
        texts = self._texts(number * size + np.arange(size))
        batches = texts[np.argsort(self.lengths[texts], kind="stable")].reshape(POOL, self.batch_size)
        return batches[np.random.default_rng((self.seed, number, TURN)).permutation(POOL)]

    def _thin(self, row, random):
        kept = random.random(len(row)) >= self.token_dropout
        kept[random.integers(len(row))] |= not kept.any()
        return row[kept]


def rounded_width(length):
    """The width of a batch whose longest text has so many tokens."""
    return -(-length // WIDTH) * WIDTH


def training_batches(sampler, start_step=0, num_pipelines=1, pipeline=0):
    """An endless dataset of `({"token_ids", "padding_mask"}, classes)`, (B / n, T) and (B / n,) int32 each.

    Batch `i` depends on the sampler's seed and `start_step + i` alone.

    Args:
        sampler: a `LabelledSampler`.
        start_step: the number of the first batch.
        num_pipelines, pipeline: as in `tfgpt.text.training_windows`.
    """
    part = rows_of_pipeline(sampler.batch_size, num_pipelines, pipeline)
    shape = (sampler.batch_size // num_pipelines, sampler.width)

    def read(step):
        return tuple(array[part] for array in sampler.batch(step))

    def inputs_and_classes(step):
        arrays = tf.numpy_function(read, [step], (tf.int32,) * 3, stateful=False)
        token_ids, padding_mask, classes = map(tf.ensure_shape, arrays, (shape, shape, shape[:1]))
        return {"token_ids": token_ids, "padding_mask": padding_mask}, classes

    steps = tf.data.Dataset.counter(start=start_step)
    return without_autotune(steps.map(inputs_and_classes).prefetch(PREFETCH))


def validation_batches(rows, classes, batch_size, width=None, num_pipelines=1, pipeline=0):
    """A finite dataset of `({"token_ids", "padding_mask"}, classes, weights)` in which every text is once, by length.

    The last batch is filled up with rows of no tokens and weight 0.

    Args:
        rows, classes, batch_size, width: as in `LabelledSampler`.
        num_pipelines, pipeline: as in `tfgpt.text.training_windows`.
    """
    part = rows_of_pipeline(batch_size, num_pipelines, pipeline)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    shape = (batch_size // num_pipelines, width)

    def read(number):
        chosen = order[number * batch_size : (number + 1) * batch_size]
        missing = batch_size - len(chosen)
        texts = [rows[i] for i in chosen] + [[]] * missing
        token_ids, padding_mask = pad_right(texts, width or rounded_width(max(map(len, texts))))
        targets = np.array([classes[i] for i in chosen] + [0] * missing, np.int32)
        weights = (np.arange(batch_size) < len(chosen)).astype(np.float32)
        return tuple(array[part] for array in (token_ids, padding_mask, targets, weights))

    def inputs_classes_and_weights(number):
        arrays = tf.numpy_function(read, [number], (tf.int32, tf.int32, tf.int32, tf.float32), stateful=False)
        shapes = (shape, shape, shape[:1], shape[:1])
        token_ids, padding_mask, targets, weights = map(tf.ensure_shape, arrays, shapes)
        return {"token_ids": token_ids, "padding_mask": padding_mask}, targets, weights

    numbers = tf.data.Dataset.range(-(-len(rows) // batch_size))
    return without_autotune(numbers.map(inputs_classes_and_weights).prefetch(PREFETCH))
