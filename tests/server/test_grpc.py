"""The gRPC services, by TensorFlow Serving's own generated stubs."""

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tests.server.served_models import NUMBERS, UNWRITABLE


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


@pytest.fixture(scope="module")
def prediction(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def management(channel):
    return model_service_pb2_grpc.ModelServiceStub(channel)


def predict_request(model, signature="", version=None, label=None, outputs=(), **inputs):
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name, request.model_spec.signature_name = model, signature
    if version is not None:
        request.model_spec.version.value = version
    if label is not None:
        request.model_spec.version_label = label
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def arrays(response):
    return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}


@pytest.mark.parametrize("where, expected", [({}, 5), ({"version": 1}, 4), ({"label": "stable"}, 4)])
def test_predict(prediction, where, expected):
    response = prediction.Predict(predict_request("scale", x=np.float32([1]), **where))
    assert list(response.outputs["y"].float_val) == [expected]  # where clients look for it
    assert response.model_spec.name == "scale" and response.model_spec.signature_name == "serving_default"
    assert response.model_spec.version.value == (2 if expected == 5 else 1)


@pytest.mark.parametrize("dtype", [*NUMBERS, *UNWRITABLE, "complex128"])
def test_every_dtype_comes_back(prediction, dtype):
    if dtype == "complex128":
        with pytest.raises(grpc.RpcError) as error:
            prediction.Predict(predict_request("types", "complex64", x=np.complex128([1])))
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        return
    values = tf.cast(tf.constant([[0, 1], [1, 0]]), dtype).numpy()
    for sent in (values, values[:0], values[0, 0]):  # also empty, and a scalar
        outputs = arrays(prediction.Predict(predict_request("types", dtype, x=sent)))
        assert outputs["y"].dtype == values.dtype and outputs["y"].shape == np.shape(sent)
        np.testing.assert_array_equal(outputs["y"], sent)


def test_strings_and_a_default(prediction):
    request = predict_request("greeting", name=np.array([b"\xff", b"a"]), times=np.int32([1, 2]))
    outputs = arrays(prediction.Predict(request))
    assert outputs["greeting"].tolist() == [b"hello \xff", b"hello a"]
    assert outputs["sums"].tolist() == [0.75]  # of the default weights


def test_an_output_filter(prediction):
    request = predict_request("greeting", name=["a"], times=np.int32([1]), outputs=["times", "greeting"])
    assert set(prediction.Predict(request).outputs) == {"times", "greeting"}


def test_a_value_that_stands_for_all(prediction):
    request = predict_request("scale", x=np.float32([1, 1, 1]))
    request.inputs["x"].ClearField("tensor_content")
    request.inputs["x"].ClearField("float_val")
    request.inputs["x"].float_val.append(2)
    assert arrays(prediction.Predict(request))["y"].tolist() == [8, 8, 8]
    request.inputs["x"].ClearField("float_val")
    assert arrays(prediction.Predict(request))["y"].tolist() == [2, 2, 2]


def broken_tensors():
    tensor = tf.make_tensor_proto(np.float32([1, 2]))
    for change in (
        {"dtype": 99},
        {"dtype": 0},
        {"dtype": 20},  # a resource
        {"tensor_content": b"\0" * 7},
        {"tensor_shape": {"dim": [{"size": -1}]}},
        {"tensor_shape": {"dim": [{"size": 2**40}]}},
        {"tensor_shape": {"dim": [{"size": 2**31}, {"size": 2**31}, {"size": 2**31}]}},
        {"tensor_shape": {"unknown_rank": True}},
        {"float_val": [1, 2, 3], "tensor_content": b""},
        {"tensor_shape": {"dim": [{"size": 1}] * 300}},
    ):
        broken = type(tensor)()
        broken.CopyFrom(tensor)
        for name in change:
            broken.ClearField(name)
        broken.MergeFrom(type(tensor)(**change))
        yield broken


@pytest.mark.parametrize("tensor", list(broken_tensors()), ids=range(10))
def test_tensors_that_are_none(prediction, tensor):
    request = predict_request("scale")
    request.inputs["x"].CopyFrom(tensor)
    with pytest.raises(grpc.RpcError) as error:
        prediction.Predict(request)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT and error.value.details()


