"""The server's description in OpenAPI 3.1, for clients that are generated and for tests that are."""

from __future__ import annotations

from tfgpt.server.openai_requests import (
    BIASES,
    DISCOUNTS,
    MOST_BIASES,
    MOST_CHOICES,
    MOST_LOGPROBS,
    MOST_STOPS,
    PENALTIES,
    TEMPERATURES,
)
from tfgpt.version import __version__

TEXT = {"type": "string"}
TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
TEXTS = {
    "anyOf": [
        TEXT,
        TOKENS,
        {"type": "array", "items": {"anyOf": [TEXT, TOKENS]}, "minItems": 1, "maxItems": MOST_CHOICES},
    ]
}


def describe(models, vocabulary_size, window, observed):
    """The description of a server of these models.

    Args:
        models: their names.
        vocabulary_size, window: the least of theirs.
        observed: the names of those that show their attention.

    Returns:
        A dictionary, to be written as JSON.
    """
    model = {"type": "string", "enum": list(models)}
    paths = {
        "/v1/models": {"get": _operation("the models", None, {"data": {"type": "array"}})},
        "/v1/completions": {"post": _operation("continue texts", _completion(model, window), _choices("text"))},
        "/v1/chat/completions": {"post": _operation("answer a message", _chat(model, window), _choices("message"))},
        "/healthz": {"get": _plain("whether the process lives")},
        "/readyz": {"get": _plain("whether every model answers", 503)},
        "/metrics": {"get": _plain("metrics for Prometheus")},
    }
    if observed:  # they have embeddings, too
        model = {"type": "string", "enum": list(observed)}
        attention = {"tokens": {"type": "array", "items": TEXT}, "attention": {"type": "array"}}
        paths |= {
            "/v1/embeddings": {"post": _operation("texts as vectors", _embeddings(model), {"data": {"type": "array"}})},
            "/v1/attention": {"post": _operation("what a text's end attends to", _observation(model), attention)},
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tfgpt serve",
            "version": __version__,
            "description": "OpenAI's API for texts. TensorFlow Serving's REST API is at /v1/models/NAME.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                "Error": _object(
                    {
                        "error": _object(
                            {
                                "message": TEXT,
                                "type": TEXT,
                                "param": _or_null(TEXT),
                                "code": _or_null(TEXT),
                            },
                            required=("message", "type", "param", "code"),
                        )
                    },
                    required=("error",),
                )
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "x-tfgpt": {"vocabulary_size": vocabulary_size, "window": window},
    }


def _sampling():
    return {
        "temperature": _or_null(_number(*TEMPERATURES)),
        "top_p": _or_null({"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 1}),
        "top_k": _or_null({"type": "integer", "minimum": 0, "maximum": 2**31 - 1, "default": 0}),
        "repetition_penalty": _or_null(_number(*PENALTIES)),
        "presence_penalty": _or_null(_number(*DISCOUNTS, default=0)),
        "frequency_penalty": _or_null(_number(*DISCOUNTS, default=0)),
        "logit_bias": _or_null(
            {
                "type": "object",
                "propertyNames": {"pattern": "^[0-9]{1,9}$"},
                "additionalProperties": _number(*BIASES, default=0),
                "maxProperties": MOST_BIASES,
            }
        ),
        "return_token_ids": _or_null({"type": "boolean", "default": False}),
        "seed": _or_null({"type": "integer", "minimum": -(2**61), "maximum": 2**61}),
        "n": _or_null({"type": "integer", "minimum": 1, "maximum": MOST_CHOICES, "default": 1}),
        "stop": {
            "anyOf": [{"type": "null"}, TEXT, {"type": "array", "items": TEXT, "maxItems": MOST_STOPS}],
        },
        "stream": _or_null({"type": "boolean", "default": False}),
        "stream_options": _or_null({"type": "object", "properties": {"include_usage": _or_null({"type": "boolean"})}}),
        "user": {},
    }


def _completion(model, window):
    return _object(
        {
            "model": model,
            "prompt": TEXTS,
            "max_tokens": _or_null({"type": "integer", "minimum": 0, "maximum": window, "default": 16}),
            "logprobs": _or_null({"type": "integer", "minimum": 0, "maximum": MOST_LOGPROBS}),
            "echo": _or_null({"type": "boolean", "default": False}),
            "best_of": _or_null({"type": "integer", "minimum": 1, "maximum": MOST_CHOICES}),
            **_sampling(),
        },
        required=("model",),
    )


def _chat(model, window):
    part = _object({"type": {"const": "text"}, "text": TEXT}, required=("type", "text"))
    message = {
        "type": "object",
        "properties": {"role": TEXT, "content": {"anyOf": [TEXT, {"type": "array", "items": part}]}},
        "required": ["role", "content"],
    }
    tokens = _or_null({"type": "integer", "minimum": 1, "maximum": window})
    return _object(
        {
            "model": model,
            "messages": {"type": "array", "items": message, "minItems": 1},
            "max_tokens": tokens,
            "max_completion_tokens": tokens,
            "logprobs": _or_null({"type": "boolean"}),
            "top_logprobs": _or_null({"type": "integer", "minimum": 0, "maximum": MOST_LOGPROBS}),
            **_sampling(),
        },
        required=("model", "messages"),
    )


def _observation(model):
    return _object({"model": model, "prompt": {"anyOf": [TEXT, TOKENS]}}, required=("model", "prompt"))


def _embeddings(model):
    encoding = {"type": "string", "enum": ["float", "base64"], "default": "float"}
    return _object({"model": model, "input": TEXTS, "encoding_format": encoding}, required=("model", "input"))


def _choices(what):
    return {
        "choices": {"type": "array", "items": {"type": "object", "required": ["index", "finish_reason", what]}},
        "usage": {"type": "object", "required": ["prompt_tokens", "completion_tokens", "total_tokens"]},
    }


def _operation(summary, request, answer):
    error = {"description": "why not", "content": {"application/json": {"schema": _ERROR}}}
    codes = ("400", "401", "404", "413", "429", "500", "503", "504")
    schema = {"type": "object", "properties": answer, "required": list(answer)}
    operation = {
        "summary": summary,
        "responses": {
            "200": {
                "description": "the answer, in one piece or, with `stream`, in server-sent events",
                "content": {"application/json": {"schema": schema}, "text/event-stream": {}},
            },
            **dict.fromkeys(codes, error),
        },
    }
    if request is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": request}}}
    return operation


def _plain(summary, *codes):
    answer = {"description": summary, "content": {"text/plain": {"schema": TEXT}}}
    return {"summary": summary, "responses": {str(code): answer for code in (200, *codes)}}


def _object(properties, required=()):
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _number(lowest, highest, default=1):
    return {"type": "number", "minimum": lowest, "maximum": highest, "default": default}


def _or_null(schema):
    return {**schema, "type": [schema["type"], "null"]}


_ERROR = {"$ref": "#/components/schemas/Error"}
