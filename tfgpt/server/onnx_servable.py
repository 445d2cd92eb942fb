"""A release on ONNX Runtime, whose texts are continued in one running batch; starts without TensorFlow."""

from __future__ import annotations

import pathlib
import queue
import time

import numpy as np

from tfgpt.errors import UserError
from tfgpt.generation_settings import GenerationSettings
from tfgpt.json_file import read_json
from tfgpt.runtime.onnx_runtime import open_onnx_runner
from tfgpt.runtime.resident_memory import drop_file_pages
from tfgpt.runtime.runner import encode_prompt, with_stop
from tfgpt.runtime.serving_messages import message
from tfgpt.runtime.tensor_messages import BY_DTYPE
from tfgpt.runtime.variants import data_path
from tfgpt.server.chat_template import read_chat_template
from tfgpt.server.continuous_batching import ContinuousBatcher
from tfgpt.server.status import RequestError, invalid
from tfgpt.server.text_requests import Finished, Request, Token
from tfgpt.text import load_tokenizer

SETTINGS = {  # of a row, as the SavedModel's generate_text has them
    "max_new_tokens": np.int32,
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "repetition_penalty": np.float32,
    "seed": np.int64,
}
OUTPUTS = {
    "text": object,
    "new_text": object,
    "new_text_bytes": object,
    "token_ids": np.int32,
    "finish_reason": object,
    "num_prompt_tokens": np.int32,
    "num_new_tokens": np.int32,
}


class OnnxServable:
    """A release that is being served.

    Args:
        release: its directory.
        variant: of `tfgpt.runtime.variants.VARIANTS`, but not portable, whose cache grows.
        threads: of ONNX Runtime; 0 lets it choose.
        slots, max_queue: as `ContinuousBatcher` takes them.
        name: of the model, in metrics.
        chat_template: a file; by default the release's own.

    Attributes:
        most_prompt_bytes: of a text that can be as short as the window in tokens.
        signatures: name → `SignatureDef`'s message: `serving_default` and `generate_text` as the SavedModel has them.

    Raises:
        UserError: if the release cannot be served.
    """

    def __init__(self, release, variant="float32", threads=0, slots=16, max_queue=256, name="", chat_template=None):
        if variant == "portable":
            raise UserError("variant is portable, expected one whose cache has slots: float32, int8 and the like")
        self.release, self.variant, self.name = pathlib.Path(release), variant, name
        self.created = int(time.time())
        self.tokenizer = load_tokenizer(release)
        self.template = read_chat_template(release, chat_template)
        self.defaults = with_stop(_defaults(self.release), self.tokenizer)
        self.runner = open_onnx_runner(release, variant, threads)
        drop_file_pages(self.release / data_path(variant))
        tokens = self.tokenizer.token_bytes(range(self.tokenizer.vocabulary_size))
        self.most_prompt_bytes = self.runner.window * max(map(len, tokens))
        self.batcher = ContinuousBatcher(self.runner, slots, max_queue, name)
        self.signatures = {
            "serving_default": _signature({"text": object}, {"text": object}),
            "generate_text": _signature({"text": object, **SETTINGS}, OUTPUTS),
        }

    def run(self, signature, inputs, outputs):
        """Runs a signature; arguments and errors as `SavedModelServable.run` has them."""
        for name, array in inputs.items():
            if array.shape != inputs["text"].shape or array.ndim != 1:
                raise invalid(f"{name} has shape {list(array.shape)}, expected a vector, as long as text")
        texts = [_decoded(text, row) for row, text in enumerate(inputs["text"])]
        prompts = [encode_prompt(self.tokenizer, text) for text in texts]
        answers = []
        try:
            for row, prompt in enumerate(prompts):
                answers.append(self._start(row, prompt, inputs))
            rows = [self._row(*one) for one in zip(texts, prompts, answers, strict=True)]
        except RequestError:
            for answer in answers:
                answer.request.cancel()
            raise
        return {name: _column(name, [row[name] for row in rows]) for name in outputs}

    def close(self):
        """Finishes what was submitted, and gives its memory back."""
        self.batcher.close()
        self.batcher = self.runner = None

    def _start(self, row, prompt, inputs):
        settings = {name: inputs[name][row].item() for name in SETTINGS if name in inputs}
        try:
            wanted = GenerationSettings(**{**vars(self.defaults), **settings})
        except UserError as error:
            raise invalid(f"row {row}: {error}") from error
        if not prompt:
            raise invalid(f"row {row}: the prompt has no token, expected one at least")
        room = self.batcher.room(prompt)
        if room < 1:
            raise invalid(f"row {row}: the prompt has {len(prompt)} tokens, expected at most {self.runner.window}")
        count = min(wanted.max_new_tokens, room)
        answer = _Answer(prompt, GenerationSettings(**{**vars(wanted), "max_new_tokens": count}))
        answer.cut = count < wanted.max_new_tokens
        self.batcher.submit(answer.request)
        return answer

    def _row(self, text, prompt, answer):
        tokens, reason = answer.result()
        kept = tokens[:-1] if reason == "stop" else tokens
        new = b"".join(self.tokenizer.token_bytes(kept))
        shown = self.tokenizer.decode(kept).encode()
        return {
            "text": text.encode() + shown,
            "new_text": shown,
            "new_text_bytes": new,
            "token_ids": tokens,
            "finish_reason": b"window" if reason == "length" and answer.cut else reason.encode(),
            "num_prompt_tokens": len(prompt),
            "num_new_tokens": len(tokens),
        }


class _Answer:
    """A request, and its events."""

    def __init__(self, prompt, settings):
        self.events, self.cut = queue.SimpleQueue(), False
        self.request = Request(prompt, settings, self.events.put)

    def result(self):
        tokens = []
        while True:
            event = self.events.get()
            if isinstance(event, Token):
                tokens.append(event.token_id)
            elif isinstance(event, Finished):
                return tokens, event.reason
            elif isinstance(event, RequestError):
                raise event


def _defaults(release):
    path = release / "generation_config.json"
    if not path.is_file():
        return GenerationSettings()
    settings = GenerationSettings.from_hugging_face(read_json(path))
    if settings.num_beams > 1:
        raise UserError(
            f"{path} has num_beams {settings.num_beams}, expected 1: beam search cannot be batched by token"
        )
    return settings


def _signature(inputs, outputs):
    definition = message("SignatureDef")(method_name="tensorflow/serving/predict")
    for described, tensors in ((definition.inputs, inputs), (definition.outputs, outputs)):
        for name, dtype in tensors.items():
            info = described[name]
            info.name, info.dtype = f"{name}:0", BY_DTYPE[np.dtype(dtype)][0]
            for _ in range(2 if name == "token_ids" else 1):
                info.tensor_shape.dim.add(size=-1)
    return definition


def _decoded(text, row):
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(f"row {row}: the text is no UTF-8: {error.reason} at byte {error.start}") from error


def _column(name, values):
    if name == "token_ids":
        array = np.zeros((len(values), max(map(len, values), default=0)), np.int32)
        for row, tokens in zip(array, values, strict=True):
            row[: len(tokens)] = tokens
        return array
    array = np.empty(len(values), np.dtype(OUTPUTS[name]))
    array[:] = values
    return array
