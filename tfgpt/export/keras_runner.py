"""The Keras model itself behind the runners' interface: what every artifact is compared with."""

from __future__ import annotations

import tensorflow as tf

from tfgpt.generation import GenerationSettings, generate_token_ids
from tfgpt.models.gpt2 import hugging_face
from tfgpt.runtime.runner import Runner


class KerasRunner(Runner):
    """Runs a `GPT2CausalLM`."""

    name = "keras"

    def __init__(self, model):
        super().__init__(hugging_face.to_config(model.backbone))
        self.model = model
        self._logits = tf.function(model, autograph=False, reduce_retracing=True)
        self._step = tf.function(model.call_with_cache, autograph=False, reduce_retracing=True)

    def step(self, token_ids, padding_mask, position_ids, cache):
        logits, cache = self._step(
            tf.constant(token_ids, tf.int32),
            tf.constant(padding_mask, tf.int32),
            [tuple(pair) for pair in zip(cache[0::2], cache[1::2], strict=True)],
            tf.constant(position_ids, tf.int32),
        )
        return logits.numpy(), [tensor for pair in cache for tensor in pair]

    def logits(self, token_ids, padding_mask):
        self.check(token_ids)
        inputs = {"token_ids": tf.constant(token_ids, tf.int32), "padding_mask": tf.constant(padding_mask, tf.int32)}
        return self._logits(inputs).numpy()

    def greedy(self, prompts, max_new_tokens, stop_token_ids=()):
        settings = GenerationSettings(max_new_tokens=max_new_tokens, stop_token_ids=tuple(stop_token_ids))
        return generate_token_ids(self.model, prompts, settings)
