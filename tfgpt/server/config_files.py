"""TensorFlow Serving's configuration files: text of protocol buffers."""

from __future__ import annotations

import functools
import pathlib

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2

from tfgpt.errors import UserError
from tfgpt.runtime.serving_messages import message
from tfgpt.server.batching import BatchingParameters

FIELD = descriptor_pb2.FieldDescriptorProto
INT64, STRING = ".google.protobuf.Int64Value", ".google.protobuf.StringValue"

# tensorflow-serving-api lacks these two. Field names, numbers and types are from the server's
# servables/tensorflow/session_bundle_config.proto and config/monitoring_config.proto; a list is a repeated field.
MESSAGES = {
    "BatchingParameters": [
        ("max_batch_size", 1, INT64),
        ("batch_timeout_micros", 2, INT64),
        ("max_enqueued_batches", 3, INT64),
        ("num_batch_threads", 4, INT64),
        ("thread_pool_name", 5, STRING),
        ("allowed_batch_sizes", 6, [FIELD.TYPE_INT64]),
        ("pad_variable_length_inputs", 7, FIELD.TYPE_BOOL),
    ],
    "PrometheusConfig": [("enable", 1, FIELD.TYPE_BOOL), ("path", 2, FIELD.TYPE_STRING)],
    "MonitoringConfig": [("prometheus_config", 1, ".tensorflow.serving.PrometheusConfig")],
}


@functools.cache
def server_message(name):
    """The class of one of `MESSAGES`."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(name="server.proto", package="tensorflow.serving", syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for message_name, fields in MESSAGES.items():
        declared = file.message_type.add(name=message_name)
        for field, number, kind in fields:
            label = FIELD.LABEL_REPEATED if isinstance(kind, list) else FIELD.LABEL_OPTIONAL
            [kind] = kind if isinstance(kind, list) else [kind]
            typed = {"type_name": kind, "type": FIELD.TYPE_MESSAGE} if isinstance(kind, str) else {"type": kind}
            declared.field.add(name=field, number=number, label=label, **typed)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))


def read_model_config(path):
    """A models.config: `serving.ModelServerConfig`'s message.

    Raises:
        UserError: if it cannot be read.
    """
    return _read(path, message("serving.ModelServerConfig"))


def read_batching_parameters(path):
    """A file of BatchingParameters.

    Raises:
        UserError: if it cannot be read, or a value is one that the server refuses.
    """
    found = _read(path, server_message("BatchingParameters"))
    names = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads", "thread_pool_name")
    values = {name: getattr(found, name).value for name in names if found.HasField(name)}
    sizes = tuple(found.allowed_batch_sizes)
    parameters = BatchingParameters(
        **values, allowed_batch_sizes=sizes, pad_variable_length_inputs=found.pad_variable_length_inputs
    )
    for name, least in (
        ("max_batch_size", 1),
        ("batch_timeout_micros", 0),
        ("max_enqueued_batches", 1),
        ("num_batch_threads", 1),
    ):
        if getattr(parameters, name) < least:
            raise UserError(f"{path} has {name} {getattr(parameters, name)}, expected at least {least}")
    if sizes and (list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] != parameters.max_batch_size):
        expected = f"ascending sizes that end in max_batch_size, {parameters.max_batch_size}"
        raise UserError(f"{path} has allowed_batch_sizes {list(sizes)}, expected {expected}")
    return parameters


def read_monitoring_path(path):
    """Where a file of MonitoringConfig puts the metrics; None if it does not enable them.

    Raises:
        UserError: if it cannot be read.
    """
    config = _read(path, server_message("MonitoringConfig")).prometheus_config
    return (config.path or "/monitoring/prometheus/metrics") if config.enable else None


def _read(path, cls):
    try:
        return text_format.Parse(pathlib.Path(path).read_text(encoding="utf-8"), cls())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read, expected a text file: {reason}") from error
    except text_format.ParseError as error:
        raise UserError(f"{path} is no {cls.DESCRIPTOR.name}, expected its text format: {error}") from error
