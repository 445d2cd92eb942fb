"""OpenAI's API on the ONNX engine: the official client, and what it cannot say, by hand."""

import base64
import http.client
import json
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import openai
import pytest

from tests.server.conftest import WINDOW, send
from tfgpt.errors import UserError
from tfgpt.generation import GenerationSettings
from tfgpt.runtime import open_runner
from tfgpt.runtime.serving_messages import message
from tfgpt.runtime.tensor_messages import from_message, to_message
from tfgpt.server.chat_template import ChatTemplate, read_chat_template
from tfgpt.server.config import ServerConfig
from tfgpt.text import load_tokenizer

VARIANTS = ("float32", "int8")
TEXTS = ["some words", "to merge again and naïve", "ever", ""]


@pytest.fixture(scope="module")
def client(served):
    url = f"http://127.0.0.1:{served.rest_port}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def runner(release):
    return open_runner(release, "onnx", "float32")


@pytest.fixture(scope="module")
def tokenizer(release):
    return load_tokenizer(release)


def continued(runner, tokenizer, text, **settings):
    """What the release's runner gives behind a text."""
    [whole] = runner.continue_texts(tokenizer, [text], GenerationSettings(**settings))
    return whole[len(text) :]


# === Completions ===


@pytest.mark.parametrize("text", TEXTS)
def test_completions_are_those_of_the_runner(client, runner, tokenizer, text):
    answer = client.completions.create(model="tiny", prompt=text, max_tokens=40, temperature=0)
    expected = continued(runner, tokenizer, text, max_new_tokens=40)
    [choice] = answer.choices
    assert choice.text == expected and choice.finish_reason in ("stop", "length") and choice.logprobs is None
    assert answer.object == "text_completion" and answer.model == "tiny" and answer.id.startswith("cmpl-")
    count = len(tokenizer.encode(text)) or 1
    assert answer.usage.prompt_tokens == count
    assert answer.usage.total_tokens == count + answer.usage.completion_tokens <= count + 40
    pieces = list(client.completions.create(model="tiny", prompt=text, max_tokens=40, temperature=0, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == expected
    assert pieces[-1].choices[0].finish_reason == choice.finish_reason
    assert len(pieces) > 5 and all("\ufffd" not in piece.choices[0].text or "\ufffd" in expected for piece in pieces)


def test_several_prompts_and_choices(client, runner, tokenizer):
    sampled = {"temperature": 0.8, "top_p": 0.9}
    answer = client.completions.create(
        model="tiny", prompt=TEXTS[:3], n=2, seed=7, max_tokens=20, extra_body={"top_k": 50}, **sampled
    )
    expected = [
        continued(runner, tokenizer, text, max_new_tokens=20, top_k=50, seed=7 + 2 * row + number, **sampled)
        for row, text in enumerate(TEXTS[:3])
        for number in range(2)
    ]
    assert [choice.text for choice in answer.choices] == expected and len(set(expected)) == 6
    assert [choice.index for choice in answer.choices] == list(range(6))
    stream = client.completions.create(
        model="tiny", prompt=TEXTS[:3], n=2, seed=7, max_tokens=20, stream=True, extra_body={"top_k": 50}, **sampled
    )
    texts = [""] * 6
    for piece in stream:
        texts[piece.choices[0].index] += piece.choices[0].text
    assert texts == expected


def test_prompts_of_tokens(client, runner, tokenizer):
    tokens = [tokenizer.encode(text) for text in TEXTS[:2]]
    by_text = client.completions.create(model="tiny", prompt=TEXTS[:2], max_tokens=9, temperature=0)
    by_tokens = client.completions.create(model="tiny", prompt=tokens, max_tokens=9, temperature=0)
    one = client.completions.create(model="tiny", prompt=tokens[0], max_tokens=9, temperature=0)
    assert [choice.text for choice in by_tokens.choices] == [choice.text for choice in by_text.choices]
    assert one.choices[0].text == by_text.choices[0].text
    more = {"max_tokens": 60, "temperature": 0}
    repeated = client.completions.create(model="tiny", prompt=tokens[0], **more, extra_body={"repetition_penalty": 1.5})
    expected = continued(runner, tokenizer, TEXTS[0], max_new_tokens=60, repetition_penalty=1.5)
    assert repeated.choices[0].text == expected != continued(runner, tokenizer, TEXTS[0], max_new_tokens=60)


def test_without_a_seed_each_answer_is_another(client):
    texts = {
        client.completions.create(model="tiny", prompt="some", max_tokens=20, temperature=1.5).choices[0].text
        for _ in range(3)
    }
    assert len(texts) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(client, runner, tokenizer, stream):
    expected = continued(runner, tokenizer, TEXTS[1], max_new_tokens=60)
    stop = expected[11:14]
    asked = {
        "model": "tiny",
        "prompt": TEXTS[1],
        "max_tokens": 60,
        "temperature": 0,
        "stop": ["never there", stop],
        "stream": stream,
    }
    answer = client.completions.create(**asked)
    choices = [piece.choices[0] for piece in answer] if stream else [answer.choices[0]]
    assert "".join(choice.text for choice in choices) == expected[: expected.index(stop)]
    assert choices[-1].finish_reason == "stop"
    assert all(stop[0] not in choice.text or expected.index(stop) > 0 for choice in choices)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_and_echo(client, runner, tokenizer, stream):
    tokens = tokenizer.encode(TEXTS[1])
    asked = {
        "model": "tiny",
        "prompt": TEXTS[1],
        "max_tokens": 6,
        "temperature": 0,
        "logprobs": 3,
        "echo": True,
        "stream": stream,
    }
    answer = client.completions.create(**asked)
    choices = [piece.choices[0] for piece in answer] if stream else [answer.choices[0]]
    text = "".join(choice.text for choice in choices)
    assert text == TEXTS[1] + continued(runner, tokenizer, TEXTS[1], max_new_tokens=6)
    described = [choice.logprobs for choice in choices if choice.logprobs is not None]
    logprobs = [value for one in described for value in one.token_logprobs]
    new = runner.greedy([tokens], 6, runner_stops(tokenizer))[0]
    new = [token for token in new if token != tokenizer.end_token_id]
    whole = np.array([tokens + new])
    logits = runner.logits(whole, np.ones_like(whole))[0].astype(np.float64)
    normalized = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [None, *(normalized[i, token] for i, token in enumerate(whole[0, 1:]))]
    assert logprobs[0] is None and logprobs[1:] == pytest.approx(expected[1:], abs=1e-3)
    texts = [token for one in described for token in one.tokens]
    assert texts == tokenizer.token_texts(whole[0])
    top = [one for each in described for one in each.top_logprobs]
    assert top[0] is None and all(len(one) == 3 for one in top[1:])
    assert [max(one, key=one.get) for one in top[len(tokens) :]] == tokenizer.token_texts(new)
    offsets = [offset for one in described for offset in one.text_offset]
    assert offsets == [len("".join(texts[:i])) for i in range(len(texts))]


def runner_stops(tokenizer):
    return () if tokenizer.end_token_id is None else (tokenizer.end_token_id,)


def test_the_prompt_alone_is_scored(client, tokenizer):
    answer = client.completions.create(model="tiny", prompt=TEXTS[1], max_tokens=0, logprobs=0, echo=True)
    [choice] = answer.choices
    assert choice.text == TEXTS[1] and answer.usage.completion_tokens == 0
    assert len(choice.logprobs.token_logprobs) == len(tokenizer.encode(TEXTS[1]))


def test_usage_at_the_end_of_a_stream(client):
    asked = {"model": "tiny", "prompt": TEXTS[0], "max_tokens": 7, "temperature": 0}
    *pieces, last = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage == client.completions.create(**asked).usage
    assert all(piece.usage is None for piece in pieces)


# === Chat, embeddings, models ===

MESSAGES = [
    {"role": "system", "content": "some words"},
    {"role": "user", "content": [{"type": "text", "text": "to merge"}, {"type": "text", "text": " again"}]},
]
RENDERED = "System: some words\nUser: to merge again\nAssistant:"


def test_chat(client, runner, tokenizer):
    expected = continued(runner, tokenizer, RENDERED, max_new_tokens=25)
    asked = {"model": "tiny", "messages": MESSAGES, "max_completion_tokens": 25, "temperature": 0}
    answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    [choice] = answer.choices
    assert choice.message.role == "assistant" and choice.message.content == expected
    content = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode("utf-8", "replace") == expected
    assert all(len(token.top_logprobs) == 2 and token.logprob <= token.top_logprobs[0].logprob for token in content)
    pieces = list(client.chat.completions.create(**asked, stream=True))
    assert pieces[0].choices[0].delta.role == "assistant" and pieces[0].object == "chat.completion.chunk"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected
    assert pieces[-1].choices[0].finish_reason == choice.finish_reason
    # As much as fits, where no limit is given.
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0)
    room = WINDOW + 1 - len(tokenizer.encode(RENDERED))
    assert whole.usage.completion_tokens == room or whole.choices[0].finish_reason == "stop"


def test_embeddings(client, release, tokenizer):
    from tfgpt import load

    model = load(release.parent / "model")
    for encoding in ("float", "base64"):
        answer = client.embeddings.create(model="tiny", input=[*TEXTS[:3], "x" * 150], encoding_format=encoding)
        for text, one in zip([*TEXTS[:3], "x" * 150], answer.data, strict=True):
            vector = one.embedding
            if encoding == "base64":
                vector = np.frombuffer(base64.b64decode(vector), "<f4")
            tokens = np.array([tokenizer.encode(text)])
            hidden = np.asarray(model.backbone({"token_ids": tokens, "padding_mask": np.ones_like(tokens)}))
            np.testing.assert_allclose(vector, hidden[0].mean(0), atol=1e-4)
        assert answer.usage.prompt_tokens == sum(len(tokenizer.encode(text)) for text in [*TEXTS[:3], "x" * 150])


def test_models(client, served):
    model, other = client.models.list().data
    assert model.id == "tiny" and model.object == "model" and abs(model.created - time.time()) < 600
    assert (other.id, other.root, other.variant) == ("tiny:int8", "tiny", "int8") and model.variant == "float32"
    assert send(served, "GET", "/openai/v1/models/tiny")[1]["id"] == "tiny"
    assert send(served, "GET", "/openai/v1/models/tiny:int8")[1]["created"] == other.created
    assert "model_version_status" in send(served, "GET", "/v1/models/tiny")[1]  # TensorFlow Serving's
    assert send(served, "GET", "/openai/v1/models/other")[0] == 404


def test_variants(client, release, tokenizer):
    texts = [continued(open_runner(release, "onnx", v), tokenizer, TEXTS[0], max_new_tokens=60) for v in VARIANTS]
    for name, expected in [("tiny", texts[0]), ("tiny:float32", texts[0]), ("tiny:int8", texts[1])]:
        answer = client.completions.create(model=name, prompt=TEXTS[0], max_tokens=60, temperature=0)
        assert answer.choices[0].text == expected
        assert answer.model == name.removesuffix(":float32")
    with pytest.raises(openai.NotFoundError, match="model tiny has no variant 'int4' here: float32, int8"):
        client.completions.create(model="tiny:int4", prompt="a")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other:int8", prompt="a")
    assert client.models.retrieve("tiny:int8").variant == "int8"


# === What is added to logits ===


def adjusted(runner, tokens, count, presence_penalty=0.0, frequency_penalty=0.0, logit_bias=()):
    """Greedy tokens, each from all the logits anew."""
    tokens, new = list(tokens), []
    for _ in range(count):
        logits = runner.logits(np.array([tokens]), np.ones((1, len(tokens)), int))[0, -1].astype("float64")
        for token in set(new):
            logits[token] -= presence_penalty + frequency_penalty * new.count(token)
        for token, bias in dict(logit_bias).items():
            logits[token] += bias
        new.append(int(logits.argmax()))
        tokens.append(new[-1])
    return new


@pytest.mark.parametrize(
    "adjustment",
    [
        {"presence_penalty": 2.0},
        {"frequency_penalty": 1.5},
        {"frequency_penalty": -2.0},
        {"presence_penalty": -1.0, "frequency_penalty": 0.7, "logit_bias": {"40": -100, "41": 3.5}},
        {"logit_bias": {"97": 100}},
    ],
)
def test_penalties_and_biases(client, runner, tokenizer, adjustment):
    asked = {"model": "tiny", "prompt": TEXTS[1], "max_tokens": 40, "temperature": 0, "n": 1}
    plain = client.completions.create(**asked, extra_body={"return_token_ids": True}).choices[0]
    found = client.completions.create(**asked, **adjustment, extra_body={"return_token_ids": True}).choices[0]
    biases = {int(token): bias for token, bias in adjustment.get("logit_bias", {}).items()}
    expected = adjusted(runner, tokenizer.encode(TEXTS[1]), 40, **adjustment | {"logit_bias": biases})
    assert found.token_ids == expected[: len(found.token_ids)] != plain.token_ids[: len(found.token_ids)]
    assert len(found.token_ids) == 40 or found.finish_reason == "stop"


@pytest.mark.parametrize("echo", [False, True])
def test_token_ids(client, tokenizer, echo):
    asked = {"model": "tiny", "prompt": TEXTS[:2], "max_tokens": 40, "temperature": 0, "echo": echo}
    whole = client.completions.create(**asked, extra_body={"return_token_ids": True})
    found = {index: [] for index in range(2)}
    prompts = {}
    for piece in client.completions.create(**asked, stream=True, extra_body={"return_token_ids": True}):
        [choice] = piece.choices
        found[choice.index] += choice.token_ids
        if hasattr(choice, "prompt_token_ids"):
            assert choice.index not in prompts
            prompts[choice.index] = choice.prompt_token_ids
    for text, choice in zip(TEXTS, whole.choices):
        assert choice.prompt_token_ids == tokenizer.encode(text) == prompts[choice.index]
        assert choice.token_ids == found[choice.index]
        kept = choice.token_ids[:-1] if choice.finish_reason == "stop" else choice.token_ids
        assert choice.text == (text if echo else "") + tokenizer.decode(kept)
    assert not hasattr(client.completions.create(**asked).choices[0], "token_ids")


# === TensorFlow Serving's protocol on the same engine ===


def test_predict_gives_what_the_saved_model_gives(served, release):
    base = release / "saved_model" / "tiny"
    rows = [
        {"text": TEXTS[0], "max_new_tokens": 12, "temperature": 0.0, "seed": 0},
        {"text": TEXTS[1], "max_new_tokens": 30, "temperature": 0.9, "seed": 5},
        {"text": "x " * 90, "max_new_tokens": 500, "temperature": 0.0, "seed": 0},
    ]
    rows = [{"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, **row} for row in rows]
    from tfgpt.server.saved_model_servable import SavedModelServable

    servable = SavedModelServable(next(path for path in base.iterdir() if path.name.isdigit()))
    inputs = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    dtypes = {"max_new_tokens": "int32", "top_k": "int32", "seed": "int64"}
    inputs = {name: array.astype(dtypes.get(name, "float32")) for name, array in inputs.items() if name != "text"}
    inputs["text"] = np.array([row["text"].encode() for row in rows], object)
    outputs = sorted(servable.signatures["generate_text"].outputs)
    expected = servable.run("generate_text", inputs, outputs)
    servable.close()
    request = message("serving.PredictRequest")()
    request.model_spec.name, request.model_spec.signature_name = "tiny", "generate_text"
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(to_message(array))
    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        answer = message("serving.PredictResponse").FromString(call(request.SerializeToString()))
    found = {name: from_message(tensor) for name, tensor in answer.outputs.items()}
    assert sorted(found) == outputs
    for name in outputs:
        assert found[name].dtype == expected[name].dtype and found[name].tolist() == expected[name].tolist(), name
    assert b"window" in found["finish_reason"]
    status, answer, _ = send(served, "POST", "/v1/models/tiny:predict", {"instances": TEXTS[:2]})
    assert status == 200 and all(one.startswith(text) for one, text in zip(answer["predictions"], TEXTS))
    rows[0]["temperature"] = -1
    status, answer, _ = send(
        served, "POST", "/v1/models/tiny:predict", {"signature_name": "generate_text", "instances": rows}
    )
    assert status == 400 and answer == {"error": "row 0: temperature is -1.0, expected a finite number from 0"}
    status, answer, _ = send(served, "POST", "/v1/models/tiny:predict", {"instances": ["x" * 1000]})
    assert status == 400 and "row 0: the prompt has" in answer["error"]


# === What is wrong ===


@pytest.mark.parametrize(
    "path, fields, param, expected",
    [
        ("completions", {"max_tokens": 0}, "max_tokens", "at least 1 without echo"),
        ("completions", {"max_tokens": "4"}, "max_tokens", "an integer"),
        ("completions", {"max_tokens": 300}, None, "300 are to follow, expected at most the window's 192"),
        ("completions", {"temperature": -1}, "temperature", "temperature is -1, expected a number from 0.0 to 100.0"),
        ("completions", {"temperature": "hot"}, "temperature", "a number"),
        ("completions", {"top_p": 0}, "top_p", "top_p is 0, expected above 0"),
        ("completions", {"logprobs": 21}, "logprobs", "0 to 20"),
        ("completions", {"n": 129}, "n", "1 to 128"),
        ("completions", {"n": 65, "prompt": ["a", "b"]}, "n", "at most 128 choices"),
        ("completions", {"best_of": 3}, "best_of", "n, which is 1"),
        ("completions", {"prompt": []}, "prompt", "a string, a list of strings"),
        ("completions", {"prompt": [1, "a"]}, "prompt", "a string, a list of strings"),
        ("completions", {"prompt": [True]}, "prompt", "a string, a list of strings"),
        ("completions", {"prompt": [5000]}, None, "token id 5000 is not in the vocabulary, expected 0 to 289"),
        ("completions", {"prompt": [3, 2**70]}, None, "is not in the vocabulary, expected 0 to 289"),
        ("embeddings", {"input": [-1]}, None, "token id -1 is not in the vocabulary, expected 0 to 289"),
        ("completions", {"prompt": "\ud800"}, "prompt", "surrogate"),
        ("completions", {"presence_penalty": 2.5}, "presence_penalty", "a number from -2.0 to 2.0"),
        ("completions", {"logit_bias": {"a": 1}}, "logit_bias", "a token id, such as"),
        ("completions", {"logit_bias": {"5": 101}}, "logit_bias", "numbers from -100.0 to 100.0"),
        (
            "completions",
            {"logit_bias": {"5000": 1}},
            "logit_bias",
            "token id 5000 is not in the vocabulary, expected 0 to 289",
        ),
        ("completions", {"suffix": "b"}, "suffix", "does not support it"),
        ("completions", {"temprature": 0.5}, "temprature", "no such field"),
        ("completions", {"stop": 3}, "stop", "a string or a list"),
        ("completions", {"stream_options": {}}, "stream_options", "with stream"),
        ("completions", {"stream": 1}, "stream", "true or false"),
        ("completions", {"model": 7}, "model", "a model's name"),
        ("completions", {"seed": 2**63}, "seed", "expected -"),
        ("chat/completions", {"messages": []}, "messages", "a list of one message"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "messages[0].content", "a string, or parts"),
        ("chat/completions", {"messages": [{"content": "a"}]}, "messages[0]", "a role and a content"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
            "parts of type text",
        ),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "top_logprobs": 3}, "top_logprobs", ""),
        ("embeddings", {"input": ""}, "input", "not empty"),
        ("embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format", "float or base64"),
        ("embeddings", {"input": "a", "dimensions": 3}, "dimensions", "does not support it"),
        ("embeddings", {"input": "a" * 400}, None, "expected at most the window's 192"),
    ],
)
def test_wrong_requests(served, path, fields, param, expected):
    document = {"model": "tiny", **({"prompt": "a"} if path == "completions" else {}), **fields}
    status, answer, headers = send(served, "POST", f"/v1/{path}", document)
    assert status == 400 and set(answer["error"]) == {"message", "type", "param", "code"}, answer
    assert answer["error"]["type"] == "invalid_request_error" and answer["error"]["param"] == param
    assert expected in answer["error"]["message"] and "x-request-id" in {name.lower() for name in headers}


def test_other_errors(served, client):
    with pytest.raises(openai.NotFoundError, match="Servable not found"):
        client.completions.create(model="other", prompt="a")
    assert send(served, "GET", "/v1/completions")[0] == 405
    assert send(served, "POST", "/v1/models", {})[0] == 405
    for body in (b"", b"[]", b"{", b"\xff", b"[" * 100_000):
        status, answer, _ = send(served, "POST", "/v1/completions", body)
        assert status == 400 and answer["error"]["message"].startswith("the body is ")
    with pytest.raises(openai.BadRequestError, match="the prompt has .* tokens"):
        client.completions.create(model="tiny", prompt="x" * 1000)
    with pytest.raises(openai.BadRequestError, match="the prompt has 1000000 bytes, expected at most"):
        client.completions.create(model="tiny", prompt="x" * 1_000_000)
    headers = {"X-Request-Timeout": "soon"}
    assert send(served, "POST", "/v1/completions", {"model": "tiny", "prompt": "a"}, headers)[0] == 400


def test_a_deadline(served):
    body = {"model": "tiny", "prompt": "a", "max_tokens": 150, "temperature": 2, "n": 100}
    status, answer, _ = send(served, "POST", "/v1/completions", body, {"X-Request-Timeout": "0.05"})
    assert status == 504 and answer["error"]["type"] == "server_error" and "deadline" in answer["error"]["message"]


def test_more_than_may_wait(served):
    """128 choices are within the queue, as many again are not, and nobody's text is lost."""
    answers = []

    def ask():
        body = {"model": "tiny", "prompt": "a", "max_tokens": 30, "temperature": 2, "n": 128}
        answers.append(send(served, "POST", "/v1/completions", body))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = sorted(status for status, _, _ in answers)
    assert statuses[0] == 200 and statuses[-1] == 429
    for status, answer, headers in answers:
        if status == 429:
            assert answer["error"]["type"] == "rate_limit_error" and 1 <= int(headers["retry-after"]) <= 60
        else:
            assert len(answer["choices"]) == 128


def test_who_leaves_is_not_continued(served):
    batcher = next(iter(served.models._versions["tiny"].values())).servable.texts["float32"].batcher
    for stream in (True, False):
        connection = http.client.HTTPConnection("127.0.0.1", served.rest_port)
        body = {"model": "tiny", "prompt": "a", "max_tokens": 150, "temperature": 2, "n": 120, "stream": stream}
        connection.request("POST", "/v1/completions", json.dumps(body))
        until = time.monotonic() + 30
        while batcher.load == (0, 0) and time.monotonic() < until:
            time.sleep(0.001)
        if stream:
            response = connection.getresponse()
            response.read(100)
            response.close()
        connection.close()
        while batcher.load != (0, 0) and time.monotonic() < until:
            time.sleep(0.01)
        assert batcher.load == (0, 0)
    metrics = send(served, "GET", "/metrics")[1].decode()
    assert 'tfgpt_texts_total{model_name="tiny",reason="cancelled"}' in metrics


def test_metrics(served, client):
    client.completions.create(model="tiny", prompt="some words", max_tokens=5)
    metrics = send(served, "GET", "/metrics")[1].decode()
    for name in (
        'tfgpt_time_to_first_token_seconds_count{model_name="tiny"}',
        'tfgpt_inter_token_seconds_count{model_name="tiny"}',
        'tfgpt_generated_tokens_total{model_name="tiny"}',
        'tfgpt_prompt_tokens_total{model_name="tiny",source="read"}',
        'tfgpt_queue_length{model_name="tiny"} 0.0',
        'tfgpt_step_rows_count{model_name="tiny"}',
        ':tensorflow:serving:request_count{model_name="tiny",status="OK"}',
    ):
        assert name in metrics


def test_tokens_guard_this_api_too(release, start_server, tmp_path):
    (tmp_path / "tokens").write_text("secret\n")
    config = {"engine": "onnx", "model_name": "tiny", "model_base_path": str(release), "variant": "int8"}
    with start_server(**config, token_file=str(tmp_path / "tokens")) as server:
        url = f"http://127.0.0.1:{server.rest_port}/v1"
        with (
            openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError, match="no valid token"),
        ):
            client.models.list()
        with openai.OpenAI(base_url=url, api_key="secret", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["tiny"]


# === Templates ===


def test_templates(tmp_path):
    messages = [{"role": "user", "content": "hi"}]
    assert read_chat_template(tmp_path).render(messages) == "User: hi\nAssistant:"
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "</s>"}, "chat_template": "{{ messages[0].content }}{{ eos_token }}"})
    )
    assert read_chat_template(tmp_path).render(messages) == "hi</s>"
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no user') }}")
    with pytest.raises(Exception, match="the chat template refuses these messages: no user"):
        read_chat_template(tmp_path).render(messages)
    (tmp_path / "own").write_text("{{ messages | length }}{{ ''.__class__.__mro__ }}")
    with pytest.raises(Exception, match="the chat template refuses these messages"):
        read_chat_template(tmp_path, tmp_path / "own").render(messages)
    with pytest.raises(UserError, match="is no chat template, expected one of Jinja"):
        ChatTemplate("{% if %}", "x")
    with pytest.raises(UserError, match="cannot be read, expected a chat template"):
        read_chat_template(tmp_path, tmp_path / "missing")


