import json
import pathlib
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tfgpt.errors import UserError
from tfgpt.safetensors_file import HEADER_LIMIT, SLICE, SafetensorsFile, forget_pages

ROOT = pathlib.Path(__file__).resolve().parent.parent


def write(path, header, data=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)


def entry(dtype, shape, start, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


# === What is read ===


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint32, np.bool_])
def test_tensors_are_what_the_library_wrote(tmp_path, dtype):
    generator = np.random.default_rng(0)
    shapes = {"matrix": (5, 7), "vector": (3,), "scalar": (), "empty": (0, 4), "cube": (2, 3, 4)}
    tensors = {name: np.asarray(8 * generator.normal(size=shape)).astype(dtype) for name, shape in shapes.items()}
    safetensors.numpy.save_file(tensors, tmp_path / "file", metadata={"format": "pt", "é": "ü"})
    with SafetensorsFile(tmp_path / "file") as file:
        assert file.metadata == {"format": "pt", "é": "ü"}
        assert set(file.tensors) == set(tensors)
        for name, tensor in tensors.items():
            assert file.tensors[name].shape == tensor.shape
            assert file[name].dtype == tensor.dtype
            np.testing.assert_array_equal(file[name], tensor)
            if tensor.shape:
                parts = [rows for _, rows in file.slices(name)]
                np.testing.assert_array_equal(np.concatenate([tensor[:0], *parts]), tensor)
    with pytest.raises(ValueError, match="read-only"):
        file_array(tmp_path / "file", "vector")[0] = 1


def file_array(path, name):
    with SafetensorsFile(path) as file:
        return file[name]  # outlives the file


def test_data_that_no_alignment_helps(tmp_path):
    """Other writers do not pad their headers: numbers then start at any byte."""
    for padding in range(8):
        header = json.dumps({"a": entry("U8", [1], 0, 1), "b": entry("F32", [2], 1, 9)}).encode() + b" " * padding
        write(tmp_path / "file", header, b"\7" + np.array([1.5, -2.0], "<f4").tobytes())
        np.testing.assert_array_equal(file_array(tmp_path / "file", "b"), [1.5, -2.0])


def test_slices_cover_a_large_tensor_once_each_in_bounds(tmp_path):
    tensor = np.arange(3 * SLICE // 4 + 2048, dtype="float32").reshape(-1, 1024)
    safetensors.numpy.save_file({"a": tensor}, tmp_path / "file")
    with SafetensorsFile(tmp_path / "file") as file:
        slices = list(file.slices("a"))
    assert len(slices) == 4
    assert all(rows.nbytes <= SLICE for _, rows in slices)
    assert [start for start, _ in slices] == list(np.cumsum([0, *(len(rows) for _, rows in slices[:-1])]))
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in slices]), tensor)


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_pages_that_were_read_can_be_forgotten(tmp_path):
    """In slices, each a map of its own, or by `forget_pages`; what was read once is no longer held."""
    safetensors.numpy.save_file({"a": np.ones((16, 2**20), "float32")}, tmp_path / "file")
    with SafetensorsFile(tmp_path / "file") as file:
        tensor, before = file["a"], mapped_bytes()
        assert tensor.sum() == 2**24
        assert mapped_bytes() - before > 60 * 2**20
        forget_pages(tensor[3:5])
        assert mapped_bytes() - before < 2**20
        assert tensor[15].sum() == 2**20
        forget_pages(tensor)
        most = max((rows.sum(), mapped_bytes())[1] for _, rows in file.slices("a"))
        assert most - before < 3 * SLICE
    written = np.ones(4)
    forget_pages(written)
    assert written.sum() == 4


def mapped_bytes():
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssFile:\s+(\d+)", status)[1])


def test_tensors_come_in_the_order_of_their_data(tmp_path):
    write(tmp_path / "file", {"b": entry("U8", [2], 1, 3), "a": entry("U8", [1], 0, 1)}, b"abc")
    with SafetensorsFile(tmp_path / "file") as file:
        assert list(file.tensors) == ["a", "b"]
        assert file["b"].tobytes() == b"bc"


def test_a_file_that_shrinks_while_it_is_open(tmp_path):
    write(tmp_path / "file", {"a": entry("U8", [9], 0, 9)}, b"123456789")
    with SafetensorsFile(tmp_path / "file") as file:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(UserError, match="cannot read .*file"):
            file["a"]


# === What is refused, in one sentence ===

GOOD = entry("F32", [2], 0, 8)


