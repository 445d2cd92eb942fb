"""The small interface that every runtime of a classifier's release answers to."""

from __future__ import annotations

import numpy as np

from tfgpt.classification import (
    BATCH_SIZE,
    classifications,
    encode_texts,
    logits_of_rows,
    probabilities_of,
    read_labels,
)
from tfgpt.errors import UserError


class ClassifierRunner:
    """A classifier on some runtime.

    A runtime implements `logits`, and `probabilities` where its artifact takes text.

    Args:
        config: the contents of the release's config.json.
        source: its path, for messages.
    """

    name = ""

    def __init__(self, config, source):
        self.labels = read_labels(config, source)
        self.window = config.get("n_positions") or config.get("max_position_embeddings")
        if not isinstance(self.window, int):
            raise UserError(f"{source} has no n_positions or max_position_embeddings, expected the window in tokens")

    def logits(self, token_ids, padding_mask):
        """Logits (B, C) of token ids and their mask, (B, T) each, padded on either side."""
        raise NotImplementedError(f"{type(self).__name__} has no logits")

    def probabilities(self, tokenizer, texts, truncate=False):
        """Probabilities (N, C) of texts.

        Args:
            tokenizer: a `tfgpt.text.Tokenizer`.
            texts: strings.
            truncate: read the first tokens of texts that are longer than the window, rather than refuse them.

        Raises:
            UserError: for an empty text, or one that is longer than the window.
        """
        rows = encode_texts(tokenizer, texts, self.window, truncate)
        return probabilities_of(logits_of_rows(self.logits, rows, BATCH_SIZE))

    def classify(self, tokenizer, texts, truncate=False):
        """A `tfgpt.classification.Classification` of each text; arguments as in `probabilities`."""
        return classifications(self.probabilities(tokenizer, texts, truncate), self.labels) if texts else []


class OnnxClassifier(ClassifierRunner):
    """Runs `onnx/model.onnx` on ONNX Runtime, without TensorFlow.

    Args:
        config, source: as in `ClassifierRunner`.
        session: an ONNX Runtime session.
    """

    name = "onnx"

    def __init__(self, config, source, session):
        super().__init__(config, source)
        self.session = session

    def logits(self, token_ids, padding_mask):
        feeds = {"input_ids": np.asarray(token_ids, np.int64), "attention_mask": np.asarray(padding_mask, np.int64)}
        return self.session.run(["logits"], feeds)[0]
