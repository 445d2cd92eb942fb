"""Beam search with the KV cache, inside a `tf.function`."""

import tensorflow as tf

from tfgpt.generation.decoding import prefill

IMPOSSIBLE = -1e9


def beam_search(model, token_ids, padding_mask, max_new_tokens, num_beams, length_penalty, stop_token_ids):
    """The continuations of highest log-probability / length ** length_penalty that a beam of this width finds.

    Hypotheses that end in a stop token leave the beam and are kept; the search goes on until none in the beam can
    overtake the worst of those kept, or `max_new_tokens` are reached, where those in the beam count as ended.
    Sutskever et al. 2014, section 3.2; Wu et al. 2016, section 7, with the plain length penalty.

    Args:
        model: as in `decode`.
        token_ids: (B, P) int32, padded on the left.
        padding_mask: (B, P) int32.
        max_new_tokens: an int32 scalar, N.
        num_beams: a Python int, at most V.
        length_penalty: a float32 scalar.
        stop_token_ids: (E,) int32, which may be empty.

    Returns:
        A dictionary: `token_ids` (B, N) int32 padded with 0, `num_new_tokens` (B,) int32, and `score` (B,) float32.
    """
    prompt_length = tf.shape(token_ids)[1]
    logits, cache, key_mask, positions = prefill(model, token_ids, padding_mask, max_new_tokens)
    key_mask, positions = for_each_beam((key_mask, positions), num_beams)

    def next_logits(step, tokens, cache):
        return model.call_with_cache(
            tokens[:, None],
            key_mask,
            cache,
            position_ids=(positions + step)[:, None],
            cache_index=prompt_length + step,
            last_only=True,
        )

    return search_beams(logits, cache, next_logits, max_new_tokens, num_beams, length_penalty, stop_token_ids)


def for_each_beam(tensors, num_beams):
    """Every tensor (B, ...) of a structure with each row `num_beams` times, (B * beams, ...)."""
    return tf.nest.map_structure(lambda x: tf.repeat(x, num_beams, axis=0), tensors)


def search_beams(logits, cache, next_logits, max_new_tokens, num_beams, length_penalty, stop_token_ids):
    """Beam search from the logits of the first new tokens on.

    Args:
        logits: (B, 1, V).
        cache: tensors (B, ...), whose rows go where their hypotheses go.
        next_logits: a function (step, tokens (B * beams,), cache) -> (logits (B * beams, 1, V), cache), tokens being
            those of the `step`-th step, from 0; what it holds beside the cache it has for each beam
            (`for_each_beam`).
        max_new_tokens, length_penalty: scalars as in `beam_search`, or (B,), one a row: requests that share a batch
            have limits of their own.
        num_beams, stop_token_ids: as in `beam_search`.

    Returns:
        As `beam_search`, N being the largest of `max_new_tokens`.
    """
    batch_size, vocabulary_size = tf.shape(logits)[0], logits.shape[-1]
    logits, cache = for_each_beam((logits, cache), num_beams)
    num_steps = tf.reduce_max(max_new_tokens)
    limits, penalties = (tf.broadcast_to(x, [batch_size])[:, None] for x in (max_new_tokens, length_penalty))

    def normalized(scores, length):
        return scores / tf.cast(length, tf.float32) ** penalties

    def extend(step, logits, alive, ended):
        """Extends each hypothesis by every token, and sorts the best into those that ended and those that go on."""
        log_probabilities = tf.nn.log_softmax(tf.reshape(logits, [batch_size, num_beams, vocabulary_size]))
        scores = tf.reshape(alive["scores"][:, :, None] + log_probabilities, [batch_size, -1])
        # Twice the beam, so that as many go on even if every best one ends. No more exist than beams * V.
        scores, indices = tf.math.top_k(scores, k=min(2 * num_beams, num_beams * vocabulary_size))
        parents, new_tokens = indices // vocabulary_size, indices % vocabulary_size
        tokens = tf.gather(alive["tokens"], parents, batch_dims=1)
        at_step = tf.range(num_steps)[None, None, :] == step
        tokens = tf.where(at_step, new_tokens[:, :, None], tokens)
        stops = tf.reduce_any(new_tokens[:, :, None] == stop_token_ids, axis=-1)

        ended = keep(ended, tf.where(stops, scores, IMPOSSIBLE), tokens, step + 1)
        alive = best({"scores": tf.where(stops, IMPOSSIBLE, scores), "tokens": tokens, "parents": parents})
        # What is still in the beam counts as ended only where the length ran out.
        ran_out = limits == step + 1
        ended = keep(ended, tf.where(ran_out, alive["scores"], IMPOSSIBLE), alive["tokens"], step + 1)
        return {**alive, "scores": tf.where(ran_out, IMPOSSIBLE, alive["scores"])}, ended

    def keep(ended, scores, tokens, length):
        """The best of the hypotheses that ended before and of these, which end at `length`."""
        scores = tf.where(scores > IMPOSSIBLE / 2, normalized(scores, length), IMPOSSIBLE)
        return best(
            {
                "scores": tf.concat([ended["scores"], scores], axis=1),
                "tokens": tf.concat([ended["tokens"], tokens], axis=1),
                "lengths": tf.concat([ended["lengths"], tf.fill(tf.shape(scores), length)], axis=1),
            }
        )

    def best(hypotheses):
        scores, chosen = tf.math.top_k(hypotheses["scores"], k=num_beams)
        others = {name: tf.gather(x, chosen, batch_dims=1) for name, x in hypotheses.items() if name != "scores"}
        return {"scores": scores, **others}

    def can_improve(step, alive, ended):
        # Scores only fall, and are divided by some length between step + 1 and the row's limit.
        first = alive["scores"][:, :1]
        bound = tf.maximum(normalized(first, step + 1), normalized(first, limits))
        return tf.reduce_any((first > IMPOSSIBLE / 2) & (bound > ended["scores"][:, -1:]))

    def step_once(step, alive, ended, cache):
        parents = tf.reshape(alive["parents"] + tf.range(batch_size)[:, None] * num_beams, [-1])
        cache = tf.nest.map_structure(lambda slots: tf.gather(slots, parents), cache)
        tokens = tf.reshape(tf.gather(alive["tokens"], step - 1, axis=2), [-1])
        logits, cache = next_logits(step - 1, tokens, cache)
        alive, ended = extend(step, logits, alive, ended)
        return step + 1, alive, ended, cache

    # At first all beams of a row are the same prompt: only one of them counts.
    first_only = tf.tile([[0.0] + [IMPOSSIBLE] * (num_beams - 1)], [batch_size, 1])
    no_tokens = tf.zeros([batch_size, num_beams, num_steps], tf.int32)
    no_lengths = tf.zeros([batch_size, num_beams], tf.int32)
    ended = {"scores": tf.fill([batch_size, num_beams], IMPOSSIBLE), "tokens": no_tokens, "lengths": no_lengths}
    alive, ended = extend(0, logits, {"scores": first_only, "tokens": no_tokens}, ended)
    _, _, ended, _ = tf.while_loop(
        lambda step, alive, ended, cache: (step < num_steps) & can_improve(step, alive, ended),
        step_once,
        (1, alive, ended, cache),
    )
    return {
        "token_ids": ended["tokens"][:, 0],
        "num_new_tokens": ended["lengths"][:, 0],
        "score": ended["scores"][:, 0],
    }
