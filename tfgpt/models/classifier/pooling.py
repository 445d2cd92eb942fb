"""From a sequence's hidden states to one vector."""

from keras import ops


def mean_of_tokens(x, padding_mask=None):
    """The mean over each row's real tokens: (B, D) of hidden states (B, T, D).

    Example:

    >>> x = ops.array([[[1.0], [3.0], [100.0]]])
    >>> mean_of_tokens(x, ops.array([[1, 1, 0]])).numpy().tolist()
    [[2.0]]
    """
    if padding_mask is None:
        return ops.mean(x, axis=1)
    real = ops.cast(padding_mask, x.dtype)[:, :, None]  # (B, T, 1)
    # Rows that only fill up a batch have no token at all.
    return ops.sum(x * real, axis=1) / ops.maximum(ops.sum(real, axis=1), 1)


def first_token(x, padding_mask=None):
    """Each row's first real token: (B, D) of hidden states (B, T, D); padding may stand on either side."""
    if padding_mask is None:
        return x[:, 0]
    return _at(x, _cumulated(padding_mask) == 1, padding_mask)


def last_token(x, padding_mask=None):
    """Each row's last real token: (B, D) of hidden states (B, T, D); padding may stand on either side.

    Example:

    >>> x = ops.array([[[1.0], [3.0], [100.0]]])
    >>> last_token(x, ops.array([[1, 1, 0]])).numpy().tolist()
    [[3.0]]
    """
    if padding_mask is None:
        return x[:, -1]
    counts = _cumulated(padding_mask)
    return _at(x, counts == counts[:, -1:], padding_mask)


def _cumulated(padding_mask):
    return ops.cumsum(ops.cast(padding_mask, "int32"), axis=1)  # (B, T)


def _at(x, place, padding_mask):
    """The hidden state where `place` (B, T) holds of a real token, of which each row has one: a sum, not a gather,
    whose conversions differ from runtime to runtime."""
    chosen = ops.logical_and(place, ops.cast(padding_mask, "bool"))
    return ops.sum(ops.where(chosen[:, :, None], x, ops.zeros_like(x)), axis=1)
