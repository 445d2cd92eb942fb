"""Beam search as `tfgpt.generation.beam_search` does it, over any decoding that gives logits."""

from __future__ import annotations

import dataclasses

import numpy as np

from tfgpt.runtime.sampling import largest

IMPOSSIBLE = np.float32(-1e9)


def beam_search(decoding, batch_size, settings):
    """The continuations of highest log-probability / length ** length_penalty that a beam of this width finds.

    Hypotheses that end in a stop token leave the beam and are kept; the search goes on until none in the beam can
    overtake the best of those kept, or `max_new_tokens` are reached, where those in the beam count as ended.
    Sutskever et al. 2014, section 3.2; Wu et al. 2016, section 7, with the plain length penalty.

    Args:
        decoding: B * beams sequences, row b * beams + i for beam i of prompt b, with
            `logits`: (B * beams, V) float32, of the token that comes next; at first all beams of a prompt are alike;
            `advance(tokens, parents)`: row r becomes row parents[r] continued with tokens[r], both (B * beams,)
            integers, and `logits` those of the token after it.
        batch_size: B.
        settings: `GenerationSettings`, of which `num_beams`, `length_penalty`, `max_new_tokens` and `stop_token_ids`.

    Returns:
        For each prompt the list of its new tokens, a stop token included.
    """
    return [tokens for tokens, _ in search_beams(decoding, batch_size, settings)]


def search_beams(decoding, batch_size, settings, max_new_tokens=None):
    """`beam_search`, for each prompt a pair (tokens, score); with `max_new_tokens` in place of the settings'."""
    if max_new_tokens is not None:
        settings = dataclasses.replace(settings, max_new_tokens=max_new_tokens)
    num_beams, max_new_tokens = settings.num_beams, settings.max_new_tokens
    shape = (batch_size, num_beams)
    no_tokens = np.zeros((*shape, max_new_tokens), np.int64)
    # At first all beams of a row are the same prompt: only one of them counts.
    alive = {"scores": np.full(shape, IMPOSSIBLE), "tokens": no_tokens}
    alive["scores"][:, 0] = 0
    ended = {"scores": np.full(shape, IMPOSSIBLE), "tokens": no_tokens, "lengths": np.zeros(shape, np.int64)}

    alive, ended = _extend(decoding.logits, 0, alive, ended, settings)
    step = 1
    while step < max_new_tokens and _can_improve(step, alive, ended, settings):
        parents = alive["parents"] + np.arange(batch_size)[:, None] * num_beams
        decoding.advance(alive["tokens"][:, :, step - 1].reshape(-1), parents.reshape(-1))
        alive, ended = _extend(decoding.logits, step, alive, ended, settings)
        step += 1
    if step == max_new_tokens:  # what is still in the beam counts as ended only when the length ran out
        ended = _keep(ended, alive["scores"], alive["tokens"], step, settings)
    best = zip(ended["tokens"][:, 0], ended["lengths"][:, 0], ended["scores"][:, 0], strict=True)
    return [(tokens[:length].tolist(), float(score)) for tokens, length, score in best]


def _extend(logits, step, alive, ended, settings):
    """Extends each hypothesis by every token, and sorts the best into those that go on and those that ended."""
    batch_size, num_beams = alive["scores"].shape
    vocabulary_size = logits.shape[-1]
    log_probabilities = _log_softmax(logits).reshape(batch_size, num_beams, vocabulary_size)
    scores = (alive["scores"][:, :, None] + log_probabilities).reshape(batch_size, -1)
    # Twice the beam, so that as many go on even if every best one ends. No more exist than beams * V.
    scores, indices = largest(scores, min(2 * num_beams, num_beams * vocabulary_size))
    parents, new_tokens = indices // vocabulary_size, indices % vocabulary_size
    tokens = np.take_along_axis(alive["tokens"], parents[:, :, None], axis=1)
    tokens[:, :, step] = new_tokens
    stops = np.isin(new_tokens, settings.stop_token_ids or ())

    ended = _keep(ended, np.where(stops, scores, IMPOSSIBLE), tokens, step + 1, settings)
    alive = {"scores": np.where(stops, IMPOSSIBLE, scores), "tokens": tokens, "parents": parents}
    return _best(alive, num_beams), ended


def _keep(ended, scores, tokens, length, settings):
    """The best of the hypotheses that ended before and of these, which end at `length`."""
    scores = np.where(scores > IMPOSSIBLE / 2, _normalized(scores, length, settings), IMPOSSIBLE)
    hypotheses = {"scores": scores, "tokens": tokens, "lengths": np.full(scores.shape, length)}
    pool = {name: np.concatenate([ended[name], hypotheses[name]], axis=1) for name in ended}
    return _best(pool, settings.num_beams)


def _best(hypotheses, num_beams):
    _, chosen = largest(hypotheses["scores"], num_beams)
    rows = np.arange(len(chosen))[:, None]
    return {name: values[rows, chosen] for name, values in hypotheses.items()}


def _can_improve(step, alive, ended, settings):
    # Scores only fall, and are divided by some length between step + 1 and N. The best that ended is all that is asked
    # for: TensorFlow's search goes on while the worst of those kept can be overtaken, and ends with the same best.
    first = alive["scores"][:, 0]
    lengths = (step + 1, settings.max_new_tokens)
    bound = np.maximum(*(_normalized(first, length, settings) for length in lengths))
    return (bound > ended["scores"][:, 0]).any()


def _normalized(scores, length, settings):
    return scores / np.float32(length) ** np.float32(settings.length_penalty)


def _log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
