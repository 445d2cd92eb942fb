"""Warm-up requests: what TensorFlow Serving runs before it calls a version available.

A server finds out only at the first request of a signature that it lacks an operator, or that it will not compile one.
With a request of each signature beside the model, such a server fails at load, and the old version stays.
"""

from __future__ import annotations

import pathlib

import tensorflow as tf

PLACE = pathlib.PurePath("assets.extra", "tf_serving_warmup_requests")
NEW_TOKENS = 2  # the first comes from the prompt, the second from the loop


def write_warm_up(path, signatures, text=None, examples=None):
    """Writes a request of each signature to `path`/assets.extra/tf_serving_warmup_requests.

    Args:
        path: the directory of a SavedModel, `NAME/VERSION`.
        signatures: name → concrete function.
        text: a prompt.
        examples: name → value, of inputs whose value here is to be another, or that have none here.
    """
    from tensorflow_serving.apis import prediction_log_pb2

    path = pathlib.Path(path)
    (path / PLACE.parent).mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path / PLACE)) as writer:
        for signature, function in signatures.items():
            log = prediction_log_pb2.PredictionLog()
            specs = tf.nest.flatten(function.structured_input_signature)
            if [spec.name for spec in specs] == ["inputs"]:  # of examples, for Classify
                request = log.classify_log.request
                feature = request.input.example_list.examples.add().features.feature["text"]
                feature.bytes_list.value.append(text.encode("utf-8"))
            else:
                request = log.predict_log.request
                for spec in specs:
                    request.inputs[spec.name].CopyFrom(tf.make_tensor_proto(example_input(spec, text, examples or {})))
            request.model_spec.name, request.model_spec.signature_name = path.parent.name, signature
            writer.write(log.SerializeToString())


def example_input(spec, text, examples):
    """A value of a signature's input: of `examples`, or of one row with one token of context."""
    values = {
        "text": [text],
        "token_ids": [[0]],
        "padding_mask": [[1]],
        "max_new_tokens": [NEW_TOKENS],
        "temperature": [1.0],  # sampled, with a penalty: branches that a greedy request leaves out
        "top_p": [1.0],
        "repetition_penalty": [1.1],
        "stop_token_ids": [[-1]],
        "input_ids": [[0]],
        "attention_mask": [[1, 1]],
        "position_ids": [[1]],
        **examples,
    }
    if spec.name in values:
        return tf.constant(values[spec.name], spec.dtype)
    return tf.zeros([1 if axis is None else axis for axis in spec.shape], spec.dtype)
