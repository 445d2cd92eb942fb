"""TensorFlow Serving's gRPC services: PredictionService and ModelService."""

from __future__ import annotations

import concurrent.futures
import logging
import time

import grpc
from google.protobuf.message import DecodeError

from tfgpt.runtime.grpc_client import METHODS
from tfgpt.runtime.serving_messages import message
from tfgpt.runtime.tensor_messages import from_message, to_message
from tfgpt.server.logs import REQUEST_ID, request_id
from tfgpt.server.metrics import METRICS
from tfgpt.server.status import RequestError, invalid

LOGGER = logging.getLogger(__name__)
MOST_DETAILS = 2000  # bytes
RELOAD = ("ModelService", "ReloadConfigRequest", "ReloadConfigResponse")


class GrpcServices:
    """Answers requests of both services.

    Args:
        predictor: a `Predictor`.
        access: an `Access`.
        max_body_bytes: of a request.
        threads: how many requests are answered at the same time.
    """

    def __init__(self, predictor, access, max_body_bytes=2**26, threads=64):
        self._predictor, self._access = predictor, access
        self._max_body_bytes, self._threads = max_body_bytes, threads

    def server(self):
        """The `grpc.Server`, without a port."""
        options = [
            ("grpc.max_receive_message_length", self._max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a port that another process has is an error
        ]
        pool = concurrent.futures.ThreadPoolExecutor(self._threads, thread_name_prefix="grpc")
        server = grpc.server(pool, options=options)
        services = {}
        for method, (service, request, _) in {**METHODS, "HandleReloadConfigRequest": RELOAD}.items():
            # Bytes come as they are: what cannot be parsed is the client's fault, and gRPC would call it the server's.
            handler = grpc.unary_unary_rpc_method_handler(self._handler(method, message(f"serving.{request}")))
            services.setdefault(service, {})[method] = handler
        for service, handlers in services.items():
            handler = grpc.method_handlers_generic_handler(f"tensorflow.serving.{service}", handlers)
            server.add_generic_rpc_handlers((handler,))
        return server

    def _handler(self, method, request_class):
        answer = getattr(self, f"_{method}")

        def handle(body, context):
            start, code, model, text = time.monotonic(), "OK", "", ""
            metadata = dict(context.invocation_metadata())
            identity = request_id(metadata.get("x-request-id"))
            token = REQUEST_ID.set(identity)
            context.set_trailing_metadata([("x-request-id", identity)])
            try:
                with METRICS.in_flight.track_inprogress():
                    self._access.check(metadata.get("authorization", "").encode("utf-8"))
                    request = _parsed(request_class, body)
                    if "model_spec" in request_class.DESCRIPTOR.fields_by_name:
                        if not request.HasField("model_spec"):
                            raise invalid("Missing ModelSpec")
                        model = request.model_spec.name
                    return answer(request).SerializeToString()
            except RequestError as error:
                code, text = error.code, error.message
            except MemoryError:
                code, text = "RESOURCE_EXHAUSTED", "the request needs more memory than there is"
            except Exception as error:
                LOGGER.exception("a request failed")
                code, text = "INTERNAL", f"{type(error).__name__} in the server"
            finally:
                self._log(method, model, code, time.monotonic() - start, context)
                REQUEST_ID.reset(token)
            # Details travel in a header, which is best kept short and has no place for what is no text.
            context.abort(
                grpc.StatusCode[code], text.encode("utf-8", "replace")[:MOST_DETAILS].decode("utf-8", "ignore")
            )

        return handle

    def _log(self, method, model, code, seconds, context):
        known = model if self._predictor.models.knows(model) else ""
        if method in ("Predict", "Classify", "Regress"):
            METRICS.answered(known, method, "GRPC", code, seconds)
        extra = {"method": method, "status": code, "seconds": round(seconds, 6), "entrypoint": "GRPC", "model": known}
        LOGGER.info("answered", extra=extra | {"client": context.peer()})

    def _Predict(self, request):
        inputs = {name: _array(name, tensor) for name, tensor in request.inputs.items()}
        outputs, spec = self._predictor.predict(request.model_spec, inputs, list(request.output_filter))
        response = message("serving.PredictResponse")(model_spec=spec)
        for name, array in outputs.items():
            response.outputs[name].CopyFrom(to_message(array))
        return response

    def _Classify(self, request):
        result, spec = self._predictor.classify(request.model_spec, request.input)
        return message("serving.ClassificationResponse")(result=result, model_spec=spec)

    def _Regress(self, request):
        result, spec = self._predictor.regress(request.model_spec, request.input)
        return message("serving.RegressionResponse")(result=result, model_spec=spec)

    def _GetModelMetadata(self, request):
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        spec, signatures = self._predictor.metadata(request.model_spec)
        response = message("serving.GetModelMetadataResponse")(model_spec=spec)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def _GetModelStatus(self, request):
        return self._predictor.status(request.model_spec)

    def _HandleReloadConfigRequest(self, request):
        self._predictor.models.configure(request.config)
        return message("serving.ReloadConfigResponse")()


def _parsed(request_class, body):
    try:
        return request_class.FromString(body)
    except DecodeError as error:
        raise invalid(f"the request is no {request_class.DESCRIPTOR.name}") from error


def _array(name, tensor):
    try:
        return from_message(tensor)
    except ValueError as error:
        raise invalid(f"tensor parsing error: {name}: {error}") from error