# === The command ===


def test_it_starts_without_tensorflow(release):
    code = """
import sys, threading
from tfgpt.server.config import ServerConfig
from tfgpt.server.serve import Server
model = {"model_name": "tiny", "model_base_path": sys.argv[1], "variant": "int8"}
config = ServerConfig(engine="onnx", rest_port=0, grpc_port=0, **model)
server = Server(config)
server.start()
import urllib.request, json
body = json.dumps({"model": "tiny", "prompt": "some", "max_tokens": 3}).encode()
url = f"http://127.0.0.1:{server.rest_port}/v1/completions"
print(json.load(urllib.request.urlopen(url, body))["usage"]["completion_tokens"])
server.stop()
print(sorted({"tensorflow", "keras", "tf2onnx", "onnx", "torch"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code, str(release)], capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n")[-2] == "[]" and int(done.stdout.split()[0]) <= 3, done.stderr


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"engine": "torch"}, "engine is 'torch', expected one of saved_model, onnx"),
        ({"variant": "int8"}, "variant is given without engine onnx, expected both or neither"),
        ({"engine": "onnx", "variant": "int8,int8"}, "variant is 'int8,int8', expected each variant once"),
        ({"engine": "onnx", "slots": 0}, "slots is 0, expected at least 1"),
        ({"engine": "onnx", "enable_batching": True}, "enable_batching is given with engine onnx"),
        ({"engine": "onnx", "max_request_seconds": 0.0}, "max_request_seconds is 0.0, expected more than 0"),
    ],
)
def test_wrong_configurations(config, expected):
    with pytest.raises(UserError, match=expected):
        ServerConfig(**config)


@pytest.mark.parametrize("variant, expected", [("int4", "has no ONNX variant 'int4'"), ("portable", "cache has slots")])
def test_a_variant_that_is_not_there(release, start_server, variant, expected):
    config = {"engine": "onnx", "variant": variant, "model_name": "tiny", "model_base_path": str(release)}
    with pytest.raises(UserError, match=expected), start_server(**config):
        pass
