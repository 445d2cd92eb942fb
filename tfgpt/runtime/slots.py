"""How the contexts of a running batch are read: in pieces, whose bounds do not depend on what is known already."""

from __future__ import annotations

# Tokens of a context that are read at once: nearly as fast as more, and a server's texts wait for no longer.
CHUNK = 128


def reusable(known, context):
    """How many of a context's first tokens need not be read, if a row has read `known`: whole pieces, not the last.

    Example:
        >>> reusable(range(300), [*range(200), 7]), reusable(range(128), range(128))
        (128, 0)
    """
    both = zip(known, context[:-1])
    return next((i for i, (a, b) in enumerate(both) if a != b), min(len(known), len(context) - 1)) // CHUNK * CHUNK
