"""A release behind a server gives what its runner gives: whole texts, streams, logits, over both protocols."""

import io
import json
import threading
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest

from tests.server.conftest import running_server
from tests.server.served_models import add_version
from tfgpt.cli.main import main
from tfgpt.errors import UserError
from tfgpt.generation_settings import GenerationSettings
from tfgpt.runtime import open_runner
from tfgpt.runtime.release_files import read_release_config
from tfgpt.runtime.remote import RemoteRunner, continue_remotely
from tfgpt.runtime.serving_client import ServingError, open_client
from tfgpt.text import load_tokenizer

PROMPTS = [" some words to", " again", "", " no é"]


@pytest.fixture(scope="module")
def server(exported):
    with running_server(
        model_base_path=str(exported.release / "saved_model" / "served"), model_name="served"
    ) as server:
        yield server


@pytest.fixture(scope="module", params=["http", "grpc"])
def address(request, server):
    if request.param == "http":
        return f"http://127.0.0.1:{server.rest_port}/v1/models/served"
    return f"grpc://127.0.0.1:{server.grpc_port}/served"


@pytest.fixture(scope="module")
def runner(exported):
    return open_runner(exported.release, "saved_model")


@pytest.fixture(scope="module")
def tokenizer(exported):
    return load_tokenizer(exported.release)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 8},
        {"max_new_tokens": 9, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3, "seed": 2**40},
    ],
)
def test_texts_are_the_runners(address, runner, tokenizer, settings):
    settings = GenerationSettings(**settings)
    with open_client(address) as client:
        found = continue_remotely(client, PROMPTS, settings)
    assert [one.text for one in found] == runner.continue_texts(tokenizer, PROMPTS, settings)
    assert {one.finish_reason for one in found} <= {"length", "stop"}


def test_streams_are_the_runners(address, exported, runner, tokenizer):
    settings = GenerationSettings(max_new_tokens=40)  # past the window, too
    with open_client(address) as client:
        remote = RemoteRunner(read_release_config(exported.release), client)
        for prompt in PROMPTS[:2]:
            pieces = list(remote.stream_text(tokenizer, prompt, settings))
            assert len(pieces) > 5 and pieces == list(runner.stream_text(tokenizer, prompt, settings))


def test_logits_are_the_runners(address, exported, runner):
    token_ids, mask = np.array([[5, 6, 7], [0, 9, 8]]), np.array([[1, 1, 1], [0, 1, 1]])
    with open_client(address) as client:
        remote = RemoteRunner(read_release_config(exported.release), client)
        found, expected = remote.logits(token_ids, mask), runner.logits(token_ids, mask)
    np.testing.assert_allclose(found[mask == 1], expected[mask == 1], atol=1e-4)


def test_any_signature(address, exported):
    with open_client(address) as client:
        assert set(client.metadata()) >= {"serving_default", "generate_text", "score", "embed", "prefill"}
        assert client.status()[0]["version"] == 1
        found = client.predict({"text": np.array([" some words", " to"])}, "score")
        assert found["token_ids"].dtype == np.int32 and found["log_probability"].dtype == np.float32
        alone = client.predict({"text": np.array([" to"])}, "score", ["log_probability"])
        assert list(alone) == ["log_probability"]
        np.testing.assert_allclose(alone["log_probability"], found["log_probability"][1:], rtol=1e-5)
        with pytest.raises(ServingError, match="expected at most 32, the window"):
            client.predict({"text": np.array([" words" * 60])}, "score")
        with pytest.raises(UserError, match="signature"):
            client.predict({"text": np.array(["a"])}, "nope")


def test_settings_that_a_server_lacks(address):
    with open_client(address) as client:
        for settings in ({"num_beams": 2}, {"stop_token_ids": (3,)}):
            with pytest.raises(UserError, match="expected"):
                continue_remotely(client, ["a"], GenerationSettings(**settings))


def run(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def test_the_command(address, exported, tmp_path):
    options = ("--prompt", *PROMPTS[:2], "--max_new_tokens", 8)
    local = run("generate", exported.release, "--runtime", "saved_model", *options)
    assert run("generate", address, *options, "--json", tmp_path / "out.json") == local and local[0] == 0
    texts = json.loads((tmp_path / "out.json").read_text())["texts"]
    assert "\n".join(texts).splitlines() == local[1].splitlines()  # texts may have lines, too
    stream = ("--prompt", PROMPTS[0], "--max_new_tokens", 8, "--stream")
    local = run("generate", exported.release, "--runtime", "saved_model", *stream)
    assert run("generate", address, *stream, "--tokenizer", exported.release) == local


def test_the_command_says_when_the_window_is_full(address):
    code, out, err = run("generate", address, "--prompt", PROMPTS[0], "--max_new_tokens", 60)
    assert code == 0 and out.startswith(PROMPTS[0])
    assert err.startswith("tfgpt: prompt 0 filled the context window after ") and err.count("\n") == 1


def test_what_the_command_refuses(address, tmp_path):
    (tmp_path / "empty").write_text("\n")
    for options in (
        ("--runtime", "onnx"),
        ("--truncate",),
        ("--stream",),
        ("--num_beams", 2),
        ("--token_file", tmp_path / "empty"),
        ("--token_file", tmp_path / "nothing"),
        ("--deadline", 0),
    ):
        code, out, err = run("generate", address, "--prompt", "a", *options)
        assert (code, out, err.count("\n")) == (2, "", 1) and "expected" in err


@pytest.mark.slow
def test_a_new_version_under_load(exported, tmp_path):
    """Dropped in while clients ask: every request is answered, and rightly; in the end by the new version."""
    base_path = tmp_path / "served"
    source = exported.release / "saved_model" / "served" / "1"
    base_path.mkdir()
    add_version(source, base_path / "1")
    fields = {"model_base_path": str(base_path), "model_name": "served", "file_system_poll_wait_seconds": 0.1}
    settings, stop, wrong, answered = GenerationSettings(max_new_tokens=8), threading.Event(), [], []
    with running_server(**fields) as server:
        addresses = (
            f"http://127.0.0.1:{server.rest_port}/v1/models/served",
            f"grpc://127.0.0.1:{server.grpc_port}/served",
        )
        with open_client(addresses[0]) as client:
            [expected] = continue_remotely(client, PROMPTS[:1], settings)

        def ask(address):
            with open_client(address, retries=0) as client:
                while not stop.is_set():
                    try:
                        answers = continue_remotely(client, PROMPTS[:1], settings)
                    except UserError as error:
                        answers = [error]
                    (answered if answers == [expected] else wrong).append(answers)

        threads = [threading.Thread(target=ask, args=(address,)) for address in addresses * 2]
        for thread in threads:
            thread.start()
        for version in (2, 3):
            before = len(answered)
            add_version(source, base_path / str(version))
            while not (server.models.statuses("served")[0].number == version and _settled(server)):
                stop.wait(0.05)
            while len(answered) < before + 8 and not wrong:
                stop.wait(0.05)
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong and len(answered) >= 16


def _settled(server):
    """Whether the newest version answers, and all others are gone."""
    newest, *others = server.models.statuses("served")
    return newest.state == "AVAILABLE" and all(version.state == "END" for version in others)