@pytest.mark.parametrize(
    "request_, code",
    [
        (predict_pb2.PredictRequest(), "INVALID_ARGUMENT"),
        (predict_request(""), "INVALID_ARGUMENT"),
        (predict_request("nope", x=[1.0]), "NOT_FOUND"),
        (predict_request("scale", version=9, x=[1.0]), "NOT_FOUND"),
        (predict_request("scale", label="nope", x=[1.0]), "INVALID_ARGUMENT"),
        (predict_request("scale", "nope", x=[1.0]), "FAILED_PRECONDITION"),
        (predict_request("scale"), "INVALID_ARGUMENT"),
        (predict_request("scale", y=[1.0]), "INVALID_ARGUMENT"),
        (predict_request("scale", x=[1.0], y=[1.0]), "INVALID_ARGUMENT"),
        (predict_request("scale", x=[1]), "INVALID_ARGUMENT"),
        (predict_request("scale", x=["a"]), "INVALID_ARGUMENT"),
        (predict_request("scale", x=[1.0], outputs=["z"]), "INVALID_ARGUMENT"),
        (predict_request("scale", x=[1.0], outputs=["y", "y"]), "INVALID_ARGUMENT"),
        (predict_request("greeting", name=["a"], times=[0]), "INVALID_ARGUMENT"),
        (predict_request("greeting", name=["a"]), "INVALID_ARGUMENT"),
    ],
)
def test_requests_that_are_wrong(prediction, request_, code):
    with pytest.raises(grpc.RpcError) as error:
        prediction.Predict(request_)
    assert error.value.code().name == code and error.value.details()


def examples(request, *rows):
    for row in rows:
        example = request.input.example_list.examples.add()
        for name, value in row.items():
            example.features.feature[name].float_list.value.append(value)
    return request


def test_classify_and_regress(prediction):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "examples"
    [row] = prediction.Classify(examples(request, {"x": 0.25, "y": 0.5})).result.classifications
    assert [(one.label, one.score) for one in row.classes] == [("first", 0.25), ("second", 0.5)]
    request = regression_pb2.RegressionRequest()
    request.model_spec.name, request.model_spec.signature_name = "examples", "sum"
    response = prediction.Regress(examples(request, {"x": 1, "y": 2}, {"x": 3}))
    assert [row.value for row in response.result.regressions] == [3, 3]
    assert response.model_spec.signature_name == "sum" and response.model_spec.version.value == 1


@pytest.mark.parametrize("method", ["Classify", "Regress"])
def test_examples_that_are_wrong(prediction, method):
    cls = {"Classify": classification_pb2.ClassificationRequest, "Regress": regression_pb2.RegressionRequest}[method]
    for model, signature, rows, code in (
        ("examples", "", [], "INVALID_ARGUMENT"),
        ("examples", "nope", [{"x": 1}], "INVALID_ARGUMENT"),
        ("scale", "", [{"x": 1}], "FAILED_PRECONDITION"),
        ("nope", "", [{"x": 1}], "NOT_FOUND"),
    ):
        request = cls()
        request.model_spec.name, request.model_spec.signature_name = model, signature
        with pytest.raises(grpc.RpcError) as error:
            getattr(prediction, method)(examples(request, *rows))
        assert error.value.code().name == code


def test_metadata(prediction):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "greeting"
    response = prediction.GetModelMetadata(request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures) and response.model_spec.version.value == 1
    assert set(signatures.signature_def["serving_default"].inputs) == {"name", "times", "weights"}
    for fields in ([], ["other"]):
        request.metadata_field[:] = fields
        with pytest.raises(grpc.RpcError) as error:
            prediction.GetModelMetadata(request)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_status(management):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "scale"
    rows = management.GetModelStatus(request).model_version_status
    available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert [(row.version, row.state, row.status.error_code) for row in rows] == [(2, available, 0), (1, available, 0)]
    request.model_spec.version.value = 7
    with pytest.raises(grpc.RpcError) as error:
        management.GetModelStatus(request)
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_new_configuration(start_server, models_folder):
    """Models and labels come and go by HandleReloadConfigRequest; one that is wrong changes nothing."""

    def config(*names, **labels):
        request = model_management_pb2.ReloadConfigRequest()
        for name in names:
            added = request.config.model_config_list.config.add(name=name, model_platform="tensorflow")
            added.base_path = str(models_folder / name)
            if name == "scale":
                added.model_version_policy.all.SetInParent()
                added.version_labels.update(labels)
        return request

    with start_server(model_base_path=str(models_folder / "types"), model_name="types") as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            management = model_service_pb2_grpc.ModelServiceStub(channel)
            prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            assert management.HandleReloadConfigRequest(config("types", "scale")).status.error_code == 0
            management.HandleReloadConfigRequest(config("scale", best=1))
            response = prediction.Predict(predict_request("scale", label="best", x=[1.0]))
            assert response.model_spec.version.value == 1
            for wrong, code in (
                (config("scale", best=7), "FAILED_PRECONDITION"),
                (config("scale", "scale"), "INVALID_ARGUMENT"),
                (model_management_pb2.ReloadConfigRequest(), "INVALID_ARGUMENT"),
            ):
                with pytest.raises(grpc.RpcError) as error:
                    management.HandleReloadConfigRequest(wrong)
                assert error.value.code().name == code
            assert prediction.Predict(predict_request("scale", label="best", x=[1.0])).outputs
            with pytest.raises(grpc.RpcError) as error:
                prediction.Predict(predict_request("types", "float32", x=[1.0]))
            assert error.value.code() is grpc.StatusCode.NOT_FOUND
