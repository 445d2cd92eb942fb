"""A release on ONNX Runtime, whose texts are continued in one running batch; starts without TensorFlow."""

from __future__ import annotations

import pathlib
import queue

import numpy as np

from tfgpt.errors import UserError
from tfgpt.generation_settings import GenerationSettings
from tfgpt.runtime.onnx_attention import AttentionObserver
from tfgpt.runtime.onnx_runtime import open_onnx_runner
from tfgpt.runtime.onnx_slots import OnnxSlots
from tfgpt.runtime.resident_memory import drop_file_pages
from tfgpt.runtime.runner import encode_prompt
from tfgpt.runtime.serving_messages import message
from tfgpt.runtime.tensor_messages import BY_DTYPE
from tfgpt.runtime.variants import data_path
from tfgpt.server.status import RequestError, invalid
from tfgpt.server.text_model import TextFiles, TextModel
from tfgpt.server.text_requests import Finished, Request, Token

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
        variants: of `tfgpt.runtime.variants.VARIANTS`, but not portable, whose cache grows; the first is what answers
            where none is named.
        threads: of ONNX Runtime; 0 lets it choose.
        slots, max_queue: how many texts grow at the same time, and how many wait, of each variant.
        name: of the model.
        chat_template: a file; by default the release's own.

    Attributes:
        texts: variant → `TextModel`.
        signatures: name → `SignatureDef`'s message: `serving_default` and `generate_text` as the SavedModel has them.

    Raises:
        UserError: if the release cannot be served.
    """

    def __init__(self, release, variants=("float32",), threads=0, slots=16, max_queue=256, name="", chat_template=None):
        if "portable" in variants:
            raise UserError("variant is portable, expected one whose cache has slots: float32, int8 and the like")
        release = pathlib.Path(release)
        files = TextFiles(release, chat_template)
        self.texts = {}
        # All before the first batch has its thread, for one may be missing.
        runners = {variant: open_onnx_runner(release, variant, threads) for variant in variants}
        for variant, runner in runners.items():
            drop_file_pages(release / data_path(variant))
            called = f"{name}:{variant}" if self.texts else name
            observer = AttentionObserver(runner, release, threads)
            self.texts[variant] = TextModel(called, name, variant, files, OnnxSlots(runner, slots), max_queue, observer)
        self.signatures = {
            "serving_default": _signature({"text": object}, {"text": object}),
            "generate_text": _signature({"text": object, **SETTINGS}, OUTPUTS),
        }

    def run(self, signature, inputs, outputs):
        """Runs a signature; arguments and errors as `SavedModelServable.run` has them."""
        for name, array in inputs.items():
            if array.shape != inputs["text"].shape or array.ndim != 1:
                raise invalid(f"{name} has shape {list(array.shape)}, expected a vector, as long as text")
        model = next(iter(self.texts.values()))
        texts = [_decoded(text, row) for row, text in enumerate(inputs["text"])]
        prompts = [encode_prompt(model.tokenizer, text) for text in texts]
        answers = []
        try:
            for row, prompt in enumerate(prompts):
                answers.append(_start(model, row, prompt, inputs))
            rows = [_row(model, *one) for one in zip(texts, prompts, answers, strict=True)]
        except RequestError:
            for answer in answers:
                answer.request.cancel()
            raise
        return {name: _column(name, [row[name] for row in rows]) for name in outputs}

    def close(self):
        """Finishes what was submitted, and gives its memory back."""
        for model in self.texts.values():
            model.close()
        self.texts = {}


def _start(model, row, prompt, inputs):
    settings = {name: inputs[name][row].item() for name in SETTINGS if name in inputs}
    try:
        wanted = GenerationSettings(**{**vars(model.defaults), **settings})
    except UserError as error:
        raise invalid(f"row {row}: {error}") from error
    if not prompt:
        raise invalid(f"row {row}: the prompt has no token, expected one at least")
    room = model.batcher.room(prompt)
    if room < 1:
        raise invalid(f"row {row}: the prompt has {len(prompt)} tokens, expected at most {model.window}")
    count = min(wanted.max_new_tokens, room)
    answer = _Answer(prompt, GenerationSettings(**{**vars(wanted), "max_new_tokens": count}))
    answer.cut = count < wanted.max_new_tokens
    model.batcher.submit(answer.request)
    return answer


def _row(model, text, prompt, answer):
    tokens, reason = answer.result()
    kept = tokens[:-1] if reason == "stop" else tokens
    new = b"".join(model.tokenizer.token_bytes(kept))
    shown = model.tokenizer.decode(kept).encode()
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
