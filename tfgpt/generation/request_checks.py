"""What a request to an exported model must be, checked inside the graph: one sentence, and the session lives on."""

import tensorflow as tf

CHECKED = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty")


def require(name, values, valid, expected):
    """The values, or InvalidArgument where one is not what it should be, naming the first such row.

    Args:
        name: of the input.
        values: (B,) or (B, T).
        valid: booleans of the same shape.
        expected: what the sentence ends with.

    Example:

    >>> require("temperature", tf.constant([1.0, -1.0]), tf.constant([True, False]), "a finite number from 0")
    Traceback (most recent call last):
    tensorflow.python.framework.errors_impl.InvalidArgumentError: ... [temperature of row 1 is -1, expected a finite ...
    """

    def fail():
        place = tf.where(~valid)[0]
        value = tf.strings.as_string(tf.gather_nd(values, place), shortest=values.dtype.is_floating)
        sentence = [name, " of row ", tf.strings.as_string(place[0]), " is ", value, ", expected ", expected]
        return _failing(tf.strings.join(sentence), values)

    return tf.cond(tf.reduce_all(valid), lambda: tf.identity(values), fail)


def require_rows(**inputs):
    """The inputs, or InvalidArgument unless all have the same number of rows, and one at least.

    Args:
        **inputs: tensors whose first axis is B.

    Returns:
        A list.
    """
    return _require_sizes("rows", inputs, axis=0, least=1, expected="as many of each, and at least 1")


def require_tokens(token_ids, padding_mask, vocabulary_size, window):
    """Token ids and mask of rows that all hold tokens of the vocabulary, and no more than the window takes.

    Args:
        token_ids, padding_mask: (B, T) int32.
        vocabulary_size, window: ints.

    Returns:
        `token_ids`, with 0 at padding, and `padding_mask`, with 0 and 1.
    """
    inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
    # A mask of a single column would go for all of them.
    token_ids, padding_mask = _require_sizes("columns", inputs, axis=1, least=0, expected="as many of each")
    real = padding_mask != 0
    token_ids = tf.where(real, token_ids, 0)
    inside = (token_ids >= 0) & (token_ids < vocabulary_size)
    token_ids = require("token_ids", token_ids, inside, f"0 to {vocabulary_size - 1}")
    lengths = tf.math.count_nonzero(real, axis=1, dtype=tf.int32)
    lengths = require("the number of tokens", lengths, lengths > 0, "at least 1")
    lengths = require("the number of tokens", lengths, lengths <= window, f"at most {window}, the window")
    with tf.control_dependencies([lengths]):
        return tf.identity(token_ids), tf.cast(real, tf.int32)


def require_step(input_ids, attention_mask, position_ids, past):
    """The inputs of a step with a KV cache, or InvalidArgument unless they belong together.

    Args:
        input_ids, position_ids: (B, T).
        attention_mask: (B, S).
        past: name → (B, H, S - T, K).

    Returns:
        `input_ids`, `attention_mask`, `position_ids`, and the list of the cache's tensors.
    """
    names = ("input_ids", "attention_mask", "position_ids")
    inputs = dict(zip(names, (input_ids, attention_mask, position_ids), strict=True))
    tensors = require_rows(**inputs, **past)
    inputs, past = dict(zip(names, tensors, strict=False)), tensors[len(names) :]
    new = {name: inputs[name] for name in ("input_ids", "position_ids")}
    tokens, positions = _require_sizes("columns", new, axis=1, least=1, expected="as many of each, and at least 1")
    seen = tf.concat([tf.zeros_like(past[0][:, 0, :, 0], tokens.dtype), tokens], axis=1)
    sizes = {"attention_mask": inputs["attention_mask"], "the cache and the new tokens": seen}
    mask, _ = _require_sizes("columns", sizes, axis=1, least=1, expected="as many of each")
    return tokens, mask, positions, past


def require_settings(settings):
    """The settings of a request, or InvalidArgument for what `GenerationSettings` refuses, too.

    Args:
        settings: a dictionary of (B,) tensors: `max_new_tokens`, `temperature`, `top_k`, `top_p`,
            `repetition_penalty`, and others, which go unchecked.

    Returns:
        The same dictionary.
    """
    count, temperature, top_k, top_p, penalty = (settings[name] for name in CHECKED)
    rules = (
        (count >= 1, "at least 1"),
        (tf.math.is_finite(temperature) & (temperature >= 0), "a finite number from 0"),
        (top_k >= 0, "0 (all tokens) or more"),
        ((top_p > 0) & (top_p <= 1), "above 0 and at most 1"),
        (tf.math.is_finite(penalty) & (penalty > 0), "a finite number above 0"),
    )
    checked = {name: require(name, settings[name], *rule) for name, rule in zip(CHECKED, rules, strict=True)}
    return {**settings, **checked}


def _require_sizes(what, inputs, axis, least, expected):
    sizes = tf.stack([tf.shape(tensor)[axis] for tensor in inputs.values()])

    def fail():
        counts = [tf.strings.join([name, " ", tf.strings.as_string(sizes[i])]) for i, name in enumerate(inputs)]
        return _failing(
            tf.strings.join([f"the {what} are ", tf.strings.join(counts, ", "), ", expected ", expected]), sizes
        )

    checked = tf.cond((sizes[0] >= least) & tf.reduce_all(sizes == sizes[0]), lambda: tf.identity(sizes), fail)
    with tf.control_dependencies([checked]):
        return [tf.identity(tensor) for tensor in inputs.values()]


def _failing(sentence, values):
    with tf.control_dependencies([tf.raw_ops.Assert(condition=False, data=[sentence], summarize=1)]):
        return tf.identity(values)
