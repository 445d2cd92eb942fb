"""Addresses, deadlines and retries of the clients, against servers that misbehave."""

import contextlib
import http.server
import json
import socket
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest

from tfgpt.errors import UserError
from tfgpt.runtime import serving_client
from tfgpt.runtime.serving_client import Address, ServingError, is_address, open_client
from tfgpt.runtime.serving_messages import message
from tfgpt.runtime.tensor_messages import from_message, to_message


@pytest.mark.parametrize(
    "text, expected",
    [
        ("http://h:1/v1/models/m", Address("http", "h:1", "m")),
        ("HTTPS://h/v1/models/m/", Address("https", "h", "m")),
        ("http://h:1/v1/models/m/versions/12", Address("http", "h:1", "m", 12)),
        ("http://[::1]:1/v1/models/a%20b/labels/x%2Fy", Address("http", "[::1]:1", "a b", None, "x/y")),
        ("grpc://h:1/m", Address("grpc", "h:1", "m")),
        ("grpcs://h:1/m/versions/3", Address("grpcs", "h:1", "m", 3)),
    ],
)
def test_addresses(text, expected):
    assert is_address(text) and Address.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "http://h:1/m",
        "grpc://h:1",
        "grpc://h:1/",
        "grpc://h:1/m/versions/x",
        "grpc:///m",
        "http://h/v1/models/m:predict",
    ],
)
def test_addresses_that_are_none(text):
    with pytest.raises(UserError, match=r"expected http://HOST:PORT/v1/models/NAME or grpc"):
        Address.parse(text)


def test_directories_are_no_addresses():
    assert not any(map(is_address, ("model", "/tmp/http", "hf://user/model", "http", "http:model")))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(serving_client, "FIRST_PAUSE", 0.001)


@contextlib.contextmanager
def http_server(*answers):
    """Gives each answer in turn, (status, body), or calls it with the handler; the last one again and again."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            requests.append((self.path, self.headers, self.client_address))
            answer = answers[min(len(requests), len(answers)) - 1]
            if callable(answer):
                answer(self)
                return
            status, body = answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/models/m", requests
        server.shutdown()


@contextlib.contextmanager
def grpc_server(*answers):
    """GetModelStatus gives each in turn: a code and details to fail with, or "" for success."""
    calls = []

    def status(request, context):
        calls.append((context.time_remaining(), dict(context.invocation_metadata()), context.peer()))
        answer = answers[min(len(calls), len(answers)) - 1]
        if callable(answer):
            answer()
        elif answer:
            context.abort(grpc.StatusCode[answer], "some reason")
        response = message("serving.GetModelStatusResponse")()
        response.model_version_status.add(version=3, state=30)
        return response.SerializeToString()

    server = grpc.server(futures.ThreadPoolExecutor(4))
    handlers = {"GetModelStatus": grpc.unary_unary_rpc_method_handler(status)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("tensorflow.serving.ModelService", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"grpc://127.0.0.1:{port}/m", calls
    server.stop(None)


STATUS = json.dumps({"model_version_status": [{"version": "3", "state": "AVAILABLE", "status": {}}]}).encode()
OK = (200, STATUS)


def test_unavailable_servers_are_asked_again(monkeypatch):
    monkeypatch.setattr("tfgpt.runtime.serving_client.random.uniform", lambda low, high: 0.3)
    with http_server((503, b'{"error": "busy"}'), (503, b"no JSON"), OK) as (address, requests):
        with open_client(address) as client:
            assert client.status()[0]["version"] == 3 and len(requests) == 3
    with grpc_server("UNAVAILABLE", "UNAVAILABLE", "") as (address, calls):
        with open_client(address, token="secret", deadline=3) as client:
            assert client.status()[0]["state"] == "AVAILABLE" and len(calls) == 3
            assert calls[0][1]["authorization"] == "Bearer secret"
            assert calls[2][0] < calls[0][0] < 3.1  # one deadline for all tries; gRPC rounds what is left of it


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 501, 504])
def test_other_failures_are_final(status):
    with http_server((status, b'{"error": "some reason"}')) as (address, requests):
        with open_client(address) as client, pytest.raises(ServingError, match="some reason") as error:
            client.status()
    assert len(requests) == 1 and address.partition("/v1")[0] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED"])
def test_other_failures_are_final_over_grpc(code):
    with grpc_server(code) as (address, calls):
        with open_client(address) as client, pytest.raises(ServingError, match="some reason") as error:
            client.status()
    assert len(calls) == 1 and error.value.code == code


def test_it_gives_up():
    with http_server((503, b'{"error": "busy"}')) as (address, requests):
        with open_client(address, retries=3) as client, pytest.raises(ServingError, match="busy") as error:
            client.status()
    assert len(requests) == 4 and error.value.code == "UNAVAILABLE"


@pytest.mark.parametrize("form", ["http://127.0.0.1:{}/v1/models/m", "grpc://127.0.0.1:{}/m"])
def test_nobody_there(form):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = form.format(free.getsockname()[1])
        with open_client(address, retries=2, deadline=10) as client:
            with pytest.raises(ServingError, match=r"cannot be reached, expected .*[Cc]onnection refused") as error:
                client.status()
    assert error.value.code == "UNAVAILABLE"


def sleep_long(handler=None):
    time.sleep(5)


def trickle(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(50):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


@pytest.mark.parametrize("answer", [sleep_long, trickle])
def test_a_deadline(answer):
    with http_server(answer) as (address, requests), open_client(address, deadline=0.3) as client:
        with pytest.raises(ServingError, match=r"did not answer within 0\.3 s") as error:
            client.status()
    assert error.value.code == "DEADLINE_EXCEEDED" and len(requests) == 1


def test_a_deadline_over_grpc():
    with grpc_server(lambda: time.sleep(1)) as (address, calls), open_client(address, deadline=0.3) as client:
        with pytest.raises(ServingError, match=r"did not answer within 0\.3 s"):
            client.status()
    assert len(calls) == 1


def test_a_connection_is_used_again():
    with http_server(OK) as (address, requests), open_client(address, token="secret") as client:
        for _ in range(5):
            client.status()
    assert len({peer for _, _, peer in requests}) == 1
    assert {headers["Authorization"] for _, headers, _ in requests} == {"Bearer secret"}
    with grpc_server("") as (address, calls), open_client(address) as client:
        for _ in range(5):
            client.status()
    assert len({peer for _, _, peer in calls}) == 1


@pytest.mark.parametrize("body", [b"<html>", b"", b"[", b"\xff"])
def test_answers_that_are_no_json(body):
    with http_server((200, body)) as (address, _), open_client(address) as client:
        with pytest.raises(ServingError, match="expected JSON"):
            client.status()


def test_options_that_are_wrong(tmp_path):
    with pytest.raises(UserError, match="deadline is 0 seconds, expected"):
        open_client("grpc://h:1/m", deadline=0)
    for address in ("grpcs://h:1/m", "https://h:1/v1/models/m"):
        with pytest.raises(UserError, match="does not exist, expected a file of certificates"):
            open_client(address, ca_file=tmp_path / "no.pem")


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.float32(1.5),
        np.zeros((0, 3), np.uint8),
        np.array([[b"a", b"\xff"]], object),
        np.array(["é"]),
        np.array([1 + 2j], np.complex64),
        np.array([1.5, -2], np.float16),
        np.array([True]),
    ],
)
def test_tensors_come_back(array):
    found = from_message(to_message(array))
    expected = np.array(["é".encode()], object) if np.asarray(array).dtype.kind == "U" else array
    assert found.shape == np.shape(expected)
    np.testing.assert_array_equal(found, expected)
