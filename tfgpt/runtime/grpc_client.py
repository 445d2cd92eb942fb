"""TensorFlow Serving over gRPC."""

from __future__ import annotations

import pathlib

import grpc

from tfgpt.errors import UserError
from tfgpt.runtime.serving_client import ServingClient
from tfgpt.runtime.serving_messages import message
from tfgpt.runtime.tensor_messages import from_message, to_message

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
METHODS = {
    "Predict": ("PredictionService", "PredictRequest", "PredictResponse"),
    "Classify": ("PredictionService", "ClassificationRequest", "ClassificationResponse"),
    "Regress": ("PredictionService", "RegressionRequest", "RegressionResponse"),
    "GetModelMetadata": ("PredictionService", "GetModelMetadataRequest", "GetModelMetadataResponse"),
    "GetModelStatus": ("ModelService", "GetModelStatusRequest", "GetModelStatusResponse"),
}


class GrpcClient(ServingClient):
    """A `ServingClient` over gRPC: one channel, which connects at the first call and again whenever it must."""

    def __init__(self, address, **options):
        super().__init__(address, **options)
        if address.secure:
            self._channel = grpc.secure_channel(address.host, self._credentials(), OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address.host, OPTIONS)
        self._calls = {
            method: self._channel.unary_unary(
                f"/tensorflow.serving.{service}/{method}",
                message(f"serving.{request}").SerializeToString,
                message(f"serving.{response}").FromString,
            )
            for method, (service, request, response) in METHODS.items()
        }
        self._metadata = [("authorization", f"Bearer {self.token}")] if self.token else []

    def predict(self, inputs, signature="serving_default", outputs=()):
        request = message("serving.PredictRequest")(model_spec=self._model(signature), output_filter=outputs)
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(to_message(array))
        answer = self._ask("Predict", request)
        return {name: from_message(tensor) for name, tensor in answer.outputs.items()}

    def classify(self, examples, signature="serving_default", context=None):
        request = message("serving.ClassificationRequest")(model_spec=self._model(signature))
        _fill(request.input, examples, context)
        rows = self._ask("Classify", request).result.classifications
        return [[(one.label, one.score) for one in row.classes] for row in rows]

    def regress(self, examples, signature="serving_default", context=None):
        request = message("serving.RegressionRequest")(model_spec=self._model(signature))
        _fill(request.input, examples, context)
        return [row.value for row in self._ask("Regress", request).result.regressions]

    def status(self):
        request = message("serving.GetModelStatusRequest")(model_spec=self._model())
        answer = self._ask("GetModelStatus", request)
        return [
            {
                "version": row.version,
                "state": row.DESCRIPTOR.fields_by_name["state"].enum_type.values_by_number[row.state].name,
                "error_code": _code_name(row.status.error_code),
                "error_message": row.status.error_message,
            }
            for row in answer.model_version_status
        ]

    def metadata(self):
        request = message("serving.GetModelMetadataRequest")(model_spec=self._model(), metadata_field=["signature_def"])
        answer, signatures = self._ask("GetModelMetadata", request), message("serving.SignatureDefMap")()
        answer.metadata["signature_def"].Unpack(signatures)
        return dict(signatures.signature_def)

    def close(self):
        self._channel.close()

    def _credentials(self):
        if self.ca_file is None:
            return grpc.ssl_channel_credentials()
        try:
            return grpc.ssl_channel_credentials(pathlib.Path(self.ca_file).read_bytes())
        except OSError as error:
            raise UserError(f"{self.ca_file} cannot be read, expected certificates: {error.strerror}") from error

    def _model(self, signature=""):
        spec = message("serving.ModelSpec")(name=self.address.model, signature_name=signature)
        if self.address.version is not None:
            spec.version.value = self.address.version
        elif self.address.label is not None:
            spec.version_label = self.address.label
        return spec

    def _ask(self, method, request):
        return self._with_retries(lambda seconds: self._ask_once(method, request, seconds))

    def _ask_once(self, method, request, seconds):
        try:
            return self._calls[method](request, timeout=seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            code, reason = error.code(), error.details()
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise self._too_late() from error
            if code is grpc.StatusCode.UNAVAILABLE and "failed to connect" in (reason or ""):
                raise self._unreachable(reason.rpartition("; last error: ")[2]) from error
            raise self._refused(code.name, reason) from error


def _code_name(number):
    names = {code.value[0]: code.name for code in grpc.StatusCode}
    return names.get(number, str(number))


def _fill(request_input, examples, context):
    if context is None:
        rows = request_input.example_list
    else:
        rows = request_input.example_list_with_context
        _fill_features(rows.context, context)
    for example in examples:
        _fill_features(rows.examples.add(), example)


def _fill_features(example, features):
    for name, values in features.items():
        values = values if isinstance(values, list) else [values]
        feature = example.features.feature[name]
        if values and isinstance(values[0], (str, bytes)):
            feature.bytes_list.value.extend(v.encode("utf-8") if isinstance(v, str) else v for v in values)
        elif values and isinstance(values[0], float):
            feature.float_list.value.extend(values)
        else:
            feature.int64_list.value.extend(int(value) for value in values)