@pytest.mark.parametrize(
    "header, data, message",
    [
        (b"{", b"", "header is not JSON: Expecting property name"),
        (b"\xff{}", b"", "header is not JSON: 'utf-8' codec can't decode"),
        (b"[" * 100_000, b"", "header is not JSON"),
        (b"[]", b"", "has a header that is a JSON list, expected an object"),
        (b'{"a":1,"a":1}', b"", "has 'a' twice in its header, expected every name once"),
        (b'{"a":{"dtype":"F32","dtype":"F16"}}', b"", "has 'dtype' twice in its header"),
        ({"__metadata__": {"step": 1}}, b"", "has __metadata__ {'step': 1}, expected texts by name"),
        ({"__metadata__": "pt"}, b"", "has __metadata__ 'pt', expected texts by name"),
        ({"a": {"dtype": "F32"}}, b"", "has {'dtype': 'F32'} for a, expected its dtype, shape and data_offsets"),
        ({"a": GOOD | {"strides": [1]}}, bytes(8), "for a, expected its dtype, shape and data_offsets"),
        ({"a\nb": GOOD}, bytes(8), r"has a tensor named 'a\\nb', expected printable characters"),
        ({"a": GOOD | {"dtype": "F33"}}, bytes(8), "has a of dtype 'F33', expected one of F64, F32, F16, BF16"),
        ({"a": GOOD | {"dtype": ["F32"]}}, bytes(8), "has a of dtype .'F32'., expected one of"),
        ({"a": GOOD | {"shape": [-2]}}, bytes(8), r"has a of shape \[-2\], expected a list of lengths"),
        ({"a": GOOD | {"shape": [2.0]}}, bytes(8), r"has a of shape \[2.0\], expected a list of lengths"),
        ({"a": GOOD | {"shape": [True, 2]}}, bytes(8), r"has a of shape \[True, 2\], expected a list of lengths"),
        ({"a": GOOD | {"shape": 2}}, bytes(8), "has a of shape 2, expected a list of lengths"),
        ({"a": entry("F32", [2**62, 4], 0, 0)}, b"", r"has a of shape \[4611686018427387904, 4\], expected a list of"),
        ({"a": entry("F32", [2**62, 2**62, 0], 0, 0)}, b"", "has a of shape .*, expected a list of lengths"),
        ({"a": entry("F32", [1] * 65, 0, 4)}, bytes(4), "has a of shape .*, expected a list of lengths"),
        ({"a": GOOD | {"data_offsets": [0]}}, bytes(8), r"has a at offsets \[0\], expected where its data start and"),
        ({"a": entry("F32", [2], -8, 0)}, bytes(8), r"has a at offsets \[-8, 0\], expected where its data start and"),
        ({"a": entry("F32", [2], 8, 0)}, bytes(8), r"has a at offsets \[8, 0\], expected 8 bytes between them for F32"),
        ({"a": GOOD | {"dtype": "F16"}}, bytes(8), r"has a at offsets \[0, 8\], expected 4 bytes between them for F16"),
        ({"a": GOOD | {"shape": [3]}}, bytes(8), r"expected 12 bytes between them for F32 of shape \[3\]"),
        ({"a": entry("F32", [2**40], 0, 2**42)}, bytes(8), "has 8 bytes of data, expected the 4398046511104"),
        ({"a": GOOD, "b": entry("F32", [2], 4, 12)}, bytes(12), "has 'b' start at 4, where it overlaps 'a', expected"),
        ({"a": GOOD, "b": GOOD}, bytes(8), "has 'b' start at 0, where it overlaps 'a', expected its start at 8"),
        ({"a": GOOD, "b": entry("F32", [1], 12, 16)}, bytes(16), "'b' start at 12, where it leaves a hole after 'a'"),
        ({"a": entry("F32", [1], 4, 8)}, bytes(8), "'a' start at 4, where it leaves a hole after 'the header'"),
        ({"a": GOOD}, bytes(7), "has 7 bytes of data, expected the 8 that its header describes"),
        ({"a": GOOD}, bytes(9), "has 9 bytes of data, expected the 8 that its header describes"),
    ],
)
def test_headers_that_are_not_true(tmp_path, header, data, message):
    write(tmp_path / "file", header, data)
    with pytest.raises(UserError, match=message) as error:
        SafetensorsFile(tmp_path / "file")
    assert str(error.value).startswith(f"{tmp_path / 'file'} is not a whole safetensors file: it")
    assert str(error.value).isprintable()


def test_lengths_that_are_not_true(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"1234567")
    with pytest.raises(UserError, match="it has 7 bytes, expected a header's length and as many bytes"):
        SafetensorsFile(path)
    for length in (3, 2**40, 2**64 - 1):
        write(path, b"{}", length=length)
        with pytest.raises(UserError, match=f"it has 10 bytes and a header that says to have {length}, expected"):
            SafetensorsFile(path)
    with open(path, "wb") as file:  # as long as it says, and of one page on the disk
        file.write((HEADER_LIMIT + 1).to_bytes(8, "little"))
        file.truncate(HEADER_LIMIT + 9)
    with pytest.raises(UserError, match=f"has a header of {HEADER_LIMIT + 1} bytes, expected at most {HEADER_LIMIT}"):
        SafetensorsFile(path)


def test_what_is_no_file(tmp_path):
    with pytest.raises(UserError, match="none is missing, expected a safetensors file"):
        SafetensorsFile(tmp_path / "none")
    with pytest.raises(UserError, match="cannot read .*: is a directory"):
        SafetensorsFile(tmp_path)


# === Ten thousand damaged headers ===


def test_damaged_headers_are_read_right_or_refused():
    """Under a limit of memory and processor time; `tests/safetensors_mutations.py` has the damage and the witness."""
    command = [sys.executable, "-m", "tests.safetensors_mutations", "0", "10000"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    counts = json.loads(result.stdout)
    assert counts.pop("the limit holds") == 1
    assert sum(counts.values()) == 10_000
    assert min(counts["read"], counts["refused"], counts["refused, stricter"]) > 100
