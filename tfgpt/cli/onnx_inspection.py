"""What an ONNX file holds: its graph is read, its weights stay where they are."""

from __future__ import annotations

import collections
import math
import pathlib

import onnx
from google.protobuf.message import DecodeError

from tfgpt.errors import UserError


def describe_onnx(path):
    """Inputs, outputs, opsets, operators and weights of an ONNX file, as a dictionary for JSON.

    Args:
        path: of the file; weights within it are read over with it, those beside it are not.

    Raises:
        UserError: if it is no ONNX model, or if data that it refers to are missing or too short.
    """
    path = pathlib.Path(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except (DecodeError, ValueError) as error:
        raise UserError(f"{path} is not an ONNX model, or not all of one: {str(error)[:120]}") from error
    if not model.ir_version or not model.opset_import or not model.graph.output:
        raise UserError(f"{path} is not an ONNX model, or not all of one: it has no opset or no outputs")
    weights = list(_initializers(model.graph))
    operators = collections.Counter(_operators([model.graph, *model.functions]))
    return {
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "ir_version": model.ir_version,
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": _values(model.graph.input, {weight.name for weight in weights}),
        "outputs": _values(model.graph.output),
        "operators": dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        "weights": _count(weights),
        "external_data": _external_data(path, weights),
    }


def _values(values, weights=()):
    """Name to dtype and shape; weights may be listed among the inputs."""
    described = {}
    for value in values:
        if value.name not in weights:
            tensor = value.type.tensor_type
            shape = [
                dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else None) for dim in tensor.shape.dim
            ]
            known = tensor.HasField("shape")
            described[value.name] = {"dtype": _dtype(tensor.elem_type), "shape": shape if known else None}
    return described


def _dtype(number):
    return onnx.TensorProto.DataType.Name(number).lower()


def _operators(graphs):
    """The operators of graphs or functions, with those of the graphs that they hold, and their domain if not ONNX's."""
    for graph in graphs:
        for node in graph.node:
            yield f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
            for attribute in node.attribute:
                yield from _operators([*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])])


def _initializers(graph):
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _initializers(inner)


def _count(weights):
    dtypes = {}
    for weight in weights:
        counts = dtypes.setdefault(_dtype(weight.data_type), {"tensors": 0, "elements": 0})
        counts["tensors"] += 1
        counts["elements"] += math.prod(weight.dims)
    return dtypes


def _external_data(path, weights):
    """File to bytes that the weights take there, once it was found to have them."""
    used, ends = collections.Counter(), collections.Counter()
    places = set()
    for weight in weights:
        if weight.data_location == onnx.TensorProto.EXTERNAL:
            entry = {item.key: item.value for item in weight.external_data}
            name, offset, length = entry.get("location", ""), entry.get("offset", "0"), entry.get("length", "0")
            if not name or pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts:
                raise UserError(f"{path} has {weight.name} in the file {name!r}, expected one beside it")
            if not (offset.isdecimal() and length.isdecimal()) or len(offset + length) > 40:
                raise UserError(
                    f"{path} has {weight.name} at {offset[:20]!r}, expected an offset and a length in bytes"
                )
            ends[name] = max(ends[name], int(offset) + int(length))
            if (name, offset) not in places:  # tied weights are stored once
                places.add((name, offset))
                used[name] += int(length)
    for name, end in ends.items():
        found = (path.parent / name).stat().st_size if (path.parent / name).is_file() else None
        if found is None or found < end:
            what = "is missing" if found is None else f"has {found} bytes"
            raise UserError(f"{path.parent / name} {what}, expected at least {end} bytes of {path.name}'s weights")
    return dict(used)
