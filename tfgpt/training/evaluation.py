"""Loss, perplexity, bits per byte and accuracy of a model on any text."""

from __future__ import annotations

import dataclasses
import math

import keras
import numpy as np
import tensorflow as tf

from tfgpt.errors import UserError

BATCH_TOKENS = 4096  # about how many tokens one forward pass takes

COMPILE_TOKENS = 2**20  # from here on, what XLA saves is more than what compiling costs


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Means over the predicted tokens.

    Args:
        loss: cross-entropy in nats a token.
        perplexity: exp(loss).
        bits_per_byte: bits needed for the text, over its bytes in UTF-8; comparable between tokenizers.
        accuracy: how often the likeliest token was the next one.
        tokens: how many were predicted: all but the first.
        bytes: of the text.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    accuracy: float
    tokens: int
    bytes: int


def evaluate_tokens(model, token_ids, num_bytes, stride=None, on_progress=None):
    """Evaluates a model on a sequence of tokens by a sliding window.

    Each window of W tokens begins `stride` tokens after the one before, and counts only targets that no window
    before it has predicted: all but those of the first see at least W - stride tokens of context. `stride=W` cuts the
    text into windows that share nothing.

    Args:
        model: a `GPT2CausalLM`.
        token_ids: a one-dimensional integer array, N of them.
        num_bytes: of the text in UTF-8.
        stride: from 1 to W; by default W / 2.
        on_progress: called with the fraction done.

    Raises:
        UserError: if there are fewer than two tokens, ids outside the vocabulary, or a stride out of range.
    """
    window = model.backbone.max_sequence_length
    stride = max(window // 2, 1) if stride is None else stride
    token_ids = np.asarray(token_ids, np.int32)
    if not 1 <= stride <= window:
        raise UserError(f"stride is {stride}, expected 1 to the window of {window} tokens")
    if len(token_ids) < 2:
        raise UserError(f"the text has {len(token_ids)} tokens, expected at least 2: the first predicts the second")
    vocabulary_size = model.backbone.vocabulary_size
    if not 0 <= token_ids.min() <= token_ids.max() < vocabulary_size:
        raise UserError(
            f"the text has token ids from {token_ids.min()} to {token_ids.max()}, expected 0 to {vocabulary_size - 1}: "
            "is the tokenizer the model's own?"
        )
    starts = _window_starts(len(token_ids), window, stride)
    step = _evaluation_step(model, jit_compile=len(starts) * window > COMPILE_TOKENS)
    rows = max(1, BATCH_TOKENS // window)
    loss = correct = 0.0
    for first in range(0, len(starts), rows):
        inputs, targets, weights = _rows(token_ids, starts[first : first + rows], window, stride)
        inputs, targets, weights = (
            np.pad(x, ((0, min(rows, len(starts)) - len(x)), (0, 0))) for x in (inputs, targets, weights)
        )
        batch_loss, batch_correct = step(inputs, targets, weights)
        loss += float(batch_loss)
        correct += float(batch_correct)
        if on_progress:
            on_progress(min(first + rows, len(starts)) / len(starts))
    tokens = len(token_ids) - 1
    mean = loss / tokens
    return Evaluation(
        loss=mean,
        perplexity=math.exp(min(mean, 700.0)),
        bits_per_byte=loss / math.log(2) / max(num_bytes, 1),
        accuracy=correct / tokens,
        tokens=tokens,
        bytes=num_bytes,
    )


def evaluate_text(model, documents, stride=None, on_progress=None):
    """Evaluates a model on documents, each encoded by the model's tokenizer and ended by its end-of-text token.

    Args:
        model: a `GPT2CausalLM` with a tokenizer.
        documents: strings.
        stride, on_progress: as in `evaluate_tokens`.
    """
    if model.tokenizer is None:
        raise UserError("the model has no tokenizer, expected one to evaluate text")
    end = [] if model.tokenizer.end_token_id is None else [model.tokenizer.end_token_id]
    token_ids, num_bytes = [], 0
    for document in documents:
        token_ids += [*model.tokenizer.encode(document), *end]
        num_bytes += len(document.encode("utf-8"))
    return evaluate_tokens(model, token_ids, num_bytes, stride, on_progress)


def _window_starts(num_tokens, window, stride):
    """Where windows begin; the last one reaches the last target."""
    return list(range(0, max(num_tokens - 1 - (window - stride), 1), stride))


def _rows(token_ids, starts, window, stride):
    """Inputs, targets and weights (rows, W) of the windows at `starts`, zeros past the end of the text."""
    places = np.array(starts)[:, None] + np.arange(window)[None, :]
    real = places < len(token_ids) - 1
    fresh = (np.arange(window)[None, :] >= window - stride) | (np.array(starts)[:, None] == 0)
    inputs = np.where(real, token_ids[np.minimum(places, len(token_ids) - 1)], 0)
    targets = np.where(real, token_ids[np.minimum(places + 1, len(token_ids) - 1)], 0)
    return inputs, targets, (real & fresh).astype(np.float32)


def _evaluation_step(model, jit_compile):
    @tf.function(jit_compile=jit_compile, autograph=False)
    def step(inputs, targets, weights):
        logits = model(inputs, training=False)
        losses = keras.ops.sparse_categorical_crossentropy(targets, logits, from_logits=True)
        correct = keras.ops.equal(keras.ops.argmax(logits, axis=-1), targets)
        return tf.reduce_sum(losses * weights), tf.reduce_sum(tf.cast(correct, tf.float32) * weights)

    return step
