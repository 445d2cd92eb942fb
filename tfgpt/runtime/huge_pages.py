"""Weights on huge pages: on Linux, decoding one text reads every weight once a token, and 4 KB pages slow that down.

ONNX Runtime copies weights into small pages. Gathering them in pages of 2 MB afterwards makes float32 decoding of GPT-2
124M 10 to 40 % faster (benchmarks/RESULTS.md), and costs one copy when the model is opened.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys

HUGE_PAGE = 2**21  # bytes, on x86-64 and on ARM with pages of 4 KB
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # the second is Linux 6.1's; an older one answers that it knows no such advice


@contextlib.contextmanager
def huge_pages():
    """Moves what the block allocates, in pieces of 4 MB and more, to huge pages; does nothing where that cannot be."""
    before = set(_anonymous_regions())
    yield
    new = [region for region in _anonymous_regions() if region not in before]
    if not new:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, end in new:
        start, end = -(-start // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
        if end - start >= 2 * HUGE_PAGE:
            madvise(start, end - start, MADV_HUGEPAGE)
            madvise(start, end - start, MADV_COLLAPSE)


def _anonymous_regions():
    """(start, end) of this process's private memory that no file backs."""
    if not sys.platform.startswith("linux"):
        return []
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            found = [re.match(r"(\w+)-(\w+) rw-p 00000000 00:00 0 *$", line) for line in maps]
    except OSError:
        return []
    return [(int(match[1], 16), int(match[2], 16)) for match in found if match]
