"""TensorFlow Serving's base paths: one directory a version, named by an integer.

TensorFlow Serving counts versions in int64, so a longer number is a name like any other.
"""

from __future__ import annotations

import contextlib
import pathlib

HIGHEST = 2**63 - 1


def versions_of(base_path):
    """The versions that TensorFlow Serving sees in a base path: number → directory, ascending.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as base_path:
        ...     for name in ("10", "9", ".11.withdrawn", "notes", "9" * 20):
        ...         pathlib.Path(base_path, name).mkdir()
        ...     list(versions_of(base_path))
        [9, 10]
    """
    found = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in pathlib.Path(base_path).iterdir():
            name = path.name
            if name.isascii() and name.isdigit() and int(name) <= HIGHEST and path.is_dir():
                found[int(name)] = path
    return dict(sorted(found.items()))
