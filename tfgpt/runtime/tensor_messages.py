"""NumPy arrays as TensorProto and back, as TensorFlow reads and writes them (core/framework/tensor.proto)."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from tfgpt.runtime.serving_messages import message

# Number in DataType, name there, NumPy's dtype, field for single values.
TYPES = (
    (1, "DT_FLOAT", np.float32, "float_val"),
    (2, "DT_DOUBLE", np.float64, "double_val"),
    (3, "DT_INT32", np.int32, "int_val"),
    (4, "DT_UINT8", np.uint8, "int_val"),
    (5, "DT_INT16", np.int16, "int_val"),
    (6, "DT_INT8", np.int8, "int_val"),
    (7, "DT_STRING", np.object_, "string_val"),
    (8, "DT_COMPLEX64", np.complex64, "scomplex_val"),
    (9, "DT_INT64", np.int64, "int64_val"),
    (10, "DT_BOOL", np.bool_, "bool_val"),
    (14, "DT_BFLOAT16", ml_dtypes.bfloat16, "half_val"),
    (17, "DT_UINT16", np.uint16, "int_val"),
    (18, "DT_COMPLEX128", np.complex128, "dcomplex_val"),
    (19, "DT_HALF", np.float16, "half_val"),
    (22, "DT_UINT32", np.uint32, "uint32_val"),
    (23, "DT_UINT64", np.uint64, "uint64_val"),
)
BY_NUMBER = {number: (np.dtype(dtype), field) for number, _, dtype, field in TYPES}
BY_DTYPE = {np.dtype(dtype): (number, field) for number, _, dtype, field in TYPES}
NAMES = {number: name for number, name, _, _ in TYPES}
NUMBERS = {name: number for number, name, _, _ in TYPES}
PAIRS = ("scomplex_val", "dcomplex_val")  # real and imaginary part, one after the other

MOST_ELEMENTS = 2**28


def to_message(array):
    """An array as TensorProto, each value in the field of its type, where clients look for it.

    Args:
        array: of numbers, booleans, or Python objects that are bytes.
    """
    array = np.asarray(array)
    if array.dtype.kind in "SU":
        array = np.array([_bytes(value) for value in array.ravel()], object).reshape(array.shape)
    number, field = BY_DTYPE[array.dtype]
    proto = message("TensorProto")(dtype=number)
    proto.tensor_shape.SetInParent()  # a scalar's shape is there, and has no dimension
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    values = array.ravel()
    if field == "half_val":
        values = values.view(np.uint16)
    elif field in PAIRS:
        values = values.view(values.real.dtype)
    values = values.tolist()
    if field == "string_val":
        values = [_bytes(value) for value in values]
    getattr(proto, field).extend(values)
    return proto


def from_message(proto, most_elements=MOST_ELEMENTS):
    """The array of a TensorProto; strings are Python objects, bytes.

    Fewer values than the shape has elements mean that the last one is repeated, none that all are zero.

    Raises:
        ValueError: if it is no tensor, with a sentence.
    """
    if proto.dtype not in BY_NUMBER:
        raise ValueError(f"the tensor has dtype {proto.dtype}, expected one of {', '.join(NAMES.values())}")
    dtype, field = BY_NUMBER[proto.dtype]
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    count = math.prod(shape)
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise ValueError(f"the tensor has shape {list(shape)}, expected every size to be known")
    if count > most_elements or len(shape) > 32:
        raise ValueError(f"the tensor has shape {list(shape)}, expected at most {most_elements} elements")
    if proto.tensor_content and dtype.kind != "O":
        if len(proto.tensor_content) != count * dtype.itemsize:
            found = f"{len(proto.tensor_content)} bytes"
            raise ValueError(f"the tensor's content has {found}, expected {count * dtype.itemsize} for {list(shape)}")
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
    return _repeated(_values(getattr(proto, field), field, dtype), count, dtype, shape)


def _values(values, field, dtype):
    if field == "string_val":
        array = np.empty(len(values), object)
        array[:] = list(values)
        return array
    if field == "half_val":
        return np.array(values, np.int64).astype(np.uint16).view(dtype)
    if field in PAIRS:
        part = np.float32 if field == "scomplex_val" else np.float64
        return np.array(values[: len(values) // 2 * 2], part).view(dtype)
    # Through int64, so that too large an integer wraps around, as in C++, rather than raise.
    wide = np.int64 if field == "int_val" else dtype
    return np.array(values, wide).astype(dtype)


def _repeated(values, count, dtype, shape):
    if len(values) > count:
        raise ValueError(f"the tensor has {len(values)} values, expected {count} for shape {list(shape)}")
    if len(values) < count:
        last = values[-1] if len(values) else b"" if dtype.kind == "O" else dtype.type(0)
        filled = np.full(count, last, dtype)
        filled[: len(values)] = values
        values = filled
    return values.reshape(shape)


def _bytes(value):
    return value.encode("utf-8") if isinstance(value, str) else value
