"""Safetensors files of any origin, believed only after their header was checked; tensors are mapped, never copied here.

The `safetensors` library writes our files. Its reader accepts a header that names a tensor twice, says of other damage
neither what it found nor what it expected, and copies every slice; hence this one, which the tests hold against it.
"""

from __future__ import annotations

import json
import math
import mmap
import reprlib
from typing import NamedTuple

import ml_dtypes
import numpy as np

from tfgpt.errors import UserError

HEADER_LIMIT = 2**24  # bytes; the header of GPT-2 XL has 60,000
SLICE = 2**22  # bytes

# https://github.com/huggingface/safetensors#format; those that share bytes between elements are left out.
DTYPES = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}


class StoredTensor(NamedTuple):
    """What a header says of a tensor: its dtype's name there, its shape, its place in the data that follow."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    """A safetensors file, open for reading.

    Args:
        path: of the file.

    Attributes:
        tensors: a `StoredTensor` by name, in the order of the file's data.
        metadata: the header's `__metadata__`, texts by name.

    Raises:
        UserError: if the file is missing, or its header is not true of it. Nothing is allocated by a header's word.

    Example:

    >>> import pathlib, safetensors.numpy, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> safetensors.numpy.save_file({"wte": np.arange(6, dtype="float32").reshape(3, 2)}, path)
    >>> with SafetensorsFile(path) as file:
    ...     print(file.tensors["wte"].shape, file.tensors["wte"].dtype, file["wte"][1])
    (3, 2) F32 [2. 3.]
    """

    def __init__(self, path):
        self.path = path
        try:
            self._file = open(path, "rb")  # noqa: SIM115
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing, expected a safetensors file") from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
        try:
            self._read_header()
        except OSError as error:
            self.close()
            raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """Closes the file; arrays that were given stay."""
        self._file.close()

    def __getitem__(self, name):
        """A tensor, mapped read-only."""
        tensor = self.tensors[name]
        return self._map(tensor, tensor.start, tensor.shape)

    def slices(self, name):
        """A tensor's rows, some at a time: pairs (index of the first, mapped array).

        Each is a map of its own. Let go of one, and the pages read through it no longer count as this process's memory.
        """
        tensor = self.tensors[name]
        if not tensor.shape:
            raise ValueError(f"{name} is a scalar, which has no rows")
        row = (tensor.end - tensor.start) // max(1, tensor.shape[0])
        rows = max(1, SLICE // max(1, row))
        for start in range(0, tensor.shape[0], rows):
            shape = (min(rows, tensor.shape[0] - start), *tensor.shape[1:])
            yield start, self._map(tensor, tensor.start + start * row, shape)

    def _map(self, tensor, start, shape):
        dtype = DTYPES[tensor.dtype].newbyteorder("<")
        if 0 in shape:
            return np.empty(shape, dtype)  # there is no map of nothing
        try:
            return np.asarray(np.memmap(self._file, dtype, "r", self._data + start, shape))
        except (OSError, ValueError) as error:  # it was whole when it was opened
            raise UserError(f"cannot read {self.path}: {error}") from error

    # === The header: its length in 8 bytes, JSON, then the tensors' data end to end ===

    def _read_header(self):
        size = self._file.seek(0, 2)
        self._file.seek(0)
        length = int.from_bytes(self._file.read(8), "little")
        if size < 8 or length > size - 8:
            found = f"{size} bytes" if size < 8 else f"{size} bytes and a header that says to have {length}"
            raise self._damaged(found, "a header's length and as many bytes")
        if length > HEADER_LIMIT:
            raise self._damaged(f"a header of {length} bytes", f"at most {HEADER_LIMIT}")
        self._data = 8 + length
        header = self._parse(self._file.read(length))
        self.metadata = header.pop("__metadata__", {})
        texts = self.metadata.values() if isinstance(self.metadata, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise self._damaged(f"__metadata__ {_short(self.metadata)}", "texts by name")
        tensors = {name: self._checked(name, entry) for name, entry in header.items()}
        self.tensors = dict(sorted(tensors.items(), key=lambda item: item[1][2:]))
        self._check_places(size - self._data)

    def _parse(self, header):
        try:
            header = json.loads(header.decode("utf-8"), object_pairs_hook=self._without_duplicates)
        except UserError:
            raise
        except (ValueError, RecursionError) as error:  # also of bytes that are not UTF-8
            raise UserError(
                f"{self.path} is not a whole safetensors file: its header is not JSON: {str(error)[:120]}"
            ) from error
        if not isinstance(header, dict):
            raise self._damaged(f"a header that is a JSON {type(header).__name__}", "an object")
        return header

    def _without_duplicates(self, pairs):
        unique = dict(pairs)
        if len(unique) < len(pairs):
            seen = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))
            raise self._damaged(f"{_short(twice)} twice in its header", "every name once")
        return unique

    def _checked(self, name, entry):
        """The `StoredTensor` of one entry, if it agrees with itself."""
        if not name.isprintable():
            raise self._damaged(f"a tensor named {_short(name)}", "printable characters")
        shown = name if len(name) <= 120 else _short(name)
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise self._damaged(f"{_short(entry)} for {shown}", "its dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise self._damaged(f"{shown} of dtype {_short(dtype)}", f"one of {', '.join(DTYPES)}")
        # Bounds that NumPy has; Python's integers would go past them, and take their time.
        if not _are_lengths(shape) or len(shape) > 64 or math.prod(n or 1 for n in shape) >= 2**60:
            raise self._damaged(f"{shown} of shape {_short(shape)}", "a list of lengths that memory could hold")
        if not _are_lengths(offsets) or len(offsets) != 2:
            raise self._damaged(f"{shown} at offsets {_short(offsets)}", "where its data start and end")
        length = math.prod(shape) * DTYPES[dtype].itemsize
        if offsets[1] - offsets[0] != length:
            raise self._damaged(
                f"{shown} at offsets {offsets}",
                f"{length} bytes between them for {dtype} of shape {_short(shape)}",
            )
        return StoredTensor(dtype, tuple(shape), *offsets)

    def _check_places(self, size):
        """The tensors' data have to fill what follows the header, without holes, each byte in one tensor."""
        end, before = 0, "the header"
        for name, tensor in self.tensors.items():
            if tensor.start != end:
                what = "overlaps" if tensor.start < end else "leaves a hole after"
                where = f"start at {tensor.start}, where it {what} {_short(before)}"
                raise self._damaged(f"{_short(name)} {where}", f"its start at {end}")
            end, before = tensor.end, name
        if end != size:
            raise self._damaged(f"{size} bytes of data", f"the {end} that its header describes")

    def _damaged(self, found, expected):
        return UserError(f"{self.path} is not a whole safetensors file: it has {found}, expected {expected}")


def forget_pages(array):
    """Lets go of the memory that reading a mapped array took; read again, the pages come from the file again.

    Args:
        array: given by a `SafetensorsFile`, or a slice of it; nothing is done to others.
    """
    read_only = not array.flags.writeable
    while isinstance(array, np.ndarray):
        array = array.base
    if read_only and isinstance(array, mmap.mmap):
        array.madvise(mmap.MADV_DONTNEED)


def _short(value):
    """A value's repr, in at most 120 characters and without line breaks, however large or deep it is."""
    short = reprlib.Repr()
    short.maxstring = 120
    text = short.repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _are_lengths(numbers):
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)
