"""The requests that a server replays before it calls a version available."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

SETTINGS = {"max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed"}


def read(path):
    """Signature → the inputs of its warm-up request, as tensors; and the records themselves."""
    records = tf.data.TFRecordDataset(str(path / "assets.extra" / "tf_serving_warmup_requests"))
    logs = [prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in records]
    assert all(log.WhichOneof("log_type") == "predict_log" for log in logs)
    return [log.predict_log.request for log in logs]


@pytest.fixture(scope="module", params=["served", "served_characters", "served_tokens"])
def loaded(request):
    return request.getfixturevalue(request.param)


def test_there_is_one_request_of_each_signature_for_this_model(loaded):
    requests = read(loaded.path)
    assert sorted(request.model_spec.signature_name for request in requests) == sorted(loaded.signatures)
    assert {request.model_spec.name for request in requests} == {"served"}


def test_requests_are_what_the_signatures_declare(loaded):
    for request in read(loaded.path):
        _, specifications = loaded.signatures[request.model_spec.signature_name].structured_input_signature
        assert set(request.inputs) == set(specifications)
        for name, spec in specifications.items():
            tensor = tf.make_ndarray(request.inputs[name])
            assert request.inputs[name].dtype == spec.dtype.as_datatype_enum
            assert spec.shape.is_compatible_with(tensor.shape)


def test_replaying_them_succeeds(loaded):
    for request in read(loaded.path):
        inputs = {name: tf.constant(tf.make_ndarray(proto)) for name, proto in request.inputs.items()}
        outputs = loaded.signatures[request.model_spec.signature_name](**inputs)
        for name, tensor in outputs.items():
            assert tensor.shape[0] == 1, name
            if tensor.dtype.is_floating:
                assert np.isfinite(tensor).all(), name
        if "num_new_tokens" in outputs:  # the prompt and the loop both ran
            assert outputs["num_new_tokens"] == 2 or outputs["finish_reason"] == b"stop"


def test_they_take_the_branches_that_a_greedy_request_leaves_out(loaded):
    generating = [request for request in read(loaded.path) if set(request.inputs) >= SETTINGS]
    assert generating
    for request in generating:
        inputs = {name: tf.make_ndarray(request.inputs[name]) for name in SETTINGS}
        assert inputs["temperature"] > 0
        assert inputs["repetition_penalty"] != 1
        assert inputs["max_new_tokens"] > 1
