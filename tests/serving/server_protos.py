"""Protobufs that TensorFlow Serving reads its configuration with, where tensorflow-serving-api (2.19 to 2.21) has none.

The package has ModelServerConfig. BatchingParameters and MonitoringConfig are declared here after the server's source,
servables/tensorflow/session_bundle_config.proto and config/monitoring_config.proto.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

FIELD = descriptor_pb2.FieldDescriptorProto
INT64, STRING = ".google.protobuf.Int64Value", ".google.protobuf.StringValue"

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


def server_message(name):
    """A class of `MESSAGES`: each field's name, number and type, a type in a list being a repeated field's."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(name="server.proto", package="tensorflow.serving", syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for message, fields in MESSAGES.items():
        declared = file.message_type.add(name=message)
        for field, number, kind in fields:
            label = FIELD.LABEL_REPEATED if isinstance(kind, list) else FIELD.LABEL_OPTIONAL
            [kind] = kind if isinstance(kind, list) else [kind]
            typed = {"type_name": kind, "type": FIELD.TYPE_MESSAGE} if isinstance(kind, str) else {"type": kind}
            declared.field.add(name=field, number=number, label=label, **typed)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))
