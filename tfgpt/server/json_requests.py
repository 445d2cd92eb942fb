"""A REST request's JSON as arrays: row format ("instances"), columnar format ("inputs"), and examples to classify."""

from __future__ import annotations

import base64
import binascii
import math

import numpy as np

from tfgpt.runtime.serving_messages import message
from tfgpt.runtime.tensor_messages import BY_NUMBER, NAMES
from tfgpt.server.json_parsing import JsonObject, kind, shown
from tfgpt.server.status import RequestError, invalid

# Integers from which on a floating-point number cannot tell each from its neighbour.
EXACT = {"DT_FLOAT": 2**24 - 1, "DT_DOUBLE": 2**53 - 1}
FLOATS = {"DT_FLOAT": float(np.finfo(np.float32).max), "DT_DOUBLE": float(np.finfo(np.float64).max)}
INTEGERS = {  # the range that JSON may have; narrower types wrap around, as in the server
    "DT_INT8": (-(2**31), 2**31),
    "DT_UINT8": (-(2**31), 2**31),
    "DT_INT16": (-(2**31), 2**31),
    "DT_INT32": (-(2**31), 2**31),
    "DT_INT64": (-(2**63), 2**63),
    "DT_UINT32": (0, 2**32),
    "DT_UINT64": (0, 2**64),
}


def signature_name(document):
    """The request's `signature_name`, or an empty string."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(f"JSON Value: {shown(document)} not formatted correctly. 'signature_name' must be a string")
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_inputs(document, declared):
    """The inputs of a prediction.

    Args:
        document: a `JsonObject`.
        declared: name → TensorInfo of the signature's inputs.

    Returns:
        Name → array, and whether they came in row format.

    Raises:
        RequestError: with the reason.
    """
    if not declared:
        raise invalid("Failed to get input map for the signature: it has no inputs")
    if "instances" in document and "inputs" in document:
        raise invalid(
            f"JSON Value: {shown(document)} Not formatted correctly expecting only one of 'inputs' or 'instances'"
        )
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise invalid(f"JSON Value: {shown(document)} Excepting 'instances' to be an list/array")
        if not instances:
            raise invalid(f"JSON Value: {shown(document)} No values in 'instances' array")
        return _read_rows(instances, declared), True
    if "inputs" in document:
        return _read_columns(document["inputs"], declared), False
    raise invalid("Missing 'inputs' or 'instances' key")


def _read_columns(inputs, declared):
    if not isinstance(inputs, JsonObject) or _is_base64(inputs):
        if len(declared) > 1:
            raise invalid("inputs is a plain value/list, but the signature has several inputs, expected an object")
        inputs = dict.fromkeys(declared, inputs)
    arrays = {}
    for name, info in declared.items():
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        arrays[name] = _read_array(inputs[name], info.dtype)
    return arrays


def _read_rows(instances, declared):
    first = instances[0]
    if not isinstance(first, JsonObject) and len(declared) > 1:
        raise invalid("instances is a plain list, but the signature has several inputs, expected a list of objects")
    objects = isinstance(first, JsonObject) and not _is_base64(first)
    rows = {name: [] for name in declared}
    for number, instance in enumerate(instances):
        if (isinstance(instance, JsonObject) and not _is_base64(instance)) != objects:
            found, expected = ("value/list", "object") if objects else ("object", "value/list")
            raise invalid(f"Expecting {expected} but got {found} at item {number} of input list")
        pairs = instance.pairs if objects else [(next(iter(declared)), instance)]
        if len(pairs) != len({name for name, _ in pairs}):
            raise invalid(f"Failed to process element: {number} of 'instances' list: a key stands there twice")
        for name, value in pairs:
            where = f"Failed to process element: {number}{f' key: {name}' if objects else ''} of 'instances' list."
            try:
                _read_instance(value, name, declared, rows)
            except RequestError as error:
                # Whatever the reason, over all of a list the server says that the argument is invalid.
                raise invalid(f"{where} Error: {error.code}: {error.message}") from error
        if objects and len(pairs) != len(declared):
            keys = ",".join(sorted(declared))
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. JSON object: {shown(instance)} keys must "
                f"be equal to: {keys}"
            )
    # A plain list of base64 leaves the other inputs out; whether they may be is the signature's affair.
    return {name: np.stack(arrays) for name, arrays in rows.items() if arrays}


def _read_instance(value, name, declared, rows):
    if name not in declared:
        raise invalid(f"JSON object: does not have named input: {name}")
    array = _read_array(value, declared[name].dtype)
    if rows[name] and rows[name][0].shape != array.shape:
        raise invalid(f"Expecting shape {list(rows[name][0].shape)} but got: {list(array.shape)}")
    rows[name].append(array)


def _read_array(value, number):
    """A dense array of JSON: all lists of one depth have one length."""
    shape, level = [], value
    while isinstance(level, list):
        shape.append(len(level))
        if not level:
            break
        level = level[0]
    leaves = []
    _collect(value, tuple(shape), leaves)
    dtype = NAMES.get(number, str(number))
    if dtype == "DT_STRING":
        array = np.empty(len(leaves), object)
        array[:] = [_string(leaf) for leaf in leaves]
        return array.reshape(shape)
    for leaf in leaves:
        _check(leaf, dtype)
    if dtype not in (*EXACT, *INTEGERS, "DT_BOOL"):  # an empty list is of any type
        raise RequestError("UNIMPLEMENTED", f"Conversion of JSON to type {dtype} is not implemented")
    wide = {"DT_UINT64": np.uint64, "DT_FLOAT": np.float64}.get(dtype, np.int64 if dtype in INTEGERS else None)
    numpy_dtype = BY_NUMBER[number][0]
    return np.array(leaves, wide or numpy_dtype).astype(numpy_dtype).reshape(shape)


def _collect(value, shape, leaves):
    if not isinstance(value, list):
        if shape:
            raise invalid(f"JSON Value: {shown(value)} found where a list was expected")
        leaves.append(value)
        return
    if not shape:
        raise invalid("Encountered list at unexpected level")
    if len(value) != shape[0]:
        raise invalid(f"Expecting tensor size: {shape[0]} but got: {len(value)}")
    for item in value:
        _collect(item, shape[1:], leaves)


def _check(leaf, dtype):
    """Raises unless a JSON value can be one of a tensor's."""
    if dtype == "DT_BOOL":
        fits = isinstance(leaf, bool)
    elif dtype in INTEGERS:
        low, high = INTEGERS[dtype]
        fits = type(leaf) is int and low <= leaf < high
    elif dtype in EXACT:
        fits = type(leaf) in (int, float)
        if fits and not _is_lossless(leaf, dtype):
            raise invalid(f"Cannot convert JSON value: {shown(leaf)} to {dtype} without loss of precision.")
    else:
        raise RequestError("UNIMPLEMENTED", f"Conversion of JSON Value: {shown(leaf)} to type: {dtype}")
    if not fits:
        expected = dtype.removeprefix("DT_").lower()
        raise invalid(f"JSON Value: {shown(leaf)} Type: {kind(leaf)} is not of expected type: {expected}")


