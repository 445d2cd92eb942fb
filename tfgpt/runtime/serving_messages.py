"""TensorFlow Serving's messages, from the installed stubs, without importing TensorFlow.

`tensorflow_serving.apis.predict_pb2` imports `tensorflow.core.framework.tensor_pb2`, and so all of TensorFlow: seconds
and hundreds of megabytes for a few messages. Each generated module is little more than its serialized descriptor, which
is read here from the module's source instead; all of them together take about 40 ms. The classes live in a pool of
their own: to code that did import the stubs these are other classes with the same bytes.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import pathlib

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FILES = (
    "tensorflow_serving/apis/prediction_service.proto",
    "tensorflow_serving/apis/model_service.proto",
    "tensorflow_serving/apis/prediction_log.proto",
    "tensorflow/core/protobuf/saved_model.proto",
)
FOLDERS = {"xla": "tensorflow/compiler/xla"}  # where the package keeps what its protos import from elsewhere


@functools.cache
def message(name):
    """The class of a message.

    Args:
        name: in full, without the first part that all have: `serving.PredictRequest`, `TensorProto`.

    Example:
        >>> message("serving.ModelSpec")(name="demo").name
        'demo'
    """
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"tensorflow.{name}"))


@functools.cache
def _pool():
    pool, added = descriptor_pool.DescriptorPool(), set()

    def add(name):
        if name in added:
            return
        added.add(name)
        file = descriptor_pb2.FileDescriptorProto.FromString(_serialized_descriptor(name))
        for dependency in file.dependency:
            add(dependency)
        pool.Add(file)

    for name in FILES:
        add(name)
    return pool


def _serialized_descriptor(name):
    """What the generated module of a .proto file hands to protobuf."""
    path = _generated_module(name)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "AddSerializedFile":
            return node.args[0].value
    raise ImportError(f"{path} has no AddSerializedFile, expected a module that protoc generated")


def _generated_module(name):
    top, _, rest = name.partition("/")
    top, _, folder = FOLDERS.get(top, top).partition("/")
    spec = importlib.util.find_spec(top)  # of a package without a dot: found, not imported
    for place in spec.submodule_search_locations if spec else ():
        path = pathlib.Path(place, folder, f"{rest.removesuffix('.proto')}_pb2.py")
        if path.is_file():
            return path
    raise ImportError(f"no package has {name}, expected tensorflow-serving-api and TensorFlow to be installed")
