"""What every runtime does around a classifier's logits, so that all give the same labels for the same texts."""

from __future__ import annotations

import dataclasses

import numpy as np

from tfgpt.errors import UserError

GPT2_CLASSIFIER = "GPT2ForSequenceClassification"  # Hugging Face's
ENCODER_CLASSIFIER = "EncoderClassifier"  # ours
BATCH_SIZE = 32


@dataclasses.dataclass(frozen=True)
class Classification:
    """The class of a text.

    Args:
        label: the likeliest.
        probability: of it.
        probabilities: by label, in the order of the model's classes.
    """

    label: str
    probability: float
    probabilities: dict[str, float]


def is_classifier(config):
    """Whether the contents of a config.json are a classifier's."""
    return any(name in (GPT2_CLASSIFIER, ENCODER_CLASSIFIER) for name in config.get("architectures") or ())


def read_labels(config, source):
    """The labels in a classifier's config.json, in the order of its logits.

    Args:
        config: its contents.
        source: its path, for messages.

    Raises:
        UserError: if `id2label` does not name classes 0 to C - 1, each differently.

    Example:

    >>> read_labels({"id2label": {"0": "bad", "1": "good"}}, "config.json")
    ['bad', 'good']
    """
    named = config.get("id2label")
    if named is None:  # as Hugging Face's tools have it
        return [f"LABEL_{i}" for i in range(config.get("num_labels") or 2)]
    if not isinstance(named, dict) or set(named) != {str(i) for i in range(len(named))}:
        raise UserError(f"{source} has id2label {named!r}, expected a name for each class from 0 on")
    labels = [str(named[str(i)]) for i in range(len(named))]
    check_labels(labels, source)
    return labels


def check_labels(labels, source):
    """Raises a `UserError` if there are fewer than two labels, or one of them twice."""
    if len(labels) < 2:
        raise UserError(f"{source} has {len(labels)} label ({', '.join(labels)}), expected at least 2 classes")
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"{source} has the label {label!r} twice, expected a name of its own for each class")


def encode_texts(tokenizer, texts, window, truncate=False):
    """Token ids of each of several texts, as a classifier takes them.

    Args:
        tokenizer: a `tfgpt.text.Tokenizer`.
        texts: strings.
        window: the most tokens of a text.
        truncate: read the first tokens of a longer text, rather than refuse it.

    Raises:
        UserError: for a text without tokens, or one that is longer than the window.
    """
    rows = tokenizer.encode_batch(list(texts))
    for number, row in enumerate(rows):
        if not row:
            raise UserError(f"text {number} is empty, expected at least one token to classify")
        if len(row) > window and not truncate:
            raise UserError(
                f"text {number} has {len(row)} tokens, expected at most the window's {window}; truncation (--truncate) "
                "reads its first ones"
            )
    return [row[:window] for row in rows]


def pad_right(rows, width=None):
    """Token id lists as arrays `token_ids` and `padding_mask`, (B, T) int32, padded on the right with zeros.

    Args:
        rows: of at most T tokens each.
        width: T; by default the longest row's.

    Example:

    >>> token_ids, padding_mask = pad_right([[5, 6], [7]])
    >>> token_ids.tolist(), padding_mask.tolist()
    ([[5, 6], [7, 0]], [[1, 1], [1, 0]])
    """
    width = max(map(len, rows)) if width is None else width
    token_ids = np.zeros((len(rows), width), np.int32)
    padding_mask = np.zeros((len(rows), width), np.int32)
    for number, row in enumerate(rows):
        token_ids[number, : len(row)] = row
        padding_mask[number, : len(row)] = 1
    return token_ids, padding_mask


def logits_of_rows(logits, rows, batch_size=BATCH_SIZE):
    """The logits (N, C) of token id lists, in batches of similar lengths, so that little is computed for padding.

    Args:
        logits: a function of `token_ids` and `padding_mask`, (B, T) each.
        rows: N of them, none of them empty.
        batch_size: B.
    """
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    found = [None] * len(rows)
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        for number, row in zip(chosen, np.asarray(logits(*pad_right([rows[i] for i in chosen]))), strict=True):
            found[number] = row
    return np.stack(found)


def probabilities_of(logits):
    """The softmax of logits (..., C), in float64.

    Example:

    >>> probabilities_of(np.array([[0.0, 0.0]])).tolist()
    [[0.5, 0.5]]
    """
    logits = np.asarray(logits, np.float64)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def classifications(probabilities, labels):
    """A `Classification` for each row of probabilities (N, C)."""
    return [
        Classification(
            label=labels[int(np.argmax(row))],
            probability=float(np.max(row)),
            probabilities=dict(zip(labels, map(float, row), strict=True)),
        )
        for row in np.asarray(probabilities)
    ]
