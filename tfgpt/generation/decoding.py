"""The decoding loop: one prefill, then one token a step from the KV cache, inside a `tf.function`."""

import tensorflow as tf

from tfgpt.generation.random_numbers import uniform
from tfgpt.generation.sampling import choose_tokens
from tfgpt.models.gpt2.backbone import positions_from_mask

# What `decode` takes beside the model. Everything has a row for each prompt, so that requests can share a batch.
DECODE_SIGNATURE = {
    "token_ids": tf.TensorSpec([None, None], tf.int32, "token_ids"),
    "padding_mask": tf.TensorSpec([None, None], tf.int32, "padding_mask"),
    "max_new_tokens": tf.TensorSpec([None], tf.int32, "max_new_tokens"),
    "temperature": tf.TensorSpec([None], tf.float32, "temperature"),
    "top_k": tf.TensorSpec([None], tf.int32, "top_k"),
    "top_p": tf.TensorSpec([None], tf.float32, "top_p"),
    "repetition_penalty": tf.TensorSpec([None], tf.float32, "repetition_penalty"),
    "seed": tf.TensorSpec([None], tf.int64, "seed"),
    "first_index": tf.TensorSpec([None], tf.int32, "first_index"),
    "stop_token_ids": tf.TensorSpec([None, None], tf.int32, "stop_token_ids"),
}


def decode(
    model,
    token_ids,
    padding_mask,
    max_new_tokens,
    temperature,
    top_k,
    top_p,
    repetition_penalty,
    seed,
    first_index,
    stop_token_ids,
):
    """Continues prompts of any lengths, each as it would be alone.

    Args:
        model: a causal LM with `call_with_cache` and `backbone.empty_cache`.
        token_ids: (B, P) int32, padded on the left.
        padding_mask: (B, P) int32, 1 at real tokens.
        max_new_tokens: (B,) int32.
        temperature, top_p, repetition_penalty: (B,) float32; top_k: (B,) int32 (see `GenerationSettings`).
        seed: (B,) int64.
        first_index: (B,) int32, how many tokens of each row's random stream were drawn before.
        stop_token_ids: (B, E) int32; E may be 0, and rows with fewer are filled with -1.

    Returns:
        A dictionary: `token_ids` (B, N) int32 with the new tokens, the stop token included, padded with 0, and
        `num_new_tokens` (B,) int32.
    """
    prompt_length, num_steps = tf.shape(token_ids)[1], tf.reduce_max(max_new_tokens)
    last_position = model.backbone.max_sequence_length - 1
    logits, cache, key_mask, positions = prefill(model, token_ids, padding_mask, num_steps)

    def next_logits(step, tokens, cache):
        return model.call_with_cache(
            tokens[:, None],
            key_mask,
            cache,
            # A row that has ended goes on beside the others, maybe past the window: any position that exists will do.
            position_ids=tf.minimum(positions + step, last_position)[:, None],
            cache_index=prompt_length + step,
            last_only=True,
        )

    settings = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
    }
    seen = seen_tokens(token_ids, padding_mask, tf.shape(logits)[-1])
    return continue_rows(logits, cache, next_logits, seen, max_new_tokens, settings, seed, first_index, stop_token_ids)


def continue_rows(logits, cache, next_logits, seen, max_new_tokens, settings, seed, first_index, stop_token_ids):
    """Chooses a token a row and step, until every row has ended.

    Args:
        logits: (B, 1, V), of the first new tokens.
        cache: whatever `next_logits` takes and gives.
        next_logits: a function (step, tokens (B,), cache) -> (logits (B, 1, V), cache), tokens being those of the
            `step`-th step, from 0.
        seen: (B, V) boolean, the tokens in each row's context.
        max_new_tokens, seed, first_index, stop_token_ids: as in `decode`.
        settings: a dictionary of the others of `decode` that choose tokens.

    Returns:
        As `decode`.
    """
    batch_size, num_steps = tf.shape(logits)[0], tf.reduce_max(max_new_tokens)

    def choose(step, logits, seen, finished, num_new_tokens):
        tokens = choose_tokens(logits[:, 0], seen, settings, lambda: uniform(seed, first_index + step))
        tokens = tf.where(finished, 0, tokens)
        num_new_tokens += tf.cast(~finished, tf.int32)
        stopped = tf.reduce_any(tokens[:, None] == stop_token_ids, axis=1)
        finished |= stopped | (num_new_tokens >= max_new_tokens)
        indices = tf.stack([tf.range(batch_size), tokens], axis=1)
        seen = tf.tensor_scatter_nd_update(seen, indices, tf.ones_like(finished))
        return tokens, seen, finished, num_new_tokens

    none = tf.zeros([batch_size], tf.int32)
    tokens, seen, finished, num_new_tokens = choose(0, logits, seen, tf.zeros([batch_size], tf.bool), none)
    outputs = tf.TensorArray(tf.int32, size=num_steps, element_shape=[None]).write(0, tokens)

    def step_once(step, tokens, cache, seen, finished, num_new_tokens, outputs):
        logits, cache = next_logits(step, tokens, cache)
        tokens, seen, finished, num_new_tokens = choose(step + 1, logits, seen, finished, num_new_tokens)
        return step + 1, tokens, cache, seen, finished, num_new_tokens, outputs.write(step + 1, tokens)

    state = (0, tokens, cache, seen, finished, num_new_tokens, outputs)
    state = tf.while_loop(lambda *state: ~tf.reduce_all(state[4]), step_once, state)
    *_, num_new_tokens, outputs = state
    new_tokens = tf.transpose(outputs.stack())  # rows that all ended early leave zeros behind them
    return {"token_ids": tf.reshape(new_tokens, [batch_size, num_steps]), "num_new_tokens": num_new_tokens}


def prefill(model, token_ids, padding_mask, num_steps):
    """Reads the prompts, and makes room for `num_steps` more tokens in the cache.

    Returns:
        Logits after the last token (B, 1, V), the cache with P + num_steps slots, the padding mask of these slots
        (B, P + num_steps), and the position (B,) of the first new token.
    """
    batch_size = tf.shape(token_ids)[0]
    logits, cache = model.call_with_cache(
        token_ids,
        padding_mask,
        model.backbone.empty_cache(batch_size),
        position_ids=positions_from_mask(padding_mask),
        last_only=True,
    )
    cache = tf.nest.map_structure(lambda slots: tf.pad(slots, [[0, 0], [0, 0], [0, num_steps], [0, 0]]), cache)
    # Slots not yet written are hidden by the causal mask.
    key_mask = tf.concat([padding_mask, tf.ones([batch_size, num_steps], padding_mask.dtype)], axis=1)
    return logits, cache, key_mask, tf.reduce_sum(padding_mask, axis=1)


def seen_tokens(token_ids, padding_mask, vocabulary_size):
    """Which tokens stand in each row: (B, V) boolean."""
    rows = tf.broadcast_to(tf.range(tf.shape(token_ids)[0])[:, None], tf.shape(token_ids))
    indices = tf.stack([rows, token_ids], axis=-1)
    return tf.scatter_nd(indices, padding_mask, [tf.shape(token_ids)[0], vocabulary_size]) > 0
