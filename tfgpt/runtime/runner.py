"""The small interface that every runtime of a release answers to."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np

from tfgpt.context_window import check_room, continue_in_segments, fit_context, pad_left, room_left
from tfgpt.errors import UserError
from tfgpt.generation_settings import GenerationSettings
from tfgpt.runtime.beam_search import beam_search
from tfgpt.runtime.random_numbers import uniform
from tfgpt.runtime.sampling import choose_tokens


class Runner:
    """A model on some runtime: logits of a batch, with and without the cache, and continuations.

    A runtime implements `step`, and overrides what it has a faster or another way for.

    Args:
        config: the contents of the release's config.json.
    """

    name = ""
    precision = "float32"  # which tolerance of the parity check holds

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

    def start(self, contexts, room, copies=1):
        """Reads contexts (token id lists within the window) and leaves room for `room` more tokens of each.

        Args:
            contexts: of any lengths.
            room: how many tokens are to follow.
            copies: rows of each context in a row, for beam search.

        Returns:
            A `Decoding`.
        """
        return Decoding(self, contexts, copies)

    def greedy(self, prompts, max_new_tokens, stop_token_ids=()):
        """The likeliest continuation of each prompt: `generate` with the defaults."""
        settings = GenerationSettings(max_new_tokens=max_new_tokens, stop_token_ids=tuple(stop_token_ids))
        return self.generate(prompts, settings)

    def generate(self, prompts, settings):
        """Continues prompts as `tfgpt.generation.generate_token_ids` does, token for token.

        Text longer than the window is handled as `tfgpt.context_window` says; beam search stays within the window.

        Args:
            prompts: token id lists.
            settings: `GenerationSettings`.

        Returns:
            For each prompt the list of its new tokens, a stop token included.

        Raises:
            UserError: for an empty prompt, token ids outside the vocabulary, or a beam search past the window.
        """
        self.check_prompts(prompts)
        if not prompts:
            return []
        if settings.num_beams > 1:
            check_room(prompts, settings.max_new_tokens, self.window)
            decoding = self.start(prompts, settings.max_new_tokens, settings.num_beams)
            return beam_search(decoding, len(prompts), settings)
        seeds = settings.row_seeds(len(prompts))

        def decode(rows, contexts, count, first_index):
            return self._decode(contexts, count, settings, [seeds[i] for i in rows], first_index)

        stops = settings.stop_token_ids or ()
        return continue_in_segments(prompts, settings.max_new_tokens, self.window, decode, stops)

    def stream(self, prompt, settings):
        """Continues one prompt, and yields each new token as soon as it is chosen; the same ones as `generate`.

        Raises:
            UserError: as `generate` does, and for beam search, which knows its tokens only at the end.
        """
        self.check_prompts([prompt])
        if settings.num_beams > 1:
            raise UserError(f"num_beams is {settings.num_beams}, expected 1: beam search cannot stream")
        context, generated = fit_context(list(prompt), self.window), 0
        while generated < settings.max_new_tokens:
            count = min(settings.max_new_tokens - generated, room_left(context, self.window))
            for [token] in decode(
                self.start([context], count), [context], count, settings, settings.row_seeds(1), generated
            ):
                yield token
                context.append(token)
                if token in (settings.stop_token_ids or ()):
                    return
            generated += count
            context = fit_context(context, self.window)

    def continue_texts(self, tokenizer, prompts, settings):
        """The continuation of each text, behind its prompt, as `model.generate` gives it.

        Args:
            tokenizer: a `tfgpt.text.Tokenizer`, or anything with its `encode`, `decode` and `end_token_id`.
            prompts: strings.
            settings: `GenerationSettings`; by default a text ends at the tokenizer's end of text, where it has one.
        """
        settings = with_stop(settings, tokenizer)
        new = self.generate([encode_prompt(tokenizer, prompt) for prompt in prompts], settings)
        kept = [tokens[:-1] if tokens[-1] in settings.stop_token_ids else tokens for tokens in new]
        return [prompt + tokenizer.decode(tokens) for prompt, tokens in zip(prompts, kept, strict=True)]

    def stream_text(self, tokenizer, prompt, settings):
        """Continues one text, and yields the new text piece by piece, whole characters only."""
        settings = with_stop(settings, tokenizer)
        tokens, shown = [], ""
        for token in self.stream(encode_prompt(tokenizer, prompt), settings):
            if token in settings.stop_token_ids:
                break
            tokens.append(token)
            text = tokenizer.decode(tokens)
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # a character may be spread over several tokens
                yield text[len(shown) :]
                shown = text
        rest = tokenizer.decode(tokens)[len(shown) :]
        if rest:
            yield rest

    def _decode(self, contexts, count, settings, seeds, first_index):
        """Continues contexts within the window by up to `count` tokens; rows that stop are as long as the others."""
        steps = list(decode(self.start(contexts, count), contexts, count, settings, seeds, first_index))
        return [list(row) for row in zip(*steps, strict=True)]


class Decoding:
    """Rows that are being continued: the logits of each row's next token, and a way to go on.

    This one feeds `Runner.step` with contexts padded on the left and a cache that grows.

    Attributes:
        logits: (B, V) float32.
    """

    def __init__(self, runner, contexts, copies):
        self.runner = runner
        token_ids, self.padding_mask = pad_left(contexts)
        positions = positions_from_mask(self.padding_mask)
        logits, cache = runner.step(token_ids, self.padding_mask, positions, runner.empty_cache(len(contexts)))
        self.logits = np.repeat(logits[:, -1], copies, axis=0)
        self.cache = [np.repeat(tensor, copies, axis=0) for tensor in cache]
        self.padding_mask = np.repeat(self.padding_mask, copies, axis=0)
        self.positions = np.repeat(positions[:, -1:] + 1, copies, axis=0)

    def advance(self, tokens, parents=None):
        """Row i goes on as row `parents[i]`, or as itself, with `tokens[i]`."""
        if parents is not None:
            self.cache = [np.asarray(tensor)[parents] for tensor in self.cache]
            self.padding_mask, self.positions = self.padding_mask[parents], self.positions[parents]
        self.padding_mask = np.pad(self.padding_mask, ((0, 0), (0, 1)), constant_values=1)
        token_ids = np.asarray(tokens, np.int32)[:, None]
        logits, self.cache = self.runner.step(token_ids, self.padding_mask, self.positions, self.cache)
        self.logits = logits[:, -1]
        self.positions = self.positions + 1


def decode(decoding, contexts, count, settings, seeds, first_index):
    """Chooses tokens and goes on with them, until every row has stopped or has `count` new tokens.

    Args:
        decoding: a `Decoding` of these contexts.
        contexts: token id lists.
        count: how many tokens at most.
        settings: `GenerationSettings`.
        seeds: one for each row.
        first_index: how many tokens of each row's random stream were drawn before.

    Yields:
        The list of the rows' tokens at each step; what follows a row's stop token means nothing.
    """
    seeds, stops = np.array(seeds, np.int64), list(settings.stop_token_ids or ())
    seen = None
    if settings.repetition_penalty != 1:
        seen = np.zeros(decoding.logits.shape, bool)
        for row, context in enumerate(contexts):
            seen[row, context] = True
    stopped = np.zeros(len(contexts), bool)
    for step in range(count):
        draw = functools.partial(uniform, seeds, first_index + step)
        tokens = choose_tokens(decoding.logits, seen, settings, draw)
        yield tokens.tolist()
        if stops:
            stopped |= np.isin(tokens, stops)
            if stopped.all():
                return
        if seen is not None:
            seen[np.arange(len(contexts)), tokens] = True
        if step + 1 < count:
            decoding.advance(tokens)


def with_stop(settings, tokenizer):
    """The settings with the tokenizer's end of text as stop token where they name none."""
    if settings.stop_token_ids is not None:
        return settings
    stops = () if tokenizer.end_token_id is None else (tokenizer.end_token_id,)
    return dataclasses.replace(settings, stop_token_ids=stops)


def encode_prompt(tokenizer, text):
    """Token ids of a prompt; an empty one begins after the end of another text, where the tokenizer has that token."""
    return tokenizer.encode(text) or ([] if tokenizer.end_token_id is None else [tokenizer.end_token_id])


def positions_from_mask(padding_mask):
    """Positions (B, T) counted from each row's first real token."""
    return np.maximum(np.cumsum(padding_mask, axis=1) - 1, 0)
