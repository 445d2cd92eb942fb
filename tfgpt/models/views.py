"""What a model shows of how it reads a text: attention weights, and what its layers would say."""

import dataclasses

import numpy as np
from keras import ops

from tfgpt.errors import UserError


@dataclasses.dataclass(frozen=True)
class AttentionView:
    """Where tokens look.

    Attributes:
        queries: the tokens that look, T texts.
        keys: the tokens that are looked at, S texts; in self-attention the same.
        weights: (L, H, T, S), float32: each layer's and head's softmax, whose rows sum to one.
    """

    queries: tuple
    keys: tuple
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class TranslationAttention:
    """Where the tokens of a translation pair look.

    Attributes:
        encoder: the source's tokens at each other.
        decoder: the target's at those before them.
        cross: the target's at the source's.
    """

    encoder: AttentionView
    decoder: AttentionView
    cross: AttentionView


@dataclasses.dataclass(frozen=True)
class LogitLens:
    """What the model would say after each layer, if that were the last (nostalgebraist 2020, "interpreting GPT: the
    logit lens").

    Attributes:
        tokens: T texts.
        top_ids: (L, T, k), the likeliest next tokens, the likeliest first.
        top_tokens: their texts, nested lists of this shape.
        probabilities: (L, T, k), float32.
    """

    tokens: tuple
    top_ids: np.ndarray
    top_tokens: list
    probabilities: np.ndarray


def attention_view(shown, attentions, queries, keys):
    """The `AttentionView` of one text or pair.

    Args:
        shown: of `tfgpt.layers.observe`, around a call with one row.
        attentions: each layer's `ResidualBlock` around attention.
        queries, keys: texts of the tokens.
    """
    weights = [ops.convert_to_numpy(shown[attention.sublayer])[0] for attention in attentions]  # (H, T, S) each
    return AttentionView(tuple(queries), tuple(keys), np.stack(weights))


def logit_lens(shown, blocks, logits, tokens, tokenizer, top_k):
    """The `LogitLens` of one text.

    Args:
        shown: of `tfgpt.layers.observe`, around a call with one row.
        blocks: of the decoder, in order.
        logits: what a model does after its last block: states (1, T, D) to logits (1, T, V).
        tokens: texts of the tokens.
        tokenizer: for the texts of other tokens, or None.
        top_k: how many tokens.

    Raises:
        UserError: if `top_k` is not from 1 to V.
    """
    ids, probabilities = [], []
    for block in blocks:
        predicted = ops.softmax(logits(shown[block.feed_forward])[0], axis=-1)  # (T, V), one layer at a time
        if not 1 <= top_k <= predicted.shape[-1]:
            raise UserError(f"top_k is {top_k}, expected 1 to {predicted.shape[-1]}, the size of the vocabulary")
        top, top_ids = ops.top_k(predicted, top_k)
        ids.append(ops.convert_to_numpy(top_ids))
        probabilities.append(ops.convert_to_numpy(top))
    top_tokens = [[token_texts(tokenizer, position) for position in layer] for layer in ids]
    return LogitLens(tuple(tokens), np.stack(ids), top_tokens, np.stack(probabilities))


def encode_view(model, name, text, first=(), last=()):
    """Token ids of a text to be looked at, which may be given as token ids.

    Args:
        model: whose backbone and tokenizer it is for.
        name: of the text, in errors.
        text: a string, or a list of token ids.
        first, last: token ids that stand around a string.

    Raises:
        UserError: if there are none, too many for the window, or one that is not in the vocabulary.
    """
    if isinstance(text, str):
        if model.tokenizer is None:
            raise UserError(f"the model has no tokenizer, expected a {name} of token ids")
        token_ids = [*first, *model.tokenizer.encode(text), *last]
    else:
        token_ids = [int(token_id) for token_id in text]
    window, vocabulary_size = model.backbone.max_sequence_length, model.backbone.vocabulary_size
    if not 1 <= len(token_ids) <= window:
        raise UserError(f"the {name} has {len(token_ids)} tokens, expected 1 to the window's {window}")
    wrong = [token_id for token_id in token_ids if not 0 <= token_id < vocabulary_size]
    if wrong:
        raise UserError(f"the {name} has token id {wrong[0]}, expected ids from 0 to {vocabulary_size - 1}")
    return token_ids


def token_texts(tokenizer, token_ids):
    """What to show of tokens: their texts, or without a tokenizer their numbers."""
    return [str(i) for i in token_ids] if tokenizer is None else tokenizer.token_texts(token_ids)
