"""What a running batch is asked for, and what it tells of each request."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from tfgpt.generation_settings import GenerationSettings
from tfgpt.runtime.sampling import largest


class Token(NamedTuple):
    """A token of a text.

    Args:
        token_id: which.
        logprob: its log-probability under the model, before temperature and the like; None if not asked for.
        alternatives: the likeliest tokens there and their log-probabilities, likeliest first.
    """

    token_id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


class Prompt(NamedTuple):
    """The prompt was read: its tokens, if their log-probabilities were asked for. The first has none."""

    tokens: tuple[Token, ...]


class Embedding(NamedTuple):
    """The prompt was read: the mean of its tokens' last hidden states (D,)."""

    vector: np.ndarray


class Finished(NamedTuple):
    """The text is complete, by a stop token or because it is as long as was asked for."""

    reason: str


@dataclasses.dataclass(eq=False)
class Request:
    """A prompt to be continued.

    Args:
        prompt: token ids, at least one.
        settings: how; `num_beams` is 1, `stop_token_ids` is given and `seed` is one number.
        notify: called with each `Token`, perhaps a `Prompt` or an `Embedding` before them, and in the end `Finished` or
            a `RequestError`. It is called in the batch's own thread: it must return at once and not raise.
        num_logprobs: how many alternatives each token is to have; None for no log-probabilities.
        prompt_logprobs: whether the prompt's tokens are to have them, too.
        prompt_only: nothing but these.
        embedding: nothing but an `Embedding`.
        presence_penalty, frequency_penalty, logit_bias: as `Adjustment` has them.
        deadline: when the answer is of no use any more, in `time.monotonic()`'s seconds.
    """

    prompt: list[int]
    settings: GenerationSettings
    notify: Callable
    num_logprobs: int | None = None
    prompt_logprobs: bool = False
    prompt_only: bool = False
    embedding: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    deadline: float = math.inf

    def __post_init__(self):
        self.cancelled = False
        self.enqueued = time.monotonic()

    def adjustment(self, vocabulary_size):
        """The `Adjustment` of the text's logits; None for none."""
        if self.presence_penalty or self.frequency_penalty or self.logit_bias:
            return Adjustment(vocabulary_size, self.presence_penalty, self.frequency_penalty, self.logit_bias)
        return None

    def cancel(self):
        """Nobody waits for the answer any more; may be called from any thread, at any time."""
        self.cancelled = True


class Adjustment:
    """What is added to the logits before a token is chosen, as OpenAI's API describes it.

    Args:
        vocabulary_size: V.
        presence_penalty: what a token loses that the text behind the prompt has.
        frequency_penalty: what it loses for each time.
        logit_bias: token id → what it gets.

    Attributes:
        bias: (V,) float32.

    Example:
        >>> adjustment = Adjustment(3, presence_penalty=1.0, frequency_penalty=0.5, logit_bias={2: 7.0})
        >>> adjustment.count(1), adjustment.count(1), adjustment.bias.tolist()
        (None, None, [0.0, -2.0, 7.0])
    """

    def __init__(self, vocabulary_size, presence_penalty, frequency_penalty, logit_bias):
        self.bias = np.zeros(vocabulary_size, np.float32)
        for token, value in logit_bias.items():
            self.bias[token] = value
        self._presence, self._frequency, self._present = presence_penalty, frequency_penalty, set()

    def count(self, token):
        """Takes up that a token was chosen."""
        self.bias[token] -= self._frequency + (0 if token in self._present else self._presence)
        self._present.add(token)


def described(logits, token, count):
    """A token with the log-probabilities that were asked for.

    Args:
        logits: (V,) of what stands in its place.
        token: its id.
        count: as `Request.num_logprobs`.
    """
    if count is None:
        return Token(token)
    wide = logits.astype(np.float64)
    top = wide.max()
    normalizer = top + math.log(np.exp(wide - top).sum())
    if not count:
        return Token(token, float(wide[token] - normalizer))
    values, ids = largest(logits[None], min(count, len(logits)))
    alternatives = tuple((int(i), float(value - normalizer)) for i, value in zip(ids[0], values[0]))
    return Token(token, float(wide[token] - normalizer), alternatives)
