"""A release on a server of TensorFlow Serving's protocol: whole texts by `generate_text`, streams by `decode_step`."""

from __future__ import annotations

import dataclasses

import numpy as np

from tfgpt.errors import UserError
from tfgpt.runtime.runner import Runner

# Settings that the signature has, and the dtypes of its inputs.
SETTINGS = {
    "max_new_tokens": np.int32,
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "repetition_penalty": np.float32,
}


@dataclasses.dataclass(frozen=True)
class Continuation:
    """What a server made of a prompt: the prompt with its continuation, and why it ended: stop, length or window."""

    text: str
    finish_reason: str
    num_new_tokens: int


def continue_remotely(client, prompts, settings):
    """Continues texts by a server's `generate_text`, all in one request; tokenizer and window are the server's.

    Args:
        client: a `ServingClient`.
        prompts: strings.
        settings: `GenerationSettings` without beams; the stop tokens are those that the release was exported with.

    Returns:
        A `Continuation` for each.

    Raises:
        UserError: for settings that the signature does not have.
        ServingError: with the server's reason.
    """
    if settings.num_beams > 1:
        raise UserError(f"num_beams is {settings.num_beams}, expected 1: a server's signatures have no beam search")
    if settings.stop_token_ids is not None:
        raise UserError("stop_token_ids are given, expected none: a server stops where its release was exported to")
    rows = len(prompts)
    texts = np.empty(rows, object)
    texts[:] = [prompt.encode("utf-8") for prompt in prompts]
    inputs = {name: np.full(rows, getattr(settings, name), dtype) for name, dtype in SETTINGS.items()}
    inputs |= {"text": texts, "seed": np.array(settings.row_seeds(rows), np.int64)}
    wanted = ("text", "finish_reason", "num_new_tokens")
    found = client.predict(inputs, "generate_text", wanted)
    return [
        Continuation(text.decode("utf-8"), reason.decode("ascii"), int(count))
        for text, reason, count in zip(*(found[name] for name in wanted), strict=True)
    ]


class RemoteRunner(Runner):
    """A `Runner` whose steps a server makes: `prefill` for the prompt, `decode_step` for each token after it.

    The KV cache travels with each step, so this is for watching a text grow, over a network that is near. A server that
    batches cannot join such requests (serving/README.md).

    Args:
        config: the contents of the release's config.json.
        client: a `ServingClient`.
    """

    name = "remote"

    def __init__(self, config, client):
        super().__init__(config)
        self.client = client
        parts = [f"{i}_{part}" for i in range(self.num_layers) for part in ("key", "value")]
        self.past_names = [f"past_key_values_{part}" for part in parts]
        self.present_names = [f"present_{part}" for part in parts]

    def step(self, token_ids, padding_mask, position_ids, cache):
        if cache[0].shape[2] == 0:  # JSON cannot say how wide the rows of an empty array are
            inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
            inputs = {name: np.asarray(array, np.int32) for name, array in inputs.items()}
            outputs = self.client.predict(inputs, "prefill")
            return outputs["logits"][:, None], [outputs[name] for name in self.present_names]
        inputs = {"input_ids": token_ids, "attention_mask": padding_mask, "position_ids": position_ids}
        inputs = {name: np.asarray(array, np.int64) for name, array in inputs.items()}
        outputs = self.client.predict(inputs | dict(zip(self.past_names, cache, strict=True)), "decode_step")
        return outputs["logits"], [outputs[name] for name in self.present_names]

    def logits(self, token_ids, padding_mask):
        self.check(token_ids)
        # As in the SavedModel's runner: the signature knows no padding, tokens go to the front.
        order = np.argsort(np.asarray(padding_mask) == 0, axis=1, kind="stable")
        front = np.take_along_axis(np.asarray(token_ids), order, axis=1).astype(np.int32)
        logits = self.client.predict({"token_ids": front}, "logits")["logits"]
        return np.take_along_axis(logits, np.argsort(order, axis=1)[:, :, None], axis=1)
