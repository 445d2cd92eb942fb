"""Rows of a SavedModel's `decode_step`, with the interface of `tfgpt.runtime.onnx_slots.OnnxSlots`.

A step is one call a row: the signature takes and gives the whole cache, and rows of other lengths would have to be
padded, which changes the last bits of a text. So many texts at once gain nothing here but that none has to wait.
"""

from __future__ import annotations

import numpy as np


class SavedModelSlots:
    """Rows with a cache each.

    Args:
        run: a function of inputs, name → array, and of the names of outputs, that runs `decode_step`.
        config: the release's config.json.
        count: N, how many rows.

    Attributes:
        count: N.
        window, vocabulary_size: the model's.
        gives_hidden_states: whether there is `read_hidden`.
        lengths: (N,) int32, how many tokens each row's cache holds.
    """

    gives_hidden_states = False

    def __init__(self, run, config, count):
        self._run, self.count = run, count
        self.window, self.vocabulary_size = config["n_positions"], config["vocab_size"]
        parts = [f"{i}_{part}" for i in range(config["n_layer"]) for part in ("key", "value")]
        self._past, self._present = [f"past_key_values_{p}" for p in parts], [f"present_{p}" for p in parts]
        empty = np.zeros((1, config["n_head"], 0, config["n_embd"] // config["n_head"]), np.float32)
        self._caches = [[empty] * len(parts) for _ in range(count)]

    @property
    def lengths(self):
        return np.array([cache[0].shape[2] for cache in self._caches], np.int32)

    def read(self, slot, token_ids, all_logits=False):
        """As `OnnxSlots.read`."""
        start = self._caches[slot][0].shape[2]
        end = start + len(token_ids)
        inputs = {
            "input_ids": np.array([token_ids], np.int64),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(start, end, dtype=np.int64)[None],
            **dict(zip(self._past, self._caches[slot], strict=True)),
        }
        outputs = self._run(inputs, ["logits", *self._present])
        self._caches[slot] = [outputs[name] for name in self._present]
        return outputs["logits"][0] if all_logits else outputs["logits"][0, -1:]

    def step(self, tokens):
        """As `OnnxSlots.step`."""
        logits = np.zeros((len(tokens), self.vocabulary_size), np.float32)
        for slot, token in enumerate(tokens):
            if token is not None:
                logits[slot] = self.read(slot, [token])[0]
        return logits

    def copy(self, source, target, length):
        """As `OnnxSlots.copy`."""
        self._caches[target] = [array[:, :, :length] for array in self._caches[source]]

    def truncate(self, slot, length):
        """As `OnnxSlots.truncate`."""
        self.copy(slot, slot, length)
