"""What a process keeps in memory, where more would be kept than is used."""

from __future__ import annotations

import ctypes
import math
import mmap
import pathlib
import re

import numpy as np

DONT_NEED = 4  # MADV_DONTNEED, which Python's own madvise takes for its own mappings only


def zeros_in_small_pages(shape, dtype):
    """An array of zeros that takes memory by the 4 kB as it is written.

    A system that hands out pages of 2 MB by itself would give a cache of mostly empty rows all of its memory at once.
    """
    dtype = np.dtype(dtype)
    memory = mmap.mmap(-1, max(1, math.prod(shape) * dtype.itemsize))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # Linux
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)


def give_back_freed():
    """Has the allocator give what is free back to the system, which it would keep where not the first thread freed it.

    Returns:
        Whether it could: the allocator is glibc's.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return bool(trim is not None and trim(0))


def drop_file_pages(path):
    """Gives the pages of a mapped file back to the system, which has them in the file cache still.

    ONNX Runtime reads all weights once, to lay them out anew, and keeps the file mapped for those few that it uses as
    they are.

    Returns:
        How many bytes of mappings were dropped; 0 where the system does not list them.
    """
    try:
        text = pathlib.Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    mapping = rf"^(\w+)-(\w+) \S+ \S+ \S+ \S+ +{re.escape(str(pathlib.Path(path).resolve()))}\n((?:\w+: .*\n)+)"
    dropped = 0
    for found in re.finditer(mapping, text, re.MULTILINE):
        start, end = int(found[1], 16), int(found[2], 16)
        # A page that was written to is anonymous from then on, and its contents would be lost.
        if re.search(r"^Anonymous: +0 kB$", found[3], re.MULTILINE) and not madvise(start, end - start, DONT_NEED):
            dropped += end - start
    return dropped