def _is_lossless(number, dtype):
    if type(number) is int:
        return abs(number) <= EXACT[dtype]
    return not math.isfinite(number) or abs(number) <= FLOATS[dtype]


def _string(leaf):
    if isinstance(leaf, JsonObject):
        if not _is_base64(leaf):
            raise invalid(f"JSON Value: {shown(leaf)} not formatted correctly for base64 data")
        return _decode_base64(leaf["b64"])
    if not isinstance(leaf, str):
        raise invalid(f"JSON Value: {shown(leaf)} Type: {kind(leaf)} is not of expected type: string")
    return leaf.encode("utf-8", "surrogateescape")


def _is_base64(value):
    return (
        isinstance(value, JsonObject) and [key for key, _ in value.pairs] == ["b64"] and isinstance(value["b64"], str)
    )


def _decode_base64(text):
    """Base64 as the server takes it: with or without padding, white space between."""
    packed = "".join(text.split())
    unpadded = packed.rstrip("=")
    padding = len(packed) - len(unpadded)
    try:
        if padding and (padding > 2 or len(packed) % 4):
            raise binascii.Error("padding")
        return base64.b64decode(unpadded + "=" * (-len(unpadded) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid("Unable to base64 decode") from error


def read_examples(document):
    """The examples of a request to classify or regress.

    Returns:
        `serving.Input`'s message.
    """
    read = message("serving.Input")()
    has_context = "context" in document
    if has_context:
        _read_example(document["context"], read.example_list_with_context.context)
    if "examples" not in document:
        raise invalid(f"JSON Value: {shown(document)} has no key 'examples', which is expected")
    examples = document["examples"]
    if not isinstance(examples, list) or not examples:
        raise invalid(f"JSON Value: {shown(document)} Expecting 'examples' to be a list that is not empty")
    rows = read.example_list_with_context if has_context else read.example_list
    for example in examples:
        _read_example(example, rows.examples.add())
    return read


def _read_example(value, example):
    if not isinstance(value, JsonObject):
        raise invalid(f"Example must be JSON object but got JSON {kind(value)}")
    for name, content in value.pairs:
        name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        feature = message("Feature")()
        for item in content if isinstance(content, list) else [content]:
            _add_to_feature(item, name, feature)
        example.features.feature[name].CopyFrom(feature)


def _add_to_feature(item, name, feature):
    if isinstance(item, (bool, int)):
        which, item = "int64_list", int(item)
        if item >= 2**63:
            raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
    elif isinstance(item, float):
        which = "float_list"
        if not _is_lossless(item, "DT_FLOAT"):
            raise invalid(f"Cannot convert JSON value: {shown(item)} to float without loss of precision.")
    elif isinstance(item, str) or _is_base64(item):
        which, item = "bytes_list", _string(item)
    else:
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {kind(item)}")
    if feature.WhichOneof("kind") not in (None, which):
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {feature.WhichOneof('kind')}")
    getattr(feature, which).value.append(item)
