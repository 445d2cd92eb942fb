"""What requests of OpenAI's API ask for (https://platform.openai.com/docs/api-reference, read in November 2026)."""

from __future__ import annotations

import base64
import dataclasses
import json
import secrets

from tfgpt.server.status import RequestError, invalid

MOST_CHOICES, MOST_STOPS, MOST_LOGPROBS, MOST_BIASES = 128, 16, 20, 1024
DISCOUNTS, BIASES = (-2.0, 2.0), (-100.0, 100.0)  # presence_penalty and frequency_penalty, and of logit_bias
TEMPERATURES, PENALTIES = (0.0, 100.0), (0.01, 100.0)  # OpenAI's temperatures end at 2
# What may be sent with the value that changes nothing, because many clients do; anything else is refused, not ignored.
WITHOUT_EFFECT = {
    "suffix": ("", None),
    "tools": ([], None),
    "tool_choice": ("none", "auto", None),
    "response_format": ({"type": "text"}, None),
    "modalities": (["text"], None),
    "dimensions": (None,),
    "service_tier": ("auto", "default", None),
}
IGNORED = ("user", "metadata", "store", "parallel_tool_calls", "safety_identifier", "prompt_cache_key")
SAMPLING = (
    *("temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("seed", "n", "stop", "stream", "stream_options", "return_token_ids"),
)
FIELDS = {
    "completions": ("model", "prompt", "max_tokens", "logprobs", "echo", "best_of", *SAMPLING),
    "chat": (
        *("model", "messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"),
        *SAMPLING,
    ),
    "embeddings": ("model", "input", "encoding_format"),
    "attention": ("model", "prompt"),
}


@dataclasses.dataclass(frozen=True)
class GenerationRequest:
    """A request for texts.

    Args:
        model: its name.
        prompts: strings or lists of token ids; of a chat, its messages alone.
        max_tokens: None for as many as fit.
        sampling: arguments of `tfgpt.generation_settings.GenerationSettings`.
        adjustment: of `tfgpt.server.text_requests.Request`: the penalties by presence and frequency, and `logit_bias`.
        seed: of the first choice.
        num_choices: of each prompt.
        stops: strings.
        num_logprobs: as `Request.num_logprobs`.
        echo: whether the prompt is part of the text.
        token_ids: whether the answer is to have them, of the prompt and of the text (`return_token_ids`, as in vLLM).
        stream, include_usage: whether to answer in pieces, and with the counts in a last one.
    """

    model: str
    prompts: list
    max_tokens: int | None
    sampling: dict
    adjustment: dict
    seed: int
    num_choices: int
    stops: tuple[str, ...]
    num_logprobs: int | None
    echo: bool
    token_ids: bool
    stream: bool
    include_usage: bool


def parse_body(body, api):
    """The fields of a request.

    Args:
        body: bytes.
        api: of `FIELDS`.

    Raises:
        RequestError: INVALID_ARGUMENT, with the name of the field as `param`.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise invalid(f"the body is {_shown(document)}, expected an object")
    for name, value in document.items():
        # True equals 1 and 1.0 does, too; what is told apart here is what it means.
        if name in WITHOUT_EFFECT and not any(value == one for one in WITHOUT_EFFECT[name]):
            raise _wrong(name, value, "it to be left out: this server does not support it")
        if name not in (*WITHOUT_EFFECT, *IGNORED, *FIELDS[api]):
            raise _wrong(name, value, "no such field")
    if not isinstance(document.get("model"), str):
        raise _wrong("model", document.get("model"), "a model's name")
    return document


def parse_completion(body):
    """A request for completions: a `GenerationRequest`.

    Raises:
        RequestError: as `parse_body` does.
    """
    document = parse_body(body, "completions")
    prompts = parse_texts(document.get("prompt", ""), "prompt")
    max_tokens = _integer(document, "max_tokens", 16, 0, 2**31 - 1)
    echo = _boolean(document, "echo")
    if max_tokens == 0 and not echo:
        raise _wrong("max_tokens", 0, "at least 1 without echo")
    request = _generation(
        document, prompts, max_tokens, _integer(document, "logprobs", None, 0, MOST_LOGPROBS), echo=echo
    )
    if _integer(document, "best_of", request.num_choices, 1, MOST_CHOICES) != request.num_choices:
        raise _wrong("best_of", document["best_of"], f"n, which is {request.num_choices}")
    return request


def parse_chat(body):
    """A request for the next message of a conversation: a `GenerationRequest` whose one prompt are messages.

    Raises:
        RequestError: as `parse_body` does.
    """
    document = parse_body(body, "chat")
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", messages, "a list of one message at least")
    messages = [_message(number, message) for number, message in enumerate(messages)]
    wanted = "max_completion_tokens" if document.get("max_completion_tokens") is not None else "max_tokens"
    max_tokens = _integer(document, wanted, None, 1, 2**31 - 1)
    num_logprobs = _integer(document, "top_logprobs", None, 0, MOST_LOGPROBS)
    if not _boolean(document, "logprobs"):
        if num_logprobs is not None:
            raise _wrong("top_logprobs", num_logprobs, "logprobs to be true with it")
    else:
        num_logprobs = num_logprobs or 0
    return _generation(document, [messages], max_tokens, num_logprobs)


def parse_embeddings(body):
    """A request for embeddings.

    Returns:
        The model's name, strings or lists of token ids, and whether the vectors are to be base64.

    Raises:
        RequestError: as `parse_body` does.
    """
    document = parse_body(body, "embeddings")
    encoding = document.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise _wrong("encoding_format", encoding, "float or base64")
    texts = parse_texts(document.get("input"), "input")
    if not all(texts):
        raise _wrong("input", document["input"], "texts that are not empty")
    return document["model"], texts, encoding == "base64"


def parse_attention(body):
    """A request for attention weights: the model's name, and a string or a list of token ids.

    Raises:
        RequestError: as `parse_body` does.
    """
    document = parse_body(body, "attention")
    prompt = document.get("prompt")
    if not isinstance(prompt, str) and not _are_tokens(prompt):
        raise _wrong("prompt", prompt, "one text, a string or token ids")
    [prompt] = parse_texts(prompt, "prompt")
    return document["model"], prompt


def parse_texts(value, name):
    """One text or several, each a string or token ids: a list.

    Example:
        >>> parse_texts("a", "prompt"), parse_texts([1, 2], "prompt"), parse_texts([[1], "b"], "prompt")
        (['a'], [[1, 2]], [[1], 'b'])
    """
    expected = "a string, a list of strings, token ids, or a list of those"
    texts = [value] if isinstance(value, str) or _are_tokens(value) else value
    if not isinstance(texts, list) or not texts or len(texts) > MOST_CHOICES:
        raise _wrong(name, value, f"{expected}, {MOST_CHOICES} at most")
    for text in texts:
        if not isinstance(text, str) and not _are_tokens(text):
            raise _wrong(name, text, expected)
        if isinstance(text, str):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise _wrong(name, text, "Unicode text, without half of a surrogate pair") from error
    return texts


def encode_vector(vector, in_base64):
    """A vector of float32 as JSON has it."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii") if in_base64 else vector.tolist()


