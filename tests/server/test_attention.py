"""/v1/attention, against the Keras model."""

import shutil
import threading

import numpy as np
import pytest

from tests.server.conftest import send
from tfgpt.errors import UserError
from tfgpt.layers.observation import observe
from tfgpt.models import GPT2CausalLM
from tfgpt.runtime import open_runner
from tfgpt.runtime.onnx_attention import AttentionObserver
from tfgpt.text import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(release):
    return load_tokenizer(release)


@pytest.fixture(scope="module")
def model(release):
    return GPT2CausalLM.from_preset(release.parent / "model")


def of_keras(model, tokens):
    """(L, H, T) of the last token."""
    with observe() as shown:
        model(np.array([tokens]))
    return np.stack([weights.numpy()[0, :, -1] for weights in shown.values() if len(weights.shape) == 4])


@pytest.mark.parametrize("prompt", ["e", "some words", "to merge again and " * 14])
def test_attention_is_the_keras_models(served, model, tokenizer, prompt):
    tokens = tokenizer.encode(prompt)
    expected = of_keras(model, tokens)
    for asked in (prompt, tokens):
        status, answer, _ = send(served, "POST", "/v1/attention", {"model": "tiny", "prompt": asked})
        assert status == 200 and answer["tokens"] == tokenizer.token_texts(tokens)
        found = np.array(answer["attention"])
        assert found.shape == (model.backbone.num_layers, model.backbone.num_heads, len(tokens))
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    # Quantized, a head moves a share of what it gives.
    found = np.array(send(served, "POST", "/v1/attention", {"model": "tiny:int8", "prompt": tokens})[1]["attention"])
    moved = np.abs(found - expected).sum(-1) / 2
    assert moved.mean() < 0.1 and (moved.max() > 1e-4 or len(tokens) == 1)
    assert len(tokens) > 128 or len(prompt) < 20  # one of them is read in pieces


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"prompt": "a" * 400}, "expected at most the window's 192"),
        ({"prompt": ["a", "b"]}, "expected one text"),
        ({"prompt": ["a"]}, "expected one text"),
        ({"prompt": [7000]}, "token id 7000 is not in the vocabulary"),
        ({"prompt": "a", "temperature": 1}, "no such field"),
    ],
)
def test_wrong_prompts(served, fields, expected):
    status, answer, _ = send(served, "POST", "/v1/attention", {"model": "tiny", **fields})
    assert status == 400 and expected in answer["error"]["message"]


def test_deadlines_and_too_many_requests(served, monkeypatch):
    text_model = next(iter(served.models._versions["tiny"].values())).servable.texts["float32"]
    entered, go_on = threading.Event(), threading.Event()
    observer = text_model.attention

    def waiting(tokens):
        entered.set()
        assert go_on.wait(30)
        return observer(tokens)

    monkeypatch.setattr(text_model, "attention", waiting)
    answers = []

    def ask(**headers):
        answers.append(send(served, "POST", "/v1/attention", {"model": "tiny", "prompt": "a"}, headers))

    threads = [threading.Thread(target=ask)]
    threads[0].start()
    assert entered.wait(30)
    threads += [threading.Thread(target=ask, kwargs={"X-Request-Timeout": "0.01"}) for _ in range(40)]
    for thread in threads[1:]:
        thread.start()
    while len(answers) < 9:  # 32 are let in
        go_on.wait(0.01)
    go_on.set()
    for thread in threads:
        thread.join()
    assert sorted(status for status, _, _ in answers) == [200] + [429] * 9 + [504] * 31
    assert all(headers["retry-after"] == "1" for status, _, headers in answers if status == 429)
    assert send(served, "POST", "/v1/attention", {"model": "tiny", "prompt": "a"})[0] == 200


def test_files_that_change_are_not_read(release, tmp_path, start_server):
    copy = tmp_path / "tiny"
    shutil.copytree(release, copy)
    observer = AttentionObserver(open_runner(copy, "onnx", "int8"), copy)
    assert observer([1, 2, 3]).shape[-1] == 3
    with start_server(engine="onnx", variant="int8", model_name="tiny", model_base_path=str(copy)) as server:
        path = copy / "onnx" / "model_int8.onnx.data"
        path.write_bytes(path.read_bytes())
        status, answer, _ = send(server, "POST", "/v1/attention", {"model": "tiny", "prompt": "a"})
        assert status == 400 and "has changed since it was loaded" in answer["error"]["message"]
        shutil.rmtree(copy / "onnx")
        assert send(server, "POST", "/v1/attention", {"model": "tiny", "prompt": "a"})[0] == 400
        assert send(server, "POST", "/v1/completions", {"model": "tiny", "prompt": "a"})[0] == 200
    with pytest.raises(UserError, match="has changed since it was loaded"):
        observer([1, 2, 3])


def test_memory_is_given_back(release):
    observer = AttentionObserver(open_runner(release, "onnx", "float32"), release)

    def resident():
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * 4096

    for _ in range(3):
        observer([1, 2, 3])
    before = resident()
    for _ in range(30):
        observer([1, 2, 3])
    assert resident() - before < 8e6  # a session of this model takes more than a tenth of it
