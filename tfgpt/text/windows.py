"""Windows of tokens as `tf.data` pipelines: a random, endless one to train on and a sequential one to evaluate on."""

import numpy as np
import tensorflow as tf

from tfgpt.errors import UserError
from tfgpt.text.samplers import check_window, make_sampler

PREFETCH = 3  # batches; a fixed number, see `without_autotune`


def training_windows(split, window, batch_size, seed, start_step=0, num_pipelines=1, pipeline=0):
    """An endless dataset of `(inputs, targets)`, int32 (B / n, T) each, targets one token ahead.

    Batch `i` depends on `seed` and `start_step + i` alone (see `WindowSampler`), so that a run which stopped after
    step m goes on with `start_step=m` as if it had not. Of n input pipelines, as several workers have them, pipeline k
    gives rows k B / n to (k + 1) B / n of each global batch: none overlaps another, and together they are the batch of
    one pipeline, row for row.

    Args:
        split: a `TokenSplit`, or a `TokenMixture` of several.
        window: T, tokens a row.
        batch_size: B, of the global batch: of all pipelines together.
        seed: a non-negative int.
        start_step: the number of the first batch.
        num_pipelines: n.
        pipeline: k, from 0 to n - 1.

    Raises:
        UserError: if the split is shorter than a window and its last target, T + 1 tokens, or if the pipelines cannot
            share the batch evenly.
    """
    sampler = make_sampler(split, window, batch_size, seed)
    rows = rows_of_pipeline(batch_size, num_pipelines, pipeline)

    def read(step):
        return sampler.samples(int(step) * batch_size + np.arange(rows.start, rows.stop))

    def inputs_and_targets(step):
        # Stateful is what TensorFlow calls a function that it may not fold or merge with another; ours is pure.
        tokens = tf.numpy_function(read, [step], tf.int32, stateful=False)
        tokens = tf.ensure_shape(tokens, (batch_size // num_pipelines, window + 1))
        return tokens[:, :-1], tokens[:, 1:]

    steps = tf.data.Dataset.counter(start=start_step)
    return without_autotune(steps.map(inputs_and_targets).prefetch(PREFETCH))


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
    check_window(split, window, batch_size, split.num_tokens)
    size = batch_size * window
    all_batches = -(-(split.num_tokens - 1) // size)
    taken = np.linspace(0, all_batches - 1, min(num_batches or all_batches, all_batches)).round().astype(np.int64)
    rows = rows_of_pipeline(batch_size, num_pipelines, pipeline)

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
    return without_autotune(batches.map(inputs_targets_and_weights).prefetch(PREFETCH))


def rows_of_pipeline(batch_size, num_pipelines, pipeline):
    """The rows of a global batch that one of several input pipelines gives, a slice.

    Raises:
        UserError: if the pipelines cannot share the batch evenly, or if there is no such pipeline.
    """
    if num_pipelines < 1 or batch_size % num_pipelines:
        raise UserError(
            f"batch_size is {batch_size}, expected a multiple of the {num_pipelines} input pipelines that share it"
        )
    if not 0 <= pipeline < num_pipelines:
        raise UserError(f"found input pipeline {pipeline}; expected 0 to {num_pipelines - 1}")
    rows = batch_size // num_pipelines
    return slice(pipeline * rows, (pipeline + 1) * rows)


def without_autotune(dataset):
    """Turns off tf.data's autotuning, whose thread can miss the wake-up that ends it: on TensorFlow 2.21 a `fit` that
    was done then hung for up to tens of seconds. For the same reason buffers have fixed sizes, not `AUTOTUNE`."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
