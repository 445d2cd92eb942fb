"""A server under load: versions that change, signals, clients that leave, and `serving/load_test.py` itself."""

import contextlib
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from tests.server.conftest import send
from tfgpt.export.onnx_decoder import export_onnx
from tfgpt.export.release import load_for_export, write_manifest
from tfgpt.runtime import open_runner
from tfgpt.text import load_tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPTS = ["some words", "to merge again", "read no more", "ever that one"]


def complete(server, prompt, count=20):
    body = {"model": "tiny", "prompt": prompt, "max_tokens": count, "temperature": 0}
    return send(server, "POST", "/v1/completions", body)


def texts_of(release):
    runner, tokenizer = open_runner(release, "onnx"), load_tokenizer(release)
    tokens = [runner.greedy([tokenizer.encode(prompt)], 20, [tokenizer.end_token_id])[0] for prompt in PROMPTS]
    return [tokenizer.decode([one for one in each if one != tokenizer.end_token_id]) for each in tokens]


@pytest.fixture(scope="module")
def other_release(release, tmp_path_factory):
    """The same model with other weights."""
    from tfgpt import load

    folder = tmp_path_factory.mktemp("other")
    model = load(release.parent / "model")
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(variable[::-1])
    model.save_to_preset(folder / "model")
    shutil.copytree(release, folder / "release", ignore=shutil.ignore_patterns("saved_model", "onnx"))
    export_onnx(load_for_export(folder / "model"), folder / "release" / "onnx", "model")
    write_manifest(folder / "release", folder / "model")
    return folder / "release"


def test_a_new_version_under_load_loses_nothing(release, other_release, start_server, tmp_path):
    base = tmp_path / "tiny"
    shutil.copytree(release, base / "1", ignore=shutil.ignore_patterns("saved_model"))
    before, after = texts_of(release), texts_of(other_release)
    assert all(one != other for one, other in zip(before, after, strict=True))
    config = {"engine": "onnx", "model_name": "tiny", "model_base_path": str(base), "slots": 3}
    answers, stop = [], threading.Event()
    with start_server(**config, file_system_poll_wait_seconds=0.1) as server:

        def client(number):
            while not stop.is_set():
                status, answer, _ = complete(server, PROMPTS[number])
                answers.append((number, status, answer["choices"][0]["text"] if status == 200 else answer))

        threads = [threading.Thread(target=client, args=(number,)) for number in range(len(PROMPTS))]
        for thread in threads:
            thread.start()
        while len(answers) < 20:
            time.sleep(0.01)
        shutil.copytree(other_release, tmp_path / "copied")
        (tmp_path / "copied").rename(base / "2")
        until, seen = time.monotonic() + 60, len(answers)
        while time.monotonic() < until and len(answers) < seen + 400:
            if any(text == after[number] for number, _, text in answers[-4:]):
                break
            time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join()
        assert all(complete(server, prompt)[1]["choices"][0]["text"] == text for prompt, text in zip(PROMPTS, after))
        statuses = send(server, "GET", "/v1/models/tiny")[1]["model_version_status"]
        assert [one["version"] for one in statuses if one["state"] == "AVAILABLE"] == ["2"]
    assert {status for _, status, _ in answers} == {200}
    assert all(text in (before[number], after[number]) for number, _, text in answers)
    assert any(text == before[number] for number, _, text in answers)


@contextlib.contextmanager
def serving(release):
    """`tfgpt serve` as a process, and its address, once it is ready."""
    command = [sys.executable, "-m", "tfgpt.cli", "serve", str(release), "--engine", "onnx", "--rest_port", "0"]
    command += ["--grpc_port", "0", "--slots", "4"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r'"rest": "(http://[\d.]+:\d+)"', line):
                break
        else:
            raise AssertionError("".join(lines))
        drain = threading.Thread(target=process.stderr.read)  # or the process waits for its log to be read
        drain.start()
        yield process, found[1]
        process.wait(60)
        drain.join()
    finally:
        process.kill()
        process.wait()


def stream(url, prompt, count, pieces, begun):
    body = {"model": "tiny", "prompt": prompt, "max_tokens": count, "temperature": 2, "stream": True}
    with (
        contextlib.suppress(urllib.error.URLError, ConnectionError),  # of those who come after the signal
        urllib.request.urlopen(f"{url}/v1/completions", json.dumps(body).encode(), timeout=60) as response,
    ):
        for line in response:
            if line.startswith(b"data: "):
                pieces.append(line[6:].strip())
                begun.set()


def test_sigterm_finishes_texts_and_kill_9_is_survived(release):
    with serving(release) as (process, url):
        streams = [([], threading.Event()) for _ in range(6)]  # more than slots: two of them wait
        threads = [
            threading.Thread(target=stream, args=(url, PROMPTS[i % 4], 120, *streams[i])) for i in range(len(streams))
        ]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 60
        while sum(begun.is_set() for _, begun in streams) < 4 and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        for pieces, _ in streams:
            if pieces:  # who came before the signal
                assert pieces[-1] == b"[DONE]" and json.loads(pieces[-2])["choices"][0]["finish_reason"]
        assert sum(bool(pieces) for pieces, _ in streams) >= 4
    assert process.returncode == 0
    texts = []
    for how in (signal.SIGKILL, signal.SIGTERM):
        with serving(release) as (process, url):
            body = {"model": "tiny", "prompt": PROMPTS[0], "max_tokens": 20, "temperature": 0}
            with urllib.request.urlopen(f"{url}/v1/completions", json.dumps(body).encode(), timeout=60) as response:
                texts.append(json.load(response)["choices"][0]["text"])
            process.send_signal(how)
    assert texts == [texts_of(release)[0]] * 2


def load_test(*arguments):
    command = [sys.executable, str(ROOT / "serving" / "load_test.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_load_test(served, tmp_path):
    url = f"http://127.0.0.1:{served.rest_port}"
    options = ["--clients", 8, "--requests", 60, "--prompts", 10, "--characters", "4-60", "--new_tokens", 12]
    chaos = ["--leave", 0.2, "--wrong", 0.2, "--compare", "--json", tmp_path / "figures.json"]
    done = load_test(url, "tiny", *options, *chaos)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["answered"] + figures["left"] + figures["refused"] == 60
    assert figures["left"] > 3 and figures["refused"] > 3 and figures["different_texts"] == 0
    assert figures["compared"] >= 5 and 12 * figures["answered"] >= figures["new_tokens"] > figures["answered"]
    assert all(name in done.stdout for name in ("time_to_first_token_ms", "p99", "tokens_per_second"))


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["http://192.0.2.1:80", "m"], "expected this machine, or --remote"),
        (["http://127.0.0.1:1", "m", "--clients", "1000"], "clients is 1000, expected 1 to 256"),
        (["http://127.0.0.1:1", "m", "--seconds", "4000"], "expected at most 3600"),
        (["nowhere", "m"], "expected http://HOST:PORT"),
    ],
)
def test_the_load_test_is_bounded(arguments, expected):
    done = load_test(*arguments)
    assert done.returncode == 2 and expected in done.stderr


def test_the_load_test_sees_what_fails(served):
    done = load_test(f"http://127.0.0.1:{served.rest_port}", "no_such_model", "--requests", 3, "--clients", 1)
    assert done.returncode == 1 and "status 404" in done.stdout
