"""OpenAI's API on the SavedModel engine: the official client, and the runner on ONNX Runtime."""

import shutil
import threading

import openai
import pytest

from tests.server.conftest import send
from tests.server.test_openai import TEXTS, continued
from tfgpt.errors import UserError
from tfgpt.runtime import open_runner
from tfgpt.text import load_tokenizer


@pytest.fixture(scope="module")
def runner(release):
    return open_runner(release, "onnx", "float32")


@pytest.fixture(scope="module")
def tokenizer(release):
    return load_tokenizer(release)


@pytest.fixture(scope="module")
def on_tensorflow(release, start_server):
    base = release / "saved_model" / "tiny"
    with start_server(model_name="tiny", model_base_path=str(base), slots=2) as server:
        yield server


def test_a_saved_model_gives_the_runners_texts(on_tensorflow, runner, tokenizer):
    url = f"http://127.0.0.1:{on_tensorflow.rest_port}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        assert [model.id for model in client.models.list().data] == ["tiny"]
        prompts = [*TEXTS[:3], "to merge again and " * 14, "to merge again and " * 14 + "more"]
        answer = client.completions.create(model="tiny", prompt=prompts, max_tokens=15, temperature=0, logprobs=2)
        expected = [continued(runner, tokenizer, prompt, max_new_tokens=15) for prompt in prompts]
        assert [choice.text for choice in answer.choices] == expected
        logprobs = answer.choices[0].logprobs
        assert logprobs.token_logprobs[0] == max(logprobs.top_logprobs[0].values())
        sampled = {"max_tokens": 15, "temperature": 0.8, "seed": 3}
        stream = client.completions.create(model="tiny", prompt=TEXTS[1], stream=True, **sampled)
        text = "".join(piece.choices[0].text for piece in stream)
        assert text == continued(runner, tokenizer, TEXTS[1], max_new_tokens=15, temperature=0.8, seed=3)
        messages = [{"role": "user", "content": "more"}]
        assert client.chat.completions.create(model="tiny", messages=messages, max_tokens=4).usage.completion_tokens
        with pytest.raises(openai.InternalServerError, match="tiny gives no embeddings, expected --engine onnx"):
            client.embeddings.create(model="tiny", input="a")
    assert send(on_tensorflow, "POST", "/v1/attention", {"model": "tiny", "prompt": "a"})[0] == 501
    status, page, _ = send(on_tensorflow, "GET", "/")
    assert status == 200 and b"tfgpt playground" in page
    paths = send(on_tensorflow, "GET", "/openapi.json")[1]["paths"]
    assert "/v1/completions" in paths and "/v1/attention" not in paths
    predicted = send(on_tensorflow, "POST", "/v1/models/tiny:predict", {"instances": ["some"]})
    assert predicted[0] == 200


def test_without_texts_the_paths_are_tensorflow_servings(ask):
    assert ask("GET", "/v1/models")[:2] == (400, {"error": "Missing model name in request."})
    assert ask("POST", "/v1/completions", {"model": "half_plus_two", "prompt": "a"})[0] == 400
    assert ask("GET", "/")[0] == ask("GET", "/openapi.json")[0] == 404


def test_a_release_whose_texts_cannot_be_continued_is_served_by_tensorflow_servings_protocol(
    release, tmp_path, start_server, caplog
):
    copy = tmp_path / "tiny"
    shutil.copytree(release, copy)
    (copy / "generation_config.json").write_text('{"num_beams": 4}')
    config = {"model_name": "tiny", "model_base_path": str(copy / "saved_model" / "tiny")}
    with start_server(**config) as server:
        assert send(server, "GET", "/v1/models")[0] == 400
        assert send(server, "POST", "/v1/models/tiny:predict", {"instances": ["some"]})[0] == 200
    assert "num_beams 4, expected 1" in caplog.text
    config["chat_template"] = str(tmp_path / "none.jinja")
    with pytest.raises(UserError, match=r"none\.jinja"), start_server(**config):
        pass


def test_a_variant_that_is_missing_leaves_no_thread(release, start_server):
    config = {"engine": "onnx", "variant": "int8,float16", "model_name": "gone", "model_base_path": str(release)}
    with pytest.raises(UserError, match="has no ONNX variant 'float16'"), start_server(**config):
        pass
    assert not [thread.name for thread in threading.enumerate() if "gone" in thread.name]
