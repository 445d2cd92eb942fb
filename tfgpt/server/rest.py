"""TensorFlow Serving's REST API, and what a server's keepers ask for: health, readiness, metrics."""

from __future__ import annotations

import json
import logging
import pathlib
import re
import time
import urllib.parse

import anyio
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount

from tfgpt.base_path import HIGHEST
from tfgpt.runtime.serving_messages import message
from tfgpt.server import json_parsing, json_requests, json_responses
from tfgpt.server.logs import REQUEST_ID, request_id
from tfgpt.server.metrics import METRICS
from tfgpt.server.status import RequestError, invalid

LOGGER = logging.getLogger(__name__)

MODEL = r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?"
PREDICTION = re.compile(rf"{MODEL}:(classify|regress|predict)", re.IGNORECASE | re.ASCII)
STATUS = re.compile(rf"/v1/models(?:/?|{MODEL.removeprefix('/v1/models')}(/metadata)?)", re.IGNORECASE | re.ASCII)
API = re.compile(r"/v1/.*", re.IGNORECASE | re.DOTALL)
METRICS_PATH, HEALTH_PATH, READINESS_PATH = "/metrics", "/healthz", "/readyz"
NO_PAGE = b"<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD><BODY>\n<H1>Not Found</H1>\n</BODY></HTML>\n"
PLAYGROUND = pathlib.Path(__file__).parent / "playground.html"
PAGE_HEADERS = {  # nothing from elsewhere, and in nobody's frame
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
BODY_SECONDS = 60  # for a request's body to arrive


class RestApi:
    """Answers requests in JSON.

    Args:
        predictor: a `Predictor`.
        access: an `Access`.
        is_ready: a function that tells whether requests can be answered.
        texts: an `OpenAiApi`.
        monitoring_path: where else than at /metrics the metrics are; None for nowhere.
        max_body_bytes: of a request.
        threads: how many requests are answered at the same time.
    """

    def __init__(self, predictor, access, is_ready, texts, monitoring_path=None, max_body_bytes=2**26, threads=64):
        self._predictor, self._access, self._is_ready, self._texts = predictor, access, is_ready, texts
        self._metrics_paths = {METRICS_PATH, monitoring_path}
        self._max_body_bytes, self._threads, self._limiter = max_body_bytes, threads, None

    def app(self):
        """The ASGI application."""
        return Starlette(routes=[Mount("/", app=self)])

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        start = time.monotonic()
        headers = dict(scope["headers"])
        identity = request_id(headers.get(b"x-request-id", b"").decode("latin-1"))
        REQUEST_ID.set(identity)
        path = scope["raw_path"].partition(b"?")[0].decode("latin-1")
        status = None

        async def named_send(event):
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
                event = {**event, "headers": [*event["headers"], (b"x-request-id", identity.encode("ascii"))]}
            await send(event)

        of_texts = self._texts.takes(path)
        try:
            if of_texts:
                self._access.check(headers.get(b"authorization"))
                body = await self._body(headers, receive)
                await self._texts.answer(scope["method"], path, headers, body, receive, named_send)
            else:
                response = await self._answer(scope["method"], path, headers, receive)
                await response(scope, receive, named_send)
        except RequestError as error:
            if status is None:  # else an answer has begun
                await self._error(error, of_texts)(scope, receive, named_send)
        except Exception:  # of one request, which the server outlives
            LOGGER.exception("a request failed")
            if status is None:
                await self._error(RequestError("INTERNAL", "the server failed"), of_texts)(scope, receive, named_send)
        quiet = path in (*self._metrics_paths, HEALTH_PATH, READINESS_PATH)
        LOGGER.log(
            logging.DEBUG if quiet else logging.INFO,
            "answered",
            extra={
                "method": scope["method"],
                "path": path,
                "status": status,
                "seconds": round(time.monotonic() - start, 6),
                "entrypoint": "REST",
                "client": (scope.get("client") or ("",))[0],
            },
        )

    def _error(self, error, of_texts):
        document = self._texts.write_error(error) if of_texts else None
        content = json.dumps(document) if of_texts else json_responses.write_error(error.message)
        response = _json(content, error.http_status)
        if error.code == "UNAUTHENTICATED":
            response.headers["WWW-Authenticate"] = "Bearer"
        if hasattr(error, "retry_after"):
            response.headers["Retry-After"] = str(error.retry_after)
        return response

    async def _answer(self, method, path, headers, receive):
        if path == HEALTH_PATH:
            return Response(b"ok\n", media_type="text/plain")
        if path == READINESS_PATH:
            ready = self._is_ready()
            return Response(b"ready\n" if ready else b"not ready\n", 200 if ready else 503, media_type="text/plain")
        if path == "/" and method in ("GET", "HEAD") and self._texts.has_texts:
            return Response(PLAYGROUND.read_bytes(), media_type="text/html", headers=PAGE_HEADERS)
        self._access.check(headers.get(b"authorization"))
        if path in self._metrics_paths and method == "GET":
            return Response(METRICS.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
        if not API.fullmatch(path):
            return Response(NO_PAGE, 404, media_type="text/html")
        body = await self._body(headers, receive)
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._threads)
        status, content = await anyio.to_thread.run_sync(self._process, method, path, body, limiter=self._limiter)
        return _json(content, status)

    async def _body(self, headers, receive):
        """The whole body, if it is not too large and does not take too long."""
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            raise self._too_large()
        body = bytearray()
        with anyio.move_on_after(BODY_SECONDS):
            while True:
                event = await receive()
                if event["type"] == "http.disconnect":
                    raise RequestError("CANCELLED", "the client has gone")
                body += event.get("body", b"")
                if len(body) > self._max_body_bytes:
                    raise self._too_large()
                if not event.get("more_body"):
                    return bytes(body)
        raise RequestError("DEADLINE_EXCEEDED", f"the body did not arrive within {BODY_SECONDS} s")

    def _too_large(self):
        return _TooLarge(f"the body is too large, expected at most {self._max_body_bytes} bytes")

    def _process(self, method, path, body):
        """Status and content of the answer to one request; runs in a thread of its own."""
        start = time.monotonic()
        model, api, code = "", "", "OK"
        try:
            with METRICS.in_flight.track_inprogress():
                spec, api = parse_path(method, path)
                model = spec.name
                return 200, self._call(api, spec, body)
        except RequestError as error:
            code = error.code
            return error.http_status, json_responses.write_error(error.message)
        except RecursionError:
            code = "INVALID_ARGUMENT"
            return 400, json_responses.write_error("JSON Parse error: nested too deep")
        except MemoryError:
            code = "RESOURCE_EXHAUSTED"
            return 429, json_responses.write_error("the request needs more memory than there is")
        except Exception as error:
            LOGGER.exception("a request failed")
            code = "INTERNAL"
            return 500, json_responses.write_error(f"{type(error).__name__} in the server")
        finally:
            if api in ("Predict", "Classify", "Regress"):
                known = model if self._predictor.models.knows(model) else ""
                METRICS.answered(known, api, "REST", code, time.monotonic() - start)

    def _call(self, api, spec, body):
        if api == "Status":
            return json_responses.write_status(self._predictor.status(spec))
        if api == "Metadata":
            return json_responses.write_metadata(*self._predictor.metadata(spec))
        document = json_parsing.parse(body)
        spec.signature_name = json_requests.signature_name(document)
        if api == "Predict":
            return self._predict(spec, document)
        examples = json_requests.read_examples(document)
        if api == "Classify":
            return json_responses.write_classifications(self._predictor.classify(spec, examples)[0])
        return json_responses.write_regressions(self._predictor.regress(spec, examples)[0])

    def _predict(self, spec, document):
        in_rows = False

        def read(declared):
            nonlocal in_rows
            inputs, in_rows = json_requests.read_inputs(document, declared)
            return inputs

        outputs, _ = self._predictor.predict(spec, read)
        if not outputs:
            raise invalid("Cannot convert empty tensor map to JSON")
        return json_responses.write_rows(outputs) if in_rows else json_responses.write_columns(outputs)


class _TooLarge(RequestError):
    """A body beyond the limit, which HTTP has a status of its own for."""

    http_status = 413

    def __init__(self, text):
        super().__init__("RESOURCE_EXHAUSTED", text)


def parse_path(method, path):
    """What a request's path asks of which model.

    Returns:
        `serving.ModelSpec`'s message, and Predict, Classify, Regress, Status or Metadata.

    Raises:
        RequestError: INVALID_ARGUMENT.

    Example:
        >>> spec, api = parse_path("POST", "/v1/models/demo/versions/2:predict")
        >>> spec.name, spec.version.value, api
        ('demo', 2, 'Predict')
    """
    found = (
        {"POST": PREDICTION, "GET": STATUS}.get(method, PREDICTION).fullmatch(path)
        if method in ("POST", "GET")
        else None
    )
    if not found:
        raise invalid(f"Malformed request: {method} {path}")
    name, version, label, what = found.groups()
    if name is None:
        raise invalid("Missing model name in request.")
    spec = message("serving.ModelSpec")(name=_unquoted(name))
    if version is not None:
        if int(version) > HIGHEST:
            raise invalid(f"Failed to convert version: {version} to numeric.")
        spec.version.value = int(version)
    elif label is not None:
        spec.version_label = _unquoted(label)
    api = what.capitalize() if method == "POST" else "Metadata" if what else "Status"
    return spec, api


def _unquoted(text):
    return urllib.parse.unquote_to_bytes(text.encode("latin-1")).decode("utf-8", "replace")


def _json(content, status):
    return Response(content, status, headers={"Content-Type": "application/json"})
