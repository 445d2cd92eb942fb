"""The loss and its gradient where logits of the whole batch would be the largest tensors of the step."""

import tensorflow as tf

from tfgpt.layers.attention import MASKED
from tfgpt.layers.fusible import fusible
from tfgpt.training.losses import token_losses

LOGITS_AT_ONCE = 2**26  # 1335 rows of GPT-2's vocabulary


def chunked_loss(project, matrices, hidden, targets, weights, label_smoothing=0.0, z_loss=0.0, classes=None):
    """The weighted sum of token losses, and its gradients, a chunk of the logits at a time.

    A chunk's logits become its loss and their own gradient at once, and are gone before the next chunk's are there:
    what is kept is as large as the hidden states and the projection, not N × V.

    Args:
        project: hidden states (n, D) → logits (n, V), of any floating type.
        matrices: that `project` reads, tensors or `tf.Variable`s; the first has an entry for each logit.
        hidden: (N, D); where N is not known when the step is traced, it is one chunk.
        targets: token ids (N,).
        weights: of the losses, (N,) float32.
        label_smoothing, z_loss: of `token_losses`.
        classes: how many logits count, where those behind them come of rows that only fill up a matrix; not with
            label smoothing, whose mean is over all.

    Returns:
        The sum; its gradient by `hidden`, (N, D); those by `matrices`, float32.
    """

    def chunk(hidden, targets, weights):
        with tf.GradientTape() as tape:
            tape.watch([hidden, *matrices])
            logits = project(hidden)
        loss, d_logits = loss_and_gradient(
            logits, targets, weights, label_smoothing=label_smoothing, z_loss=z_loss, classes=classes
        )
        d_hidden, *gradients = tape.gradient(logits, [hidden, *matrices], output_gradients=d_logits)
        return loss, d_hidden, [tf.cast(gradient, "float32") for gradient in gradients]

    rows, size = hidden.shape
    count = number_of_chunks(rows, matrices[0].shape[0])
    if count == 1:
        return chunk(hidden, targets, weights)

    chunks = _split(count, hidden, targets, weights)

    def add(index, loss, d_hidden, *sums):
        more_loss, more_hidden, gradients = chunk(*(x[index] for x in chunks))
        sums = (s + g for s, g in zip(sums, gradients, strict=True))
        return index + 1, loss + more_loss, d_hidden.write(index, more_hidden), *sums

    _, loss, d_hidden, *gradients = tf.while_loop(
        lambda index, *_: index < count,
        add,
        (0, 0.0, tf.TensorArray(hidden.dtype, count), *(tf.zeros(matrix.shape) for matrix in matrices)),
        parallel_iterations=1,
        maximum_iterations=count,
    )
    return loss, tf.reshape(d_hidden.stack(), (-1, size))[:rows], gradients


def chunked_loss_sum(project, vocabulary_size, hidden, targets, weights, label_smoothing=0.0, z_loss=0.0):
    """The weighted sum of token losses alone, as validation wants it, a chunk of the logits at a time.

    Args:
        vocabulary_size: V.
        project, hidden, targets, weights, label_smoothing, z_loss: as in `chunked_loss`.
    """

    def chunk(parts):
        hidden, targets, weights = parts
        return tf.reduce_sum(token_losses(project(hidden), targets, label_smoothing, z_loss) * weights)

    count = number_of_chunks(hidden.shape[0], vocabulary_size)
    if count == 1:
        return chunk((hidden, targets, weights))
    chunks = _split(count, hidden, targets, weights)
    return tf.reduce_sum(tf.map_fn(chunk, chunks, parallel_iterations=1, fn_output_signature="float32"))


def number_of_chunks(rows, vocabulary_size):
    """Into how many chunks rows of logits are split: the fewest of at most `LOGITS_AT_ONCE` logits each.

    Example:

    >>> number_of_chunks(1024, 50257), number_of_chunks(4096, 50257), number_of_chunks(7, 10**9)
    (1, 4, 7)
    """
    return 1 if rows is None else -(-rows // max(LOGITS_AT_ONCE // vocabulary_size, 1))


def _split(count, *tensors):
    """Tensors (N, ...) as tuples of chunks (count, ⌈N / count⌉, ...); rows that fill up the last one are zeros, so that
    they have the weight 0."""
    rows = tensors[0].shape[0]
    size = -(-rows // count)
    padded = (tf.pad(x, [(0, count * size - rows), *((0, 0) for _ in x.shape[1:])]) for x in tensors)
    return tuple(tf.reshape(x, (count, size, *x.shape[1:])) for x in padded)


@fusible
def loss_and_gradient(logits, targets, weights, label_smoothing, z_loss, classes=None):
    """The weighted sum of `token_losses` of the first `classes` logits, and its gradient by all, in their dtype."""
    with tf.GradientTape() as tape:
        tape.watch(logits)
        counted = logits
        if classes is not None:  # not a slice, which would be a copy
            counted = tf.where(tf.range(logits.shape[1]) < classes, tf.cast(logits, "float32"), MASKED)
        loss = tf.reduce_sum(token_losses(counted, targets, label_smoothing, z_loss) * weights)
    return loss, tape.gradient(loss, logits)
