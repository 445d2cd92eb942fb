"""The small interface that every runtime of a release answers to."""

from __future__ import annotations

import itertools
import json
import pathlib

import numpy as np

from tfgpt.context_window import continue_in_segments, pad_left
from tfgpt.errors import UserError


class Runner:
    """A model on some runtime: logits of a batch, with and without the cache, and greedy continuation.

    A runtime implements `empty_cache` and `step`, and overrides what it has a faster or another way for.

    Args:
        config: the contents of the release's config.json.
    """

    name = ""

    def __init__(self, config):
        self.window = config["n_positions"]
        self.vocabulary_size = config["vocab_size"]
        self.num_layers = config["n_layer"]
        self.num_heads = config["n_head"]
        self.head_dim = config["n_embd"] // config["n_head"]

    def step(self, token_ids, padding_mask, position_ids, cache):
        """Logits of new tokens given the cache of those before.

        Args:
            token_ids: (B, T) integers.
            padding_mask: (B, S) of all tokens, old and new.
            position_ids: (B, T).
            cache: from `empty_cache` or the last step.

        Returns:
            Logits (B, T, V) and the new cache.
        """
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def empty_cache(self, batch_size):
        """A cache of no tokens: key and value of each layer, (B, H, 0, K)."""
        empty = np.zeros((batch_size, self.num_heads, 0, self.head_dim), np.float32)
        return [empty] * (2 * self.num_layers)

    def logits(self, token_ids, padding_mask):
        """Logits (B, T, V) of a batch in one pass; padding, on either side, is 0 in `padding_mask` (B, T).

        Raises:
            UserError: for sequences longer than the window, or token ids outside the vocabulary.
        """
        self.check(token_ids)
        cache = self.empty_cache(len(token_ids))
        return self.step(token_ids, padding_mask, positions_from_mask(padding_mask), cache)[0]

    def check(self, token_ids):
        """Raises a `UserError` for sequences longer than the window, or token ids outside the vocabulary."""
        if token_ids.shape[1] > self.window:
            raise UserError(
                f"the sequence has {token_ids.shape[1]} tokens, expected at most the window's {self.window}"
            )
        if not 0 <= token_ids.min() <= token_ids.max() < self.vocabulary_size:
            wrong = token_ids.max() if token_ids.max() >= self.vocabulary_size else token_ids.min()
            raise UserError(f"token id {wrong} is outside the vocabulary, expected 0 to {self.vocabulary_size - 1}")

    def check_prompts(self, prompts):
        """Raises a `UserError` for an empty prompt, or token ids outside the vocabulary."""
        for number, prompt in enumerate(prompts):
            if not len(prompt):
                raise UserError(f"prompt {number} is empty, expected at least one token")
            if not 0 <= min(prompt) <= max(prompt) < self.vocabulary_size:
                wrong = next(i for i in prompt if not 0 <= i < self.vocabulary_size)
                raise UserError(f"prompt {number} has token id {wrong}, expected 0 to {self.vocabulary_size - 1}")

    def cached_logits(self, token_ids, padding_mask, prompt_length):
        """The same logits by way of the cache: `prompt_length` columns at once, the others one by one."""
        self.check(token_ids)
        positions = positions_from_mask(padding_mask)
        cache = self.empty_cache(len(token_ids))
        outputs = []
        bounds = [0, *range(prompt_length, token_ids.shape[1] + 1)]
        for start, end in itertools.pairwise(bounds):
            columns = slice(start, end)
            logits, cache = self.step(token_ids[:, columns], padding_mask[:, :end], positions[:, columns], cache)
            outputs.append(logits)
        return np.concatenate(outputs, axis=1)

    def greedy(self, prompts, max_new_tokens, stop_token_ids=()):
        """The likeliest continuation of each prompt (a token id list), up to `max_new_tokens` long.

        Text longer than the window is handled as `tfgpt.context_window` says; a stop token is the last one.

        Raises:
            UserError: for an empty prompt, or token ids outside the vocabulary.
        """
        self.check_prompts(prompts)
        return continue_in_segments(prompts, max_new_tokens, self.window, self._decode, stop_token_ids)

    def continue_texts(self, tokenizer, prompts, max_new_tokens, stop_token_ids=None):
        """The likeliest continuation of each text, behind its prompt.

        Args:
            tokenizer: a `tfgpt.text.Tokenizer`, or anything with its `encode`, `decode` and `end_token_id`.
            prompts: strings.
            max_new_tokens: how many tokens to add at most.
            stop_token_ids: by default the tokenizer's end of text, where it has one.
        """
        if stop_token_ids is None:
            stop_token_ids = () if tokenizer.end_token_id is None else (tokenizer.end_token_id,)
        # As the Keras model does: an empty text begins after the end of another.
        empty = [] if tokenizer.end_token_id is None else [tokenizer.end_token_id]
        contexts = [tokenizer.encode(prompt) or empty for prompt in prompts]
        new = self.greedy(contexts, max_new_tokens, stop_token_ids)
        kept = [tokens[:-1] if tokens[-1] in stop_token_ids else tokens for tokens in new]
        return [prompt + tokenizer.decode(tokens) for prompt, tokens in zip(prompts, kept, strict=True)]

    def _decode(self, rows, contexts, count, first_index):
        token_ids, padding_mask = pad_left(contexts)
        positions = positions_from_mask(padding_mask)
        cache = self.empty_cache(len(contexts))
        new = []
        for _ in range(count):
            logits, cache = self.step(token_ids, padding_mask, positions, cache)
            token_ids = logits[:, -1].argmax(axis=-1)[:, None].astype(np.int32)
            padding_mask = np.pad(padding_mask, ((0, 0), (0, 1)), constant_values=1)
            positions = positions[:, -1:] + 1
            new.append(token_ids)
        return np.concatenate(new, axis=1).tolist()


def positions_from_mask(padding_mask):
    """Positions (B, T) counted from each row's first real token."""
    return np.maximum(np.cumsum(padding_mask, axis=1) - 1, 0)


def read_release_config(release):
    """The contents of a release directory's config.json.

    Raises:
        UserError: if there is none.
    """
    path = pathlib.Path(release) / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON, expected a release directory that has it: {error}") from error
