"""What every runtime does with text longer than the context window, so that all give the same text.

A context of up to W tokens is fed whole, and continued token by token from the KV cache until it has W + 1 tokens:
the last one has no position left. Then, and for a prompt that is longer to begin with, only the last W // 2 tokens are
kept and read anew. The cut depends on a row's own length alone, so a row gives in a batch what it gives by itself.
"""

from __future__ import annotations

import numpy as np

from tfgpt.errors import UserError


def fit_context(token_ids, window):
    """The tokens of a context that the model reads next: all of them, or the last half window."""
    return token_ids if len(token_ids) <= window else token_ids[-max(window // 2, 1) :]


def room_left(token_ids, window):
    """How many tokens can be generated after a fitted context before it must be cut again."""
    return window - len(token_ids) + 1


def check_room(prompts, max_new_tokens, window):
    """Raises a `UserError` if prompts and their continuations do not fit the window, as beam search needs."""
    longest = max(map(len, prompts))
    if longest > window:
        raise UserError(f"a prompt has {longest} tokens, expected at most the window's {window} for beam search")
    room = window - longest + 1
    if max_new_tokens > room:
        raise UserError(
            f"beam search stays within the window of {window} tokens, expected max_new_tokens of at most {room} after "
            f"the longest prompt, found {max_new_tokens}"
        )


def continue_in_segments(prompts, max_new_tokens, window, decode, stop_token_ids=()):
    """Continues prompts by any number of tokens, cutting contexts where they outgrow the window.

    Args:
        prompts: a list of token id lists.
        max_new_tokens: how many tokens each gets at most.
        window: W.
        decode: a function `(rows, contexts, count, first_index) -> token id lists` that continues contexts within the
            window by up to `count` tokens. `rows` are their places in `prompts`; `first_index` is the number of
            tokens generated before.
        stop_token_ids: tokens that end a row; a row also ends when `decode` gives it fewer than `count` tokens.

    Returns:
        For each prompt the list of its new tokens, a stop token included.
    """
    contexts = [fit_context(list(prompt), window) for prompt in prompts]
    continuations = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    generated = 0
    while rows and generated < max_new_tokens:
        count = min(max_new_tokens - generated, *(room_left(contexts[i], window) for i in rows))
        new = decode(rows, [contexts[i] for i in rows], count, generated)
        new = [until_stop(tokens, stop_token_ids) for tokens in new]
        for i, tokens in zip(rows, new, strict=True):
            continuations[i].extend(tokens)
            contexts[i] = fit_context(contexts[i] + tokens, window)
        generated += count
        rows = [
            i for i, tokens in zip(rows, new, strict=True) if len(tokens) == count and tokens[-1] not in stop_token_ids
        ]
    return continuations


def until_stop(token_ids, stop_token_ids):
    """The tokens up to the first stop token, and with it."""
    return next((token_ids[: i + 1] for i, token in enumerate(token_ids) if token in stop_token_ids), token_ids)


def pad_left(contexts):
    """Token id lists as arrays `token_ids` and `padding_mask`, (B, P) int32, padded on the left with zeros."""
    length = max(map(len, contexts))
    token_ids = np.array([[0] * (length - len(context)) + list(context) for context in contexts], np.int32)
    padding_mask = np.array([[0] * (length - len(context)) + [1] * len(context) for context in contexts], np.int32)
    return token_ids, padding_mask
