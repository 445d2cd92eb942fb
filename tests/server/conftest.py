import contextlib
import http.client
import json

import pytest

from tests.server.served_models import save_models
from tfgpt.server.config import ServerConfig
from tfgpt.server.serve import Server


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory):
    """Base paths and a models.config."""
    folder = tmp_path_factory.mktemp("models")
    save_models(folder)
    return folder


@contextlib.contextmanager
def running_server(**config):
    server = Server(ServerConfig(**{"rest_port": 0, "grpc_port": 0, "drain_seconds": 30, **config}))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def start_server():
    """A context manager of a `Server` with these fields of `ServerConfig`."""
    return running_server


@pytest.fixture(scope="session")
def server(models_folder):
    """A server of all the models, in this process."""
    with running_server(model_config_file=str(models_folder / "models.config")) as server:
        yield server


@pytest.fixture(scope="session")
def ask(server):
    return lambda *args, **kwargs: send(server, *args, **kwargs)


def send(server, method, path, body=None, headers=None):
    """Sends a request; gives status, JSON (or the body, where it is none), and headers."""
    connection = http.client.HTTPConnection(server.config.host, server.rest_port, timeout=60)
    try:
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        if isinstance(body, str):
            body = body.encode("utf-8", "surrogateescape")
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        content = answer.read()
        if answer.headers.get_content_type() == "application/json":
            content = json.loads(content.decode("utf-8", "surrogateescape"))
        return answer.status, content, dict(answer.headers)
    finally:
        connection.close()
