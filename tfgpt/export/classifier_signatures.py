"""What a classifier's SavedModel answers to: text in, classes out, by TensorFlow Serving's Predict and Classify."""

from __future__ import annotations

import tensorflow as tf

from tfgpt.export.signatures import SERVE_DEFAULT, TEXT, TOKENS, signature_function
from tfgpt.generation.request_checks import require, require_rows, require_tokens

CLASSIFY = "classify"
CLASSIFY_METHOD = "tensorflow/serving/classify"
EXAMPLES = tf.TensorSpec([None], tf.string, "inputs")  # TensorFlow Serving's name for serialized examples
FEATURE = "text"


class ClassifierSignatures:
    """The signatures of a classifier, a method each.

    Args:
        model: a `SequenceClassifier` that computes in float32.
        tokenizer: of `tfgpt.text.in_graph_tokenizer`, or None for the signature of tokens alone.
    """

    def __init__(self, model, tokenizer=None):
        self.model, self.tokenizer = model, tokenizer
        self.window, self.vocabulary_size = model.backbone.max_sequence_length, model.backbone.vocabulary_size
        self.labels = tf.constant(model.labels)
        # One copy of the model's graph, whatever asks for it.
        self._logits = signature_function(self._read, TOKENS)

    def functions(self):
        """Name → `tf.function`, the default among them."""
        tokens = signature_function(self.tokens, TOKENS)
        if self.tokenizer is None:
            return {SERVE_DEFAULT: tokens, "tokens": tokens}
        return {
            SERVE_DEFAULT: signature_function(self.predict, {"text": TEXT}),
            CLASSIFY: signature_function(self.classify, {"inputs": EXAMPLES}),
            "tokens": tokens,
        }

    def tokens(self, token_ids, padding_mask):
        """The classes of rows of tokens.

        Args:
            token_ids: (B, T) int32, padded on either side.
            padding_mask: (B, T) int32, 1 at tokens.

        Returns:
            `logits` and `probabilities` (B, C) float32; `label` (B,) string.
        """
        token_ids, padding_mask = require_rows(token_ids=token_ids, padding_mask=padding_mask)
        logits = self._logits(*require_tokens(token_ids, padding_mask, self.vocabulary_size, self.window))
        label = tf.gather(self.labels, tf.argmax(logits, axis=-1))
        return {"logits": logits, "probabilities": tf.nn.softmax(logits), "label": label}

    def predict(self, text):
        """The classes of texts.

        Args:
            text: (B,) string, UTF-8; what is not is read as U+FFFD.

        Returns:
            `label` (B,) string, the likeliest; `probabilities` (B, C) float32, in the order of the model's classes.
        """
        (text,) = require_rows(text=text)
        outputs = self._of_text(text)
        return {"label": outputs["label"], "probabilities": outputs["probabilities"]}

    def classify(self, inputs):
        """The classes of texts in examples, for TensorFlow Serving's Classify.

        Args:
            inputs: (B,) string, serialized `tf.train.Example`s, each with one string in its feature "text".

        Returns:
            `classes` (B, C) string, all labels in the model's order, and `scores` (B, C) float32, their probabilities.
        """
        (inputs,) = require_rows(inputs=inputs)
        features = {FEATURE: tf.io.FixedLenFeature([], tf.string)}
        probabilities = self._of_text(tf.io.parse_example(inputs, features)[FEATURE])["probabilities"]
        classes = tf.tile(self.labels[None], [tf.shape(probabilities)[0], 1])
        return {"classes": classes, "scores": probabilities}

    def _of_text(self, text):
        tokens = self.tokenizer.encode(text)
        lengths = tf.cast(tokens.row_lengths(), tf.int32)
        lengths = require("the number of tokens", lengths, lengths > 0, "at least 1: the text is empty")
        lengths = require("the number of tokens", lengths, lengths <= self.window, f"at most {self.window}, the window")
        with tf.control_dependencies([lengths]):
            token_ids = tokens.to_tensor()
        padding_mask = tf.sequence_mask(lengths, tf.shape(token_ids)[1], tf.int32)
        return self.tokens(token_ids, padding_mask)

    def _read(self, token_ids, padding_mask):
        return self.model({"token_ids": token_ids, "padding_mask": padding_mask}, training=False)
