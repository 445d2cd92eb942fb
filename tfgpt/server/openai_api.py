"""OpenAI's REST API for texts: completions, chat completions, embeddings and the list of models, whole or streamed.

Beyond it: /v1/attention, what each head looks at from the last token of a text.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import math
import re
import time
import urllib.parse

import anyio

from tfgpt.errors import UserError
from tfgpt.generation_settings import GenerationSettings
from tfgpt.runtime.runner import encode_prompt
from tfgpt.runtime.serving_messages import message
from tfgpt.server.metrics import METRICS
from tfgpt.server.openai_answers import ChatShape, Choice, CompletionShape
from tfgpt.server.openai_requests import (
    encode_vector,
    parse_attention,
    parse_chat,
    parse_completion,
    parse_embeddings,
)
from tfgpt.server.openapi import describe
from tfgpt.server.status import RequestError, invalid
from tfgpt.server.streaming import Events, unless_gone
from tfgpt.server.text_requests import Embedding, Finished, Request

APIS = {
    "completions": "Completions",
    "chat/completions": "ChatCompletions",
    "embeddings": "Embeddings",
    "attention": "Attention",
}
PATHS = re.compile(rf"(?:/openai)?/v1/({'|'.join(APIS)}|models(?:/([^/]+))?)/?", re.ASCII)
DESCRIPTION = "/openapi.json"
MOST_OBSERVED = 32  # requests for attention weights, of which one is answered at a time
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


class OpenAiApi:
    """Answers requests by the models that continue texts.

    Args:
        models: `Models`, whose servables have `texts`, variant → `TextModel`.
        max_seconds: that an answer may take.
        always: whether the API is there even while no model is that continues texts.
    """

    def __init__(self, models, max_seconds=600.0, always=False):
        self._models, self._max_seconds, self._always = models, max_seconds, always
        # In one thread of its own: attention takes much memory, which an allocator keeps for each thread that had it.
        self._observer = concurrent.futures.ThreadPoolExecutor(1, "attention")
        self._observing = 0  # requests for attention weights, waiting ones included

    @property
    def has_texts(self):
        """Whether one of the models continues texts; a server without is TensorFlow Serving's alike in all paths."""
        return self._always or any(self._texts(name) for name in self._models.names())

    def takes(self, path):
        """Whether a request is for this API.

        /v1/models/NAME is TensorFlow Serving's; /openai/v1/models/NAME is not, nor is /v1/models/NAME:VARIANT.
        """
        found = PATHS.fullmatch(path)
        if path != DESCRIPTION and not found:
            return False
        if found and found[2] and not path.startswith("/openai/"):
            root, variant = self._split(urllib.parse.unquote(found[2]))
            return variant in {text_model.variant for text_model in self._texts(root)}
        return self.has_texts

    async def answer(self, method, path, headers, body, receive, send):
        """Answers one request.

        Args:
            method, path: of the request.
            headers: name → value, bytes in lower case; X-Request-Timeout is how many seconds the answer may take.
            body: bytes.
            receive, send: of the ASGI application.

        Raises:
            RequestError: before anything was sent.
        """
        if path == DESCRIPTION:
            self._expect(method, "GET")
            await _send_json(send, self._description())
            return
        what, name = PATHS.fullmatch(path).groups()
        if what.startswith("models"):
            self._expect(method, "GET")
            await _send_json(send, self._describe_model(name) if name else self._list_models())
            return
        self._expect(method, "POST")
        deadline = time.monotonic() + _seconds(headers.get(b"x-request-timeout"), self._max_seconds)
        start, model, code = time.monotonic(), "", "OK"
        try:
            with METRICS.in_flight.track_inprogress():
                # In a thread: a body may be large, and others' tokens are not to wait for it.
                if what == "embeddings":
                    model, *asked = await anyio.to_thread.run_sync(parse_embeddings, body)
                    with self._borrowed(model) as text_model:
                        await _send_json(send, await self._embed(text_model, *asked, deadline, receive))
                elif what == "attention":
                    model, prompt = await anyio.to_thread.run_sync(parse_attention, body)
                    with self._borrowed(model) as text_model:
                        await _send_body(send, await self._observe(text_model, prompt, deadline, receive))
                else:
                    parse = parse_chat if what.startswith("chat") else parse_completion
                    asked = await anyio.to_thread.run_sync(parse, body)
                    model = asked.model
                    with self._borrowed(model) as text_model:
                        shape = ChatShape if what.startswith("chat") else CompletionShape
                        await self._generate(text_model, asked, shape, deadline, receive, send)
        except RequestError as error:
            code = error.code
            raise
        finally:
            root, _ = self._split(model)
            known = root if self._models.knows(root) else ""
            METRICS.answered(known, APIS[what], "REST", code, time.monotonic() - start)

    @staticmethod
    def write_error(error):
        """An error's body, as OpenAI's clients read it."""
        status = error.http_status
        return {
            "error": {
                "message": error.message,
                "type": ERROR_TYPES.get(status, "server_error"),
                "param": getattr(error, "param", None),
                "code": "model_not_found" if error.code == "NOT_FOUND" else None,
            }
        }

    @staticmethod
    def _expect(method, expected):
        if method not in (expected, "HEAD" if expected == "GET" else expected):
            raise MethodNotAllowed(f"the method is {method}, expected {expected}")

    def _split(self, name):
        """A model's name and a variant, of MODEL:VARIANT; of MODEL alone the variant is empty."""
        model, colon, variant = name.rpartition(":")
        return (name, "") if self._models.knows(name) or not colon else (model, variant)

    @contextlib.contextmanager
    def _borrowed(self, name):
        """The `TextModel` that a request names, as MODEL, which is its first variant, or as MODEL:VARIANT."""
        root, variant = self._split(name)
        with self._models.borrowed(message("serving.ModelSpec")(name=root)) as version:
            texts = version.servable.texts
            if not texts:
                raise RequestError("NOT_FOUND", f"model {root} continues no texts here, expected one of /v1/models")
            if variant and variant not in texts:
                raise RequestError("NOT_FOUND", f"model {root} has no variant {variant!r} here: {', '.join(texts)}")
            yield texts[variant] if variant else next(iter(texts.values()))

    def _texts(self, name):
        """The `TextModel`s of a model; none if it is gone or has none."""
        try:
            with self._models.borrowed(message("serving.ModelSpec")(name=name)) as version:
                return list(version.servable.texts.values())
        except RequestError:
            return []

    def _description(self):
        texts = [one for name in self._models.names() for one in self._texts(name)]
        if not texts:
            raise RequestError("UNAVAILABLE", "no model is loaded yet")
        sizes = zip(*((one.vocabulary_size, one.window) for one in texts))
        observed = [one.name for one in texts if one.attention is not None]
        return describe([one.name for one in texts], *map(min, sizes), observed)

    def _list_models(self):
        texts = [one for name in self._models.names() for one in self._texts(name)]
        return {"object": "list", "data": list(map(_described, texts))}

    def _describe_model(self, name):
        with self._borrowed(urllib.parse.unquote(name)) as text_model:
            return _described(text_model)

    # === Texts ===

    async def _generate(self, text_model, asked, shape, deadline, receive, send):
        self._check_bias(text_model, asked)
        texts, prompts = await anyio.to_thread.run_sync(self._prompts, text_model, asked.prompts)
        answer = shape(text_model, asked, prompts)
        choices = [Choice(text_model, asked, index, texts[index // asked.num_choices]) for index in range(answer.count)]
        events = Events(asyncio.get_running_loop(), wakes_for_all=asked.stream or bool(asked.stops))
        requests = []
        try:
            for index in range(answer.count):
                prompt = prompts[index // asked.num_choices]
                settings = self._settings(text_model, asked, index, prompt)
                options = {"num_logprobs": asked.num_logprobs, "prompt_only": asked.max_tokens == 0}
                options["prompt_logprobs"] = asked.echo and asked.num_logprobs is not None
                listener = events.listener(index)
                requests.append(Request(prompt, settings, listener, deadline=deadline, **options, **asked.adjustment))
                text_model.batcher.submit(requests[-1])
            async with unless_gone(receive):
                if asked.stream:
                    await self._stream(events, choices, requests, answer, send)
                else:
                    async for index, event in events:
                        if isinstance(event, RequestError):
                            raise event
                        self._take(choices[index], event, requests[index], events)
                    await _send_json(send, answer.whole(choices))
        finally:
            for request in requests:
                request.cancel()

    async def _stream(self, events, choices, requests, answer, send):
        """Sends pieces of texts as server-sent events."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def write(document):
            line = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False)
            await send({"type": "http.response.body", "body": f"data: {line}\n\n".encode(), "more_body": True})

        for choice in choices:
            for piece in answer.beginning(choice):
                await write(piece)
        async for index, event in events:
            if isinstance(event, RequestError):
                await write(self.write_error(event))
                break
            choice = choices[index]
            if choice.reason is not None:
                continue
            self._take(choice, event, requests[index], events)
            for piece in answer.pieces(choice):
                await write(piece)
        else:
            if answer.asked.include_usage:
                await write(answer.usage_piece(choices))
            await write("[DONE]")
        await send({"type": "http.response.body", "body": b""})

    @staticmethod
    def _take(choice, event, request, events):
        if choice.reason is None:
            choice.take(event)
            if choice.reason is not None and not isinstance(event, Finished):  # by a stop string
                request.cancel()
                events.ended(choice.index)

    @staticmethod
    def _prompts(text_model, given):
        """The text and the token ids of each prompt."""
        texts, prompts, size = [], [], text_model.vocabulary_size
        for prompt in given:
            if isinstance(prompt, list) and isinstance(prompt[0], dict):
                prompt = text_model.template.render(prompt)
            if isinstance(prompt, str):
                if len(prompt.encode()) > text_model.most_prompt_bytes:
                    found, most = len(prompt.encode()), text_model.most_prompt_bytes
                    raise invalid(f"the prompt has {found} bytes, expected at most {most}, which the window may hold")
                texts.append(prompt)
                prompts.append(encode_prompt(text_model.tokenizer, prompt))
                if not prompts[-1]:
                    raise invalid("the prompt has no token, expected one at least")
            else:
                for token in prompt:
                    _check_token(token, size)
                texts.append(text_model.tokenizer.decode(prompt))
                prompts.append(prompt)
        return texts, prompts

    @staticmethod
    def _settings(text_model, asked, index, prompt):
        count = text_model.batcher.room(prompt) if asked.max_tokens is None else asked.max_tokens
        return GenerationSettings(
            max_new_tokens=max(1, count),
            stop_token_ids=text_model.defaults.stop_token_ids,
            seed=asked.seed + index,
            **asked.sampling,
        )

    @staticmethod
    def _check_bias(text_model, asked):
        for token in asked.adjustment["logit_bias"]:
            _check_token(token, text_model.vocabulary_size, "logit_bias")

    # === Embeddings ===

    async def _embed(self, text_model, texts, in_base64, deadline, receive):
        if not text_model.gives_hidden_states:
            raise RequestError("UNIMPLEMENTED", f"{text_model.name} gives no embeddings, expected --engine onnx")
        _, prompts = await anyio.to_thread.run_sync(self._prompts, text_model, texts)
        events = Events(asyncio.get_running_loop(), wakes_for_all=False)
        data, requests = [], []
        try:
            for index, prompt in enumerate(prompts):
                notify = events.listener(index)
                requests.append(Request(prompt, text_model.defaults, notify, embedding=True, deadline=deadline))
                text_model.batcher.submit(requests[-1])
            async with unless_gone(receive):
                async for index, event in events:
                    if isinstance(event, RequestError):
                        raise event
                    if isinstance(event, Embedding):
                        vector = encode_vector(event.vector, in_base64)
                        data.append({"object": "embedding", "index": index, "embedding": vector})
        finally:
            for request in requests:
                request.cancel()
        count = sum(map(len, prompts))
        return {
            "object": "list",
            "data": sorted(data, key=lambda one: one["index"]),
            "model": text_model.name,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }

    # === Attention ===

    async def _observe(self, text_model, prompt, deadline, receive):
        """What the last token of a text attends to, by layer and head, as JSON."""
        if text_model.attention is None:
            raise RequestError("UNIMPLEMENTED", f"{text_model.name} shows no attention, expected --engine onnx")
        _, [tokens] = await anyio.to_thread.run_sync(self._prompts, text_model, [prompt])
        if len(tokens) > text_model.window:
            raise invalid(f"the prompt has {len(tokens)} tokens, expected at most the window's {text_model.window}")
        if self._observing >= MOST_OBSERVED:
            error = RequestError("RESOURCE_EXHAUSTED", f"{MOST_OBSERVED} requests are waiting, try again later")
            error.retry_after = 1
            raise error

        def observed():
            if time.monotonic() > deadline:
                raise RequestError("DEADLINE_EXCEEDED", "the request waited longer than its deadline")
            weights = text_model.attention(tokens)
            answer = {
                "object": "attention",
                "model": text_model.name,
                "tokens": text_model.tokenizer.token_texts(tokens),
                "attention": [[[round(w, 5) for w in head] for head in layer] for layer in weights.tolist()],
            }
            return json.dumps(answer, ensure_ascii=False).encode()

        self._observing += 1
        try:
            async with unless_gone(receive):  # who goes while others are before it is taken out of the thread's queue
                return await asyncio.get_running_loop().run_in_executor(self._observer, observed)
        except UserError as error:
            raise RequestError("FAILED_PRECONDITION", str(error)) from error
        finally:
            self._observing -= 1


class MethodNotAllowed(RequestError):
    """A path that is there, asked for in another way."""

    http_status = 405

    def __init__(self, text):
        super().__init__("INVALID_ARGUMENT", text)


def _described(text_model):
    return {
        "id": text_model.name,
        "object": "model",
        "created": text_model.created,
        "owned_by": "tfgpt",
        "root": text_model.root,
        "variant": text_model.variant,
        "attention": text_model.attention is not None,
    }


def _check_token(token, vocabulary_size, param=None):
    if not 0 <= token < vocabulary_size:
        error = invalid(f"token id {token} is not in the vocabulary, expected 0 to {vocabulary_size - 1}")
        error.param = param
        raise error


def _seconds(header, most):
    if header is None:
        return most
    try:
        seconds = float(header)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < math.inf:
        raise invalid(f"X-Request-Timeout is {header.decode('latin-1')!r}, expected seconds above 0")
    return min(seconds, most)


async def _send_json(send, document):
    await _send_body(send, json.dumps(document, ensure_ascii=False).encode())


async def _send_body(send, body):
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
