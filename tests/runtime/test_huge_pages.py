import mmap
import pathlib
import re
import sys

import numpy as np
import pytest

from tfgpt.runtime import huge_pages as module
from tfgpt.runtime.huge_pages import huge_pages


def memory():
    """16 MB that nothing has advised the kernel of (NumPy advises it of large arrays), and NumPy's view of it."""
    region = mmap.mmap(-1, 2**24, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(region, np.float32)
    array[:] = np.arange(len(array))
    return array


def flags_of(array):
    """What the kernel knows of the middle of an array."""
    address = array.ctypes.data + array.nbytes // 2
    text = pathlib.Path("/proc/self/smaps").read_text(encoding="utf-8")
    for region in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", text):
        start, end = (int(bound, 16) for bound in re.match(r"(\w+)-(\w+)", region).groups())
        if start <= address < end:
            return re.search(r"VmFlags:(.*)", region)[1].split()
    raise AssertionError("no such region")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux")
def test_what_is_allocated_keeps_its_contents_and_gets_the_advice():
    assert "hg" not in flags_of(memory())
    with huge_pages():
        array = memory()
    np.testing.assert_array_equal(array, np.arange(2**22))
    assert "hg" in flags_of(array)


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_nothing_is_done(monkeypatch, platform):
    monkeypatch.setattr(module.sys, "platform", platform)
    with huge_pages():
        assert module._anonymous_regions() == []