def _generation(document, prompts, max_tokens, num_logprobs, echo=False):
    sampling = {
        "temperature": _number(document, "temperature", 1.0, *TEMPERATURES),
        "top_p": _number(document, "top_p", 1.0, 0.0, 1.0),
        "top_k": _integer(document, "top_k", 0, 0, 2**31 - 1),
        "repetition_penalty": _number(document, "repetition_penalty", 1.0, *PENALTIES),
    }
    if not sampling["top_p"]:
        raise _wrong("top_p", 0, "above 0")
    seed = _integer(document, "seed", secrets.randbits(32), -(2**61), 2**61)
    stream = _boolean(document, "stream")
    options = document.get("stream_options")
    if options is not None and (not stream or not isinstance(options, dict)):
        raise _wrong("stream_options", options, "an object, with stream")
    count = _integer(document, "n", 1, 1, MOST_CHOICES)
    if count * len(prompts) > MOST_CHOICES:
        raise _wrong("n", count, f"at most {MOST_CHOICES} choices of all prompts")
    return GenerationRequest(
        model=document["model"],
        prompts=prompts,
        max_tokens=max_tokens,
        sampling=sampling,
        adjustment={
            "presence_penalty": _number(document, "presence_penalty", 0.0, *DISCOUNTS),
            "frequency_penalty": _number(document, "frequency_penalty", 0.0, *DISCOUNTS),
            "logit_bias": _biases(document.get("logit_bias")),
        },
        seed=seed,
        num_choices=count,
        stops=_stops(document.get("stop")),
        num_logprobs=num_logprobs,
        echo=echo,
        token_ids=_boolean(document, "return_token_ids"),
        stream=stream,
        include_usage=_boolean(options or {}, "include_usage"),
    )


def _stops(value):
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops) or len(stops) > MOST_STOPS:
        raise _wrong("stop", value, f"a string or a list of {MOST_STOPS} at most")
    return tuple(stop for stop in stops if stop)


def _biases(value):
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MOST_BIASES:
        raise _wrong("logit_bias", value, f"an object of at most {MOST_BIASES} token ids and numbers")
    biases = {}
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise _wrong("logit_bias", token, 'a token id, such as "50256"')
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not BIASES[0] <= bias <= BIASES[1]:
            raise _wrong("logit_bias", {token: bias}, f"numbers from {BIASES[0]} to {BIASES[1]}")
        biases[int(token)] = float(bias)
    return biases


def _message(number, message):
    name = f"messages[{number}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _wrong(name, message, "an object with a role and a content")
    content = message.get("content")
    if isinstance(content, list):  # of parts, of which text alone makes sense here
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise _wrong(f"{name}.content", part, "parts of type text")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise _wrong(f"{name}.content", content, "a string, or parts of type text")
    parse_texts(content, f"{name}.content")
    return {**message, "content": content}


def _are_tokens(value):
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _integer(document, name, default, lowest, highest):
    value = document.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or value % 1:
        raise _wrong(name, value, "an integer")
    if not lowest <= value <= highest:
        raise _wrong(name, value, f"{lowest} to {highest}")
    return int(value)


def _number(document, name, default, lowest, highest):
    value = document.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not lowest <= value <= highest:
        raise _wrong(name, value, f"a number from {lowest} to {highest}")
    return float(value)


def _boolean(document, name):
    value = document.get(name)
    if value not in (None, True, False) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        raise _wrong(name, value, "true or false")
    return bool(value)


def _wrong(name, value, expected):
    error = RequestError("INVALID_ARGUMENT", f"{name} is {_shown(value)}, expected {expected}")
    error.param = name
    return error


def _shown(value):
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 80 else f"{text[:77]}..."
