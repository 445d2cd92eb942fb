"""Tokens, limits, encryption, metrics, logs, health, and an orderly end."""

import http.client
import io
import json
import logging
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest

from tests.server.conftest import send
from tests.server.served_models import add_version
from tests.server.test_grpc import predict_request
from tfgpt.errors import UserError
from tfgpt.runtime.serving_client import ServingError, open_client
from tfgpt.server.access import Access
from tfgpt.server.config import ServerConfig
from tfgpt.server.logs import JsonFormatter
from tfgpt.server.serve import Server
from tfgpt.server.status import RequestError

ROOT = pathlib.Path(__file__).resolve().parents[2]
BODY = {"instances": [1.0]}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of localhost that signs itself: its file and its key's."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    files = (folder / "cert.pem", folder / "key.pem")
    subprocess.run([*command.split(), "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)
    return files


@pytest.fixture(scope="module")
def guarded(start_server, models_folder, certificate, tmp_path_factory):
    """A server with tokens, encryption, a small limit, and metrics where monitoring.config puts them."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "tokens").write_text("first-token\nsecond-token\n")
    (folder / "monitoring.config").write_text('prometheus_config { enable: true path: "/monitoring/here" }')
    with start_server(
        host="localhost",
        model_base_path=str(models_folder / "scale"),
        model_name="scale",
        token_file=str(folder / "tokens"),
        monitoring_config_file=str(folder / "monitoring.config"),
        tls_certificate=str(certificate[0]),
        tls_key=str(certificate[1]),
        max_body_bytes=10_000,
    ) as server:
        yield server


def client_of(server, protocol, certificate, **options):
    if protocol == "https":
        address = f"https://localhost:{server.rest_port}/v1/models/scale"
    else:
        address = f"grpcs://localhost:{server.grpc_port}/scale"
    return open_client(address, ca_file=str(certificate[0]), retries=0, **options)


@pytest.mark.parametrize("protocol", ["https", "grpcs"])
def test_encryption_and_tokens(guarded, certificate, protocol):
    for token in ("first-token", "second-token"):
        with client_of(guarded, protocol, certificate, token=token) as client:
            assert client.predict({"x": _floats(1)})["y"].tolist() == [5.0]
            assert client.status()[0]["state"] == "AVAILABLE"
    for token in (None, "third-token", "first-toke", "first-token2", "é".encode().hex()):
        with client_of(guarded, protocol, certificate, token=token) as client:
            with pytest.raises(ServingError) as error:
                client.status()
            assert error.value.code == "UNAUTHENTICATED" and "token" in str(error.value)


def _floats(count):
    return np.ones(count, np.float32)


def test_a_certificate_that_is_not_known_is_refused(guarded):
    for address in (
        f"https://localhost:{guarded.rest_port}/v1/models/scale",
        f"grpcs://localhost:{guarded.grpc_port}/scale",
    ):
        with open_client(address, token="first-token", retries=0, deadline=10) as client:
            with pytest.raises(ServingError):
                client.status()


@pytest.mark.parametrize("protocol", ["https", "grpcs"])
def test_bodies_beyond_the_limit(guarded, certificate, protocol):
    with client_of(guarded, protocol, certificate, token="first-token") as client:
        with pytest.raises(ServingError) as error:
            client.predict({"x": _floats(5000)})
        assert error.value.code == "RESOURCE_EXHAUSTED"
        assert client.predict({"x": _floats(1)})["y"].tolist() == [5.0]


def test_tokens_are_read_line_by_line(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("a\n\n b \n")
    access = Access.from_file(path)
    access.check(b"Bearer a")
    access.check(b"bearer b")
    for wrong in (None, b"", b"a", b"Basic a", b"Bearer", b"Bearer c", b"Bearer a b", b"Bearer \xff"):
        with pytest.raises(RequestError):
            access.check(wrong)
    for text in ("", "\n", "two words\n", "é\n"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="expected"):
            Access.from_file(path)


def test_health_and_metrics(server, ask, models_folder):
    assert ask("GET", "/healthz")[:2] == (200, b"ok\n") and ask("GET", "/readyz")[:2] == (200, b"ready\n")

    def count(text, model, status):
        lines = [line for line in text.splitlines() if line.startswith(":tensorflow:serving:request_count{")]
        return sum(float(line.split()[-1]) for line in lines if f'"{model}"' in line and f'"{status}"' in line)

    before = ask("GET", "/metrics")[1].decode()
    ask("POST", "/v1/models/scale:predict", BODY)
    ask("POST", "/v1/models/scale:predict", {})
    ask("POST", "/v1/models/never-heard-of:predict", BODY)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        call(predict_request("scale", x=[1.0]).SerializeToString())
    after = ask("GET", "/metrics")[1].decode()
    assert count(after, "scale", "OK") == count(before, "scale", "OK") + 2
    assert count(after, "scale", "INVALID_ARGUMENT") == count(before, "scale", "INVALID_ARGUMENT") + 1
    assert "never-heard-of" not in after  # or anyone could fill the memory with names
    assert ':tensorflow:serving:request_latency_bucket{API="Predict",entrypoint="GRPC",le="10.0"' in after
    loads = f':tensorflow:cc:saved_model:load_attempt_count{{model_path="{models_folder}/scale/1",status="success"}}'
    assert loads in after


def test_metrics_where_the_monitoring_config_puts_them(guarded, certificate):
    context = ssl.create_default_context(cafile=certificate[0])
    connection = http.client.HTTPSConnection("localhost", guarded.rest_port, context=context)
    for path, headers, status in (
        ("/monitoring/here", {"Authorization": "Bearer first-token"}, 200),
        ("/metrics", {"Authorization": "Bearer first-token"}, 200),
        ("/monitoring/here", {}, 401),
        ("/healthz", {}, 200),
        ("/readyz", {}, 200),
        ("/v1/models/scale", {}, 401),
    ):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
    connection.close()


def test_request_ids(ask, caplog):
    with caplog.at_level(logging.INFO, "tfgpt.server"):
        assert ask("POST", "/v1/models/scale:predict", BODY, {"X-Request-Id": "abc-1"})[2]["x-request-id"] == "abc-1"
        made = ask("POST", "/v1/models/scale:predict", BODY, {"X-Request-Id": "no good\t"})[2]["x-request-id"]
    assert len(made) == 16 and made.isalnum()
    assert any(record.getMessage() == "answered" and record.status == 200 for record in caplog.records)


def test_logs_are_lines_of_json():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.info("two\nlines %s", "here", extra={"model": "m", "version": 3})
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        logger.exception("failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["message"] == "two\nlines here" and first["version"] == 3 and first["level"] == "info"
    assert "ZeroDivisionError" in second["exception"]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "expected one of them"),
        ({"model_base_path": "{models}/scale", "model_config_file": "{models}/models.config"}, "expected one of them"),
        ({"model_base_path": "{models}/nope"}, "no version in"),
        ({"model_config_file": "{models}/nope.config"}, "cannot be read"),
        ({"model_config_file": "{models}/scale/1/saved_model.pb"}, "expected"),
        ({"model_base_path": "{models}/scale", "tls_key": "x"}, "expected both or neither"),
        ({"model_base_path": "{models}/scale", "batching_parameters_file": "x"}, "expected both or neither"),
        (
            {"model_base_path": "{models}/scale", "tls_key": "{models}/models.config", "tls_certificate": "x"},
            "cannot be used",
        ),
        ({"model_base_path": "{models}/scale", "rest_port": 70000}, "expected 0 to 65535"),
        ({"model_base_path": "{models}/scale", "request_threads": 0}, "expected at least 1"),
        ({"model_base_path": "{models}/scale", "drain_seconds": -1.0}, "expected 0 or more"),
        ({"model_base_path": "{models}/scale", "rest_port": "{port}"}, "expected a free port"),
        ({"model_base_path": "{models}/scale", "grpc_port": "{port}"}, "expected a free port"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(models_folder, fields, message):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        filled = {
            name: taken.getsockname()[1]
            if value == "{port}"
            else value
            if not isinstance(value, str)
            else value.format(models=models_folder)
            for name, value in fields.items()
        }
        with pytest.raises(UserError, match=message) as error:
            Server(ServerConfig(**{"rest_port": 0, "grpc_port": 0, **filled})).start()
        assert "\n" not in str(error.value)


def test_a_body_that_breaks_off_is_answered_to_nobody(server, ask):
    with socket.create_connection(("127.0.0.1", server.rest_port)) as connection:
        connection.sendall(b"POST /v1/models/scale:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert ask("POST", "/v1/models/scale:predict", BODY)[0] == 200


def test_many_at_once(server, ask):
    """Every answer is its own request's."""
    wrong = []

    def client(number):
        for i in range(10):
            value = float(number * 100 + i)
            if ask("POST", "/v1/models/scale:predict", {"instances": [value]})[1] != {"predictions": [3 * value + 2]}:
                wrong.append(value)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def requests_in_flight(host):
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return float(next(line for line in lines if line.startswith("tfgpt_requests_in_flight ")).split()[-1])


def test_sigterm_drains(models_folder):
    """What is being answered is answered, new connections are refused, and the process ends with 0."""
    command = [sys.executable, "-m", "tfgpt.cli", "serve", "--model_config_file", str(models_folder / "models.config")]
    process = subprocess.Popen(
        [*command, "--rest_port", "0", "--grpc_port", "0"], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    lines = (json.loads(line) for line in process.stderr if line.startswith("{"))
    serving = next(line for line in lines if line["message"] == "serving")
    rest, answers = serving["rest"].removeprefix("http://"), []

    def slow_request():
        connection = http.client.HTTPConnection(rest, timeout=60)
        connection.request("POST", "/v1/models/work:predict", json.dumps({"instances": [60_000]}))
        answers.append(connection.getresponse().status)

    def slow_call():
        with grpc.insecure_channel(serving["grpc"]) as channel:
            call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
            request = predict_request("work", rounds=[60_000])
            answers.append(len(call(request.SerializeToString(), timeout=60)) > 0)

    threads = [threading.Thread(target=target) for target in (slow_request, slow_call)]
    for thread in threads:
        thread.start()
    while requests_in_flight(rest) < 2:  # until both are being answered
        assert all(thread.is_alive() for thread in threads)
    process.send_signal(signal.SIGTERM)
    assert next(line for line in lines if line["message"] == "draining")
    for thread in threads:
        thread.join()
    rest_of_log = list(lines)
    assert process.wait(60) == 0 and set(answers) == {200, True}
    assert rest_of_log[-1]["message"] == "stopped"
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection(rest).request("GET", "/healthz")


def test_it_is_not_ready_while_it_drains(start_server, models_folder):
    with start_server(model_base_path=str(models_folder / "scale"), model_name="scale") as server:
        assert send(server, "GET", "/readyz")[0] == 200
        server._stopping.set()
        assert send(server, "GET", "/readyz")[0] == 503 and send(server, "GET", "/healthz")[0] == 200


def test_a_new_version_under_load(start_server, models_folder, tmp_path):
    """Dropped in while clients ask: every request is answered by a version that is whole, in the end by the new one."""
    base_path, stop, seen, wrong = tmp_path / "scale", threading.Event(), set(), []
    base_path.mkdir()
    add_version(models_folder / "scale" / "1", base_path / "1")
    with start_server(model_base_path=str(base_path), model_name="scale", file_system_poll_wait_seconds=0.05) as server:

        def client():
            while not stop.is_set():
                status, content, _ = send(server, "POST", "/v1/models/scale:predict", BODY)
                if status == 200 and content["predictions"] in ([4.0], [5.0]):
                    seen.add(content["predictions"][0])
                else:
                    wrong.append(content)

        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        while 4.0 not in seen and not wrong:
            time.sleep(0.01)
        add_version(models_folder / "scale" / "2", base_path / "2")
        while 5.0 not in seen and not wrong:
            time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong and send(server, "GET", "/v1/models/scale/versions/1")[1]["model_version_status"]
        assert send(server, "POST", "/v1/models/scale:predict", BODY)[1] == {"predictions": [5.0]}
