"""A release's SavedModel, loaded as TensorFlow Serving loads it: signatures, and nothing of Keras."""

from __future__ import annotations

import pathlib

import numpy as np
import tensorflow as tf

from tfgpt.context_window import pad_left
from tfgpt.errors import UserError
from tfgpt.runtime.runner import Runner, read_release_config


class SavedModelRunner(Runner):
    """Runs the newest version under `saved_model/NAME/` of a release directory.

    Args:
        release: the release directory.

    Raises:
        UserError: if there is no SavedModel, or TensorFlow cannot load it.
    """

    name = "saved_model"

    def __init__(self, release):
        super().__init__(read_release_config(release))
        folder = pathlib.Path(release) / "saved_model"
        versions = [path for path in folder.glob("*/*") if path.name.isdecimal()]
        if not versions:
            raise UserError(f"{folder} holds no NAME/VERSION, expected a release exported with the format saved_model")
        self.path = max(versions, key=lambda path: int(path.name))
        try:
            self._module = tf.saved_model.load(str(self.path))  # kept: signatures do not keep their variables alive
        except (OSError, ValueError, IndexError, tf.errors.OpError) as error:  # IndexError: a shortened file
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{self.path} cannot be loaded by TensorFlow: {reason}") from error
        self.signatures = self._module.signatures
        parts = [f"{i}_{part}" for i in range(self.num_layers) for part in ("key", "value")]
        self.past_names = [f"past_key_values_{part}" for part in parts]
        self.present_names = [f"present_{part}" for part in parts]

    def step(self, token_ids, padding_mask, position_ids, cache):
        outputs = self.signatures["decode_step"](
            input_ids=tf.constant(token_ids, tf.int64),
            attention_mask=tf.constant(padding_mask, tf.int64),
            position_ids=tf.constant(position_ids, tf.int64),
            **{name: tf.constant(tensor) for name, tensor in zip(self.past_names, cache, strict=True)},
        )
        return outputs["logits"].numpy(), [outputs[name].numpy() for name in self.present_names]

    def logits(self, token_ids, padding_mask):
        self.check(token_ids)
        outputs = self.signatures["logits"](
            token_ids=tf.constant(token_ids, tf.int32), padding_mask=tf.constant(padding_mask, tf.int32)
        )
        return outputs["logits"].numpy()

    def generate(self, contexts, max_new_tokens, temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0, **rows):
        """Calls the `generate` signature with the same settings for each row.

        Args:
            contexts: token id lists within the window.
            **rows: `seed`, `first_index` or `stop_token_ids`, one value or list a row.

        Returns:
            For each row the list of its new tokens.
        """
        self.check_prompts(contexts)
        token_ids, padding_mask = pad_left(contexts)
        if token_ids.shape[1] + max_new_tokens > self.window + 1:
            raise UserError(
                f"{token_ids.shape[1]} tokens and {max_new_tokens} new ones pass the window of {self.window}, expected "
                "fewer: `greedy` goes on past it"
            )
        count = len(contexts)
        outputs = self.signatures["generate"](
            token_ids=tf.constant(token_ids),
            padding_mask=tf.constant(padding_mask),
            max_new_tokens=tf.fill([count], max_new_tokens),
            temperature=tf.fill([count], np.float32(temperature)),
            top_k=tf.fill([count], top_k),
            top_p=tf.fill([count], np.float32(top_p)),
            repetition_penalty=tf.fill([count], np.float32(repetition_penalty)),
            seed=tf.constant(rows.get("seed", range(count)), tf.int64),
            first_index=tf.constant(rows.get("first_index", [0] * count), tf.int32),
            stop_token_ids=tf.reshape(tf.constant(rows.get("stop_token_ids", []), tf.int32), [count, -1]),
        )
        lengths = outputs["num_new_tokens"].numpy()
        return [tokens[:length].tolist() for tokens, length in zip(outputs["token_ids"].numpy(), lengths, strict=True)]

    def _decode(self, rows, contexts, count, first_index):
        return self.generate(contexts, count)
