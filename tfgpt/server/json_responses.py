"""Answers as TensorFlow Serving writes them in JSON, to the byte: layout, numbers, and strings that are any bytes."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
from google.protobuf import json_format

from tfgpt.server.status import invalid

INDENT = b"    "
ESCAPED = re.compile(rb'[\x00-\x1f"\\]')
ESCAPES = {b'"': b'\\"', b"\\": b"\\\\", b"\b": b"\\b", b"\f": b"\\f", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}
DIGITS = {np.dtype(np.float32): 9, np.dtype(np.float64): 17}


def write_rows(outputs):
    """The answer in row format: for each row a value, or an object where there are several outputs.

    Raises:
        RequestError: INVALID_ARGUMENT, if the outputs have no rows, or not the same number.
    """
    sizes = {}
    for name, array in outputs.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information")
        sizes[name] = len(array)
    if len(set(sizes.values())) != 1:
        raise invalid(f"Tensor name: {name} has inconsistent batch size: {sizes}, expected the same of all outputs")
    written = {name: _rows(_leaves(array, name), array.shape) for name, array in sorted(outputs.items())}
    if len(outputs) == 1:
        [rows] = written.values()
        items = b", ".join(rows) + b"\n" + INDENT if rows else b""
        return b'{\n    "predictions": [' + items + b"]\n}"
    joint = b",\n" + INDENT * 3
    rows = []
    for values in zip(*written.values()):
        members = joint.join(_string(name.encode()) + b": " + value for name, value in zip(written, values))
        rows.append(b"{\n" + INDENT * 3 + members + b"\n" + INDENT * 2 + b"}")
    return b'{\n    "predictions": ' + _spread(rows, 1) + b"\n}"


def write_columns(outputs):
    """The answer in columnar format: an array, or an object of arrays where there are several outputs."""
    if len(outputs) == 1:
        [(name, array)] = outputs.items()
        value = _nested(_leaves(array, name, 1 + array.ndim), array.shape, 1)
    else:
        members = []
        for name, array in sorted(outputs.items()):
            written = _nested(_leaves(array, name, 2 + array.ndim), array.shape, 2)
            members.append(INDENT * 2 + _string(name.encode()) + b": " + written)
        value = b"{\n" + b",\n".join(members) + b"\n" + INDENT + b"}"
    return b'{\n    "outputs": ' + value + b"\n}"


def write_classifications(result):
    """The answer of `:classify`: for each example its [label, score] pairs."""
    rows = []
    for classifications in result.classifications:
        scores = write_floats(np.array([one.score for one in classifications.classes], np.float32))
        labels = [_string(one.label.encode("utf-8", "surrogateescape")) for one in classifications.classes]
        pairs = (b"[" + label + b", " + score + b"]" for label, score in zip(labels, scores))
        rows.append(b"[" + b", ".join(pairs) + b"]")
    return b'{\n    "results": [' + b", ".join(rows) + b"\n    ]\n}"


def write_regressions(result):
    """The answer of `:regress`: a number for each example."""
    values = write_floats(np.array([one.value for one in result.regressions], np.float32))
    return b'{\n    "results": [' + b", ".join(values) + b"]\n}"


def write_error(text):
    """The answer of a request that failed."""
    return b'{\n    "error": ' + _string(text.encode("utf-8", "replace")) + b"\n}"


def write_status(response):
    """The answer to a question for a model's status, of `serving.GetModelStatusResponse`."""
    return (_message_as_json(response) + "\n").encode("utf-8")


def write_metadata(model_spec, signatures):
    """The answer to a question for a model's signatures, of `serving.ModelSpec` and `serving.SignatureDefMap`."""
    spec, signatures = _message_as_json(model_spec), _message_as_json(signatures)
    text = f'{{\n"model_spec":{spec}\n,\n"metadata": {{"signature_def": {signatures}\n}}\n}}\n'
    return text.encode("utf-8", "surrogateescape")


def _message_as_json(proto):
    found = json_format.MessageToDict(
        proto, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.dumps(found, indent=1, ensure_ascii=False)


def write_floats(values):
    """Floating-point numbers: six digits where these say it all, else as many as tell it from every other.

    Example:
        >>> write_floats(np.array([0.2, 3, 1e10, 1 / 3, float("nan")], np.float32))
        [b'0.2', b'3.0', b'1e+10', b'0.333333343', b'NaN']
    """
    values = values.ravel()
    texts = [f"{value:.6g}" for value in values.tolist()]
    digits = DIGITS[values.dtype]
    for i in np.flatnonzero(np.array(texts, np.float64).astype(values.dtype) != values).tolist():
        texts[i] = f"{float(values[i]):.{digits}g}"
    return [_with_point(text).encode("ascii") for text in texts]


def _with_point(text):
    special = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    if text in special:
        return special[text]
    return text if "." in text or "e" in text else f"{text}.0"


def _leaves(array, name, depth=None):
    """Each element of an array as JSON; `depth` is where an object's members stand, None for one line."""
    kind = array.dtype
    if kind in DIGITS:
        return write_floats(array)
    if kind == np.bool_:
        return [b"true" if value else b"false" for value in array.ravel().tolist()]
    if kind.kind == "O":
        return [_leaf_string(value, name, depth) for value in array.ravel().tolist()]
    if kind.kind in "iu" and kind != np.uint16:
        return [str(value).encode("ascii") for value in array.ravel().tolist()]
    raise invalid(f"Failed to write JSON value for tensor type: {kind}")


def _leaf_string(value, name, depth):
    if not name.endswith("_bytes"):
        return _string(value)
    inner, outer = (INDENT * (depth + 1), INDENT * depth) if depth is not None else (INDENT * 4, INDENT * 3)
    return b"{\n" + inner + b'"b64": "' + base64.b64encode(value) + b'"\n' + outer + b"}"


def _string(value):
    """A JSON string; bytes that are no UTF-8 go as they are, as the server writes them."""
    return b'"' + ESCAPED.sub(lambda found: ESCAPES.get(found[0]) or b"\\u%04X" % ord(found[0]), value) + b'"'


def _rows(leaves, shape):
    """Each row of an array on one line."""
    width = len(leaves) // shape[0] if shape[0] else 0
    return [_in_line(leaves[i * width : (i + 1) * width], shape[1:]) for i in range(shape[0])]


def _in_line(leaves, shape):
    if not shape:
        return leaves[0]
    return b"[" + b", ".join(_rows(leaves, shape)) + b"]"


def _nested(leaves, shape, level):
    """An array with each element on a line of its own."""
    if not shape:
        return leaves[0]
    width = len(leaves) // shape[0] if shape[0] else 0
    parts = [leaves[i * width : (i + 1) * width] for i in range(shape[0])]
    return _spread([_nested(part, shape[1:], level + 1) for part in parts], level)


def _spread(items, level):
    if not items:
        return b"[]"
    inside = b"\n" + INDENT * (level + 1)
    return b"[" + inside + (b"," + inside).join(items) + b"\n" + INDENT * level + b"]"
