"""A fixed set of rows of one ONNX decoder, each with a text of its own, that begin and end at any token.

What a row gives does not depend on the others: every operator computes a row's new token apart, but for products with
weights alone quantized, which take rows in pairs, and the last of an odd number another way. A context is read in
pieces that begin at multiples of `tfgpt.runtime.slots.CHUNK` tokens, whatever of it is known already, because attention
may round differently in others: quantized activations make a difference in the last bit one in the text.
"""

from __future__ import annotations

import numpy as np

from tfgpt.runtime.onnx_runtime import Call
from tfgpt.runtime.resident_memory import zeros_in_small_pages

PAIRED = ("int8_weight_only", "int4")


class OnnxSlots:
    """Rows of cache, as long as the window, that are allocated as they are written.

    Args:
        runner: an `OnnxRunner`.
        count: N, how many rows; one more is kept for pairs.

    Attributes:
        count: N.
        window, vocabulary_size: the runner's.
        gives_hidden_states: whether there is `read_hidden`.
        lengths: (N,) int32, how many tokens each row's cache holds.
    """

    gives_hidden_states = True

    def __init__(self, runner, count):
        self.runner, self.count = runner, count
        self.window, self.vocabulary_size = runner.window, runner.vocabulary_size
        self._paired = runner.precision in PAIRED
        shape = (count + self._paired, runner.num_heads, runner.window, runner.head_dim)
        self._cache = {name: zeros_in_small_pages(shape, runner.cache_dtype) for name in runner.cache_names}
        self._logits = np.zeros((shape[0], 1, runner.vocabulary_size), np.float32)
        self._steps = {}  # number of rows → Call
        self.lengths = np.zeros(shape[0], np.int32)

    def read(self, slot, token_ids, all_logits=False):
        """Appends a piece of a context to a row.

        Args:
            slot: which row.
            token_ids: of at most `CHUNK` tokens (`tfgpt.runtime.slots`).
            all_logits: of all these tokens, not of the last alone.

        Returns:
            Logits (M, V).
        """
        return self._read(slot, token_ids, len(token_ids) if all_logits else 1)

    def read_hidden(self, slot, token_ids):
        """As `read`, but gives the last hidden states (T, D), behind the last normalization."""
        width = len(token_ids)
        hidden = np.zeros((1, width, self.runner.num_heads * self.runner.head_dim), self.runner.cache_dtype)
        self._read(slot, token_ids, width, hidden)
        return hidden[0].astype(np.float32)

    def step(self, tokens):
        """Appends a token to each of the first rows, and gives the logits of what follows.

        Args:
            tokens: one for each of the first n rows; None for one that is to stay as it is.

        Returns:
            Logits (n, V), valid until the next step; those of rows that stay mean nothing.
        """
        rows = len(tokens) + (self._paired and len(tokens) % 2)
        if rows not in self._steps:
            cache = {name: buffer[:rows] for name, buffer in self._cache.items()}
            self._steps[rows] = Call(self.runner, cache, rows, 1, 1, logits=self._logits[:rows])
        call = self._steps[rows]
        # What a row that stays gets written behind its end, its next token overwrites.
        call.arrays["input_ids"][: len(tokens), 0] = [token or 0 for token in tokens]
        lengths = np.minimum(self.lengths[:rows], self.runner.window - 1)
        logits = call.run(lengths)[: len(tokens), 0]
        self.lengths[: len(tokens)] += np.array([token is not None for token in tokens], np.int32)
        return logits

    def _read(self, slot, token_ids, num_logits, hidden=None):
        width = len(token_ids)
        rows = {name: buffer[slot : slot + 1] for name, buffer in self._cache.items()}
        call = Call(self.runner, rows, 1, width, num_logits, hidden=hidden)
        call.arrays["input_ids"][0] = token_ids
        if num_logits == 1:
            call.arrays["logit_indices"][:] = width - 1
        logits = call.run(self.lengths[slot : slot + 1], width)[0]
        self.lengths[slot] += width
        return logits

    def copy(self, source, target, length):
        """Makes the first `length` tokens of a row those of another."""
        for buffer in self._cache.values():
            buffer[target, :, :length] = buffer[source, :, :length]
        self.lengths[target] = length

    def truncate(self, slot, length):
        """Forgets what a row has behind its first `length` tokens."""
        self.lengths[slot] = length
