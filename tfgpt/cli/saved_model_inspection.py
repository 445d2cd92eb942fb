"""What a SavedModel holds, from saved_model.pb alone: TensorFlow's import would take longer than all the rest.

Of its messages only the fields that are shown are declared here; protobuf steps over the others. The numbers are those
of saved_model, meta_graph and saved_object_graph in tensorflow/core/protobuf, types and tensor_shape in core/framework.
"""

from __future__ import annotations

import functools
import math
import pathlib

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from tfgpt.errors import UserError

# Message to its fields: name, number, type, with * if it is repeated. A map is repeated entries of a key and a value.
MESSAGES = {
    "SavedModel": [("meta_graphs", 2, "MetaGraph*")],
    "MetaGraph": [("info", 1, "Info"), ("signatures", 5, "SignatureEntry*"), ("objects", 7, "ObjectGraph")],
    "Info": [("tags", 4, "string*"), ("tensorflow_version", 5, "string")],
    "SignatureEntry": [("key", 1, "string"), ("value", 2, "Signature")],
    "Signature": [("inputs", 1, "TensorEntry*"), ("outputs", 2, "TensorEntry*"), ("method_name", 3, "string")],
    "TensorEntry": [("key", 1, "string"), ("value", 2, "Tensor")],
    "Tensor": [("dtype", 2, "int32"), ("shape", 3, "Shape")],
    "Shape": [("dim", 2, "Dim*"), ("unknown_rank", 3, "bool")],
    "Dim": [("size", 1, "int64"), ("name", 2, "string")],
    "ObjectGraph": [("nodes", 1, "Object*")],
    "Object": [("variable", 7, "Variable")],
    "Variable": [("dtype", 1, "int32"), ("shape", 2, "Shape"), ("trainable", 3, "bool")],
}

DTYPES = {
    **{1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 8: "complex64"},
    **{9: "int64", 10: "bool", 11: "qint8", 12: "quint8", 13: "qint32", 14: "bfloat16", 15: "qint16", 16: "quint16"},
    **{17: "uint16", 18: "complex128", 19: "float16", 20: "resource", 21: "variant", 22: "uint32", 23: "uint64"},
    **{24: "float8_e5m2", 25: "float8_e4m3fn", 29: "int4", 30: "uint4"},
}


def describe_saved_model(directory):
    """Signatures and variables of a SavedModel, as a dictionary for JSON.

    Args:
        directory: the one that holds saved_model.pb.

    Raises:
        UserError: if that is no SavedModel, or its variables are missing.
    """
    path = pathlib.Path(directory) / "saved_model.pb"
    try:
        saved = _message_class()()
        saved.ParseFromString(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except DecodeError as error:
        raise UserError(f"{path} is not a SavedModel, or not all of one: {error}") from error
    if not saved.meta_graphs:
        raise UserError(f"{path} is not a SavedModel, or not all of one: it has no graph")
    graph = saved.meta_graphs[0]  # TensorFlow 2 writes one
    variables = [node.variable for node in graph.objects.nodes if node.HasField("variable")]
    if variables and not (path.parent / "variables" / "variables.index").is_file():
        raise UserError(
            f"{path.parent / 'variables' / 'variables.index'} is missing, expected the SavedModel's weights"
        )
    return {
        "tensorflow_version": graph.info.tensorflow_version,
        "tags": list(graph.info.tags),
        "signatures": {
            entry.key: {
                "method_name": entry.value.method_name,
                "inputs": _tensors(entry.value.inputs),
                "outputs": _tensors(entry.value.outputs),
            }
            for entry in sorted(graph.signatures, key=lambda entry: entry.key)
            if not entry.key.startswith("__saved_model_")  # what restores the variables
        },
        "weights": _count(variables),
    }


def _tensors(entries):
    return {
        entry.key: {"dtype": _dtype(entry.value.dtype), "shape": _shape(entry.value.shape)}
        for entry in sorted(entries, key=lambda entry: entry.key)
    }


def _shape(shape):
    """Lengths, None for any; None for any rank."""
    return None if shape.unknown_rank else [None if dim.size < 0 else dim.size for dim in shape.dim]


def _dtype(number):
    return DTYPES.get(number, f"dtype {number}")


def _count(variables):
    dtypes = {}
    for variable in variables:
        counts = dtypes.setdefault(_dtype(variable.dtype), {"tensors": 0, "elements": 0})
        counts["tensors"] += 1
        counts["elements"] += math.prod(dim.size for dim in variable.shape.dim)
    return dtypes


@functools.cache
def _message_class():
    """The class of the message SavedModel, of a file that is put together here."""
    file = descriptor_pb2.FileDescriptorProto(name="tfgpt/saved_model.proto", package="tfgpt", syntax="proto3")
    for message_name, fields in MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for name, number, kind in fields:
            field = message.field.add(name=name, number=number)
            field.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            kind = kind.removesuffix("*")
            if kind in MESSAGES:
                field.type, field.type_name = field.TYPE_MESSAGE, f".tfgpt.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tfgpt.SavedModel"))
