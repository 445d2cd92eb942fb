"""From logits to the next token, every setting a vector of one value a row."""

import tensorflow as tf


def choose_tokens(logits, seen, settings, uniform):
    """The next token of each row.

    Args:
        logits: (B, V) float32.
        seen: (B, V) boolean, the tokens that stand in each row's context.
        settings: a dictionary of (B,) tensors: `temperature`, `top_k`, `top_p`, `repetition_penalty`.
        uniform: a function of no arguments that gives (B,) numbers in [0, 1); called only when a row samples.

    Returns:
        (B,) int32.
    """
    penalty = settings["repetition_penalty"]
    logits = tf.cond(tf.reduce_any(penalty != 1.0), lambda: penalize_repetition(logits, seen, penalty), lambda: logits)
    greedy = tf.argmax(logits, axis=-1, output_type=tf.int32)
    is_greedy = settings["temperature"] == 0.0

    def sampled():
        temperature = tf.where(is_greedy, 1.0, settings["temperature"])
        # Tiny temperatures make logits infinite, of which a softmax makes no numbers.
        scaled = tf.clip_by_value(logits / temperature[:, None], logits.dtype.min, logits.dtype.max)
        tokens = sample(scaled, settings["top_k"], settings["top_p"], uniform())
        return tf.where(is_greedy, greedy, tokens)

    # Greedy rows alone never pay for sorting the vocabulary.
    return tf.cond(tf.reduce_all(is_greedy), lambda: greedy, sampled)


def penalize_repetition(logits, seen, penalty):
    """Makes seen tokens less likely (CTRL, Keskar et al. 2019, section 4.1)."""
    penalty = penalty[:, None]
    return tf.where(seen, tf.where(logits > 0, logits / penalty, logits * penalty), logits)


def sample(logits, top_k, top_p, uniform):
    """Samples among the `top_k` likeliest tokens and, of these, the smallest set that reaches probability `top_p`.

    Args:
        logits: (B, V), temperature applied.
        top_k: (B,) int32, 0 for all.
        top_p: (B,) float32 in (0, 1].
        uniform: (B,) in [0, 1): where in the cumulative distribution each row falls.

    Returns:
        (B,) int32.
    """
    vocabulary_size = tf.shape(logits)[-1]
    logits, tokens = tf.math.top_k(logits, k=vocabulary_size)  # likeliest first, ties by lower id
    ranks = tf.range(vocabulary_size)[None, :]
    in_top_k = (top_k[:, None] == 0) | (ranks < top_k[:, None])
    probabilities = tf.where(in_top_k, tf.nn.softmax(tf.where(in_top_k, logits, logits.dtype.min)), 0.0)
    mass_before = tf.cumsum(probabilities, axis=-1, exclusive=True)
    # The likeliest token stays even if rounding leaves it no mass before top_p.
    kept = tf.where((mass_before < top_p[:, None]) | (ranks == 0), probabilities, 0.0)
    cumulative = tf.cumsum(kept, axis=-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    choice = tf.reduce_sum(tf.cast(cumulative <= threshold, tf.int32), axis=-1)
    # Rounding must not carry the draw past the last token that was kept.
    last_kept = tf.reduce_sum(tf.cast(kept > 0.0, tf.int32), axis=-1) - 1
    return tf.gather(tokens, tf.minimum(choice, last_kept), batch_dims=1)
