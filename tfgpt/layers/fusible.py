"""Functions of tensors that a training loop may have computed by kernels of its own.

Elementwise chains (activation, normalization, masked softmax), where most of a layer's memory traffic is and little of
its arithmetic, are worth one compiled kernel each; matrix products are worth the library that has bfloat16 units. Which
kernels these are is the training room's business (`tfgpt.training.kernels`); the mathematics is the same function.
"""

import contextlib
import contextvars
import functools

_chosen = contextvars.ContextVar("kernels", default=None)


def fusible(function):
    """Marks a function of tensors, and of keyword arguments that are constants.

    Example:

    >>> @fusible
    ... def scaled(x, factor):
    ...     return factor * x
    >>> with kernels(lambda function, **constants: lambda x: function(x, **constants) + 1):
    ...     scaled(2, factor=3)
    7
    """

    @functools.wraps(function)
    def call(*tensors, **constants):
        choose = _chosen.get()
        kernel = functools.partial(function, **constants) if choose is None else choose(function, **constants)
        return kernel(*tensors)

    return call


@contextlib.contextmanager
def kernels(choose):
    """Within it `choose(function, **constants)` computes what a fusible function would; None leaves it as it is."""
    token = _chosen.set(choose)
    try:
        yield
    finally:
        _chosen.reset(token)
