import mmap
import pathlib
import sys

import numpy as np
import pytest

from tfgpt.runtime.resident_memory import drop_file_pages, zeros_in_small_pages

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what is resident")


def resident(kind):
    """Bytes of this process's resident memory, of `RssAnon` or `RssFile`."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))


@linux
def test_rows_take_memory_as_they_are_written():
    before = resident("RssAnon")
    array = zeros_in_small_pages((64, 2**20), np.float32)  # 256 MB
    array[:, :4] = 1
    assert resident("RssAnon") - before < 2**23
    assert array.shape == (64, 2**20) and array[:, :4].all() and not array[:, 4:64].any()


def test_an_array_of_nothing():
    assert zeros_in_small_pages((0, 3), np.float16).shape == (0, 3)


@linux
def test_pages_of_a_file_are_given_back_and_read_again(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 2**16)  # 16 MB
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        total = sum(mapped[::4096])
        held = resident("RssFile")
        assert drop_file_pages(path) == 2**24
        assert held - resident("RssFile") > 2**23
        assert sum(mapped[::4096]) == total
    assert drop_file_pages(path) == 0


@linux
def test_what_was_written_stays(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(2**16))
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[0] = 7
        assert drop_file_pages(path) == 0 and mapped[0] == 7
