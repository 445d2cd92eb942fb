"""What layers show to those who look, while a model computes what it always does.

Each `MultiHeadAttention` shows its weights (B, H, T, S), float32 under every policy; each `ResidualBlock` the residual
stream behind it (B, T, D).
"""

import contextlib
import contextvars

_shown = contextvars.ContextVar("shown", default=None)


@contextlib.contextmanager
def observe():
    """Yields a dict from layers to what each showed last, which fills within it.

    Example:

    >>> from keras import ops
    >>> from tfgpt.layers import MultiHeadAttention
    >>> attention = MultiHeadAttention(num_heads=2)
    >>> with observe() as shown:
    ...     y = attention(ops.ones((1, 5, 8)))
    >>> shown[attention].shape
    TensorShape([1, 2, 5, 5])
    """
    shown = {}
    token = _shown.set(shown)
    try:
        yield shown
    finally:
        _shown.reset(token)


def is_observed():
    """Whether somebody looks."""
    return _shown.get() is not None


def show(layer, tensor):
    """Shows a tensor to whoever looks."""
    if is_observed():
        _shown.get()[layer] = tensor
