import contextlib
import http.client
import json

import numpy as np
import pytest

from tests.server.served_models import save_models
from tfgpt.export import export_release
from tfgpt.export.quantization import write_variant
from tfgpt.export.release import write_manifest
from tfgpt.models import GPT2CausalLM
from tfgpt.server.config import ServerConfig
from tfgpt.server.serve import Server
from tfgpt.text import BytePairTokenizer

WORDS = ["some", "wörds", "to", "merge", "again", "and", "naïve", "more", "that", "no", "one", "will", "ever", "read"]
WINDOW = 192


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


@pytest.fixture(scope="session")
def release(tmp_path_factory):
    """A release of a random model whose text is varied, with end of text and cut characters in it."""
    folder = tmp_path_factory.mktemp("openai")
    text = " ".join(np.random.default_rng(0).choice(WORDS, 3000))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    model = GPT2CausalLM.from_preset(
        "gpt2-test", load_weights=False, seed=1, vocabulary_size=290, max_sequence_length=WINDOW, hidden_dim=64
    )
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(variable * (8.0 if variable is model.backbone.token_embedding.embeddings else 16.0))
    model.tokenizer = BytePairTokenizer.train([text], vocabulary_size=290)
    model.save_to_preset(folder / "model")
    export_release(folder / "model", folder / "tiny", name="tiny", text=folder / "text.txt")
    write_variant(folder / "tiny" / "onnx", "int8")
    write_manifest(folder / "tiny", folder / "model")
    return folder / "tiny"


@pytest.fixture(scope="session")
def served(release, start_server):
    config = {"engine": "onnx", "variant": "float32, int8", "model_name": "tiny", "model_base_path": str(release)}
    with start_server(**config, slots=3, max_queue=140) as server:
        yield server


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
