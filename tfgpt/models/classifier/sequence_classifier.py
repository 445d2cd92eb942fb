import keras
from keras import ops

from tfgpt.atomic import atomic_directory
from tfgpt.classification import (
    BATCH_SIZE,
    check_labels,
    classifications,
    encode_texts,
    logits_of_rows,
    probabilities_of,
)
from tfgpt.errors import UserError
from tfgpt.layers import Dense
from tfgpt.models.gpt2.backbone import normal_initializer, split_inputs


class SequenceClassifier(keras.Model):
    """What classifiers share: a backbone, a vector made of its hidden states, and a linear map to the classes.

    An ordinary Keras model: `compile`, `fit` on `(inputs, class numbers)`, `evaluate`, `save("x.keras")`.
    `save_to_preset(directory)` writes a model directory.

    Args:
        backbone: a model of token ids (B, T) that gives hidden states (B, T, D).
        labels: the names of the C classes.
        tokenizer: what turns text into token ids (see `tfgpt.text`), for `classify` and `save_to_preset`.
        dropout: rate on the pooled vector.
        use_bias: whether the linear map has one.

    Call arguments:
        inputs: token ids (B, T), or a dictionary `{"token_ids": (B, T), "padding_mask": (B, T)}`, padded on either
            side.

    Returns:
        Logits (B, C), float32 under every dtype policy.

    Raises:
        UserError: for fewer than two labels, or one of them twice.
    """

    def __init__(self, backbone, labels, tokenizer=None, dropout=0.0, use_bias=True, **kwargs):
        super().__init__(dtype=backbone.dtype_policy, **kwargs)
        self.labels = tuple(str(label) for label in labels)
        check_labels(list(self.labels), "the classifier")
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.dropout = dropout
        self.pooled_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="pooled_dropout")
        self.score = Dense(
            len(self.labels),
            use_bias=use_bias,
            kernel_initializer=normal_initializer(backbone.initializer_range),
            dtype=self.dtype_policy,
            name="score",
        )
        self.score.build((None, backbone.hidden_dim))
        self.built = True

    def build(self, input_shape=None):
        pass

    def pool(self, x, padding_mask):
        """Hidden states (B, T, D) to vectors (B, D)."""
        raise NotImplementedError(f"{type(self).__name__} has no pooling")

    def features(self, inputs, training=None):
        """The vectors (B, D) of sequences that the classes are told by."""
        _, padding_mask = split_inputs(inputs)
        return self.pool(self.backbone(inputs, training=training), padding_mask)

    def call(self, inputs, training=None):
        x = self.pooled_dropout(self.features(inputs, training), training=training)  # (B, D)
        return ops.cast(self.score(x), "float32")  # as a language model's logits

    def classify(self, texts, batch_size=BATCH_SIZE, truncate=False):
        """The class of each of several texts.

        Args:
            texts: strings; a single one gives a single result.
            batch_size: texts at once.
            truncate: read the first tokens of a text that is longer than the window, rather than refuse it.

        Returns:
            A list of `tfgpt.classification.Classification`s: label, its probability, and all probabilities.

        Raises:
            UserError: for an empty text, or one that is longer than the window.
        """
        if isinstance(texts, str):
            return self.classify([texts], batch_size, truncate)[0]
        if self.tokenizer is None:
            raise UserError("the model has no tokenizer, expected one to classify text")
        rows = encode_texts(self.tokenizer, texts, self.backbone.max_sequence_length, truncate)
        if not rows:
            return []
        logits = logits_of_rows(self.logits, rows, batch_size)
        return classifications(probabilities_of(logits), self.labels)

    def logits(self, token_ids, padding_mask):
        """Logits (B, C), a NumPy array, of token ids and their mask, (B, T) each."""
        inputs = {"token_ids": ops.convert_to_tensor(token_ids), "padding_mask": ops.convert_to_tensor(padding_mask)}
        return ops.convert_to_numpy(self(inputs, training=False))

    def save_to_preset(self, directory, overwrite=False):
        """Writes a model directory (see DESIGN.md), atomically.

        Raises:
            UserError: if `directory` holds something and `overwrite` is false, or cannot be written.
        """
        from tfgpt.models.classifier.model_directory import write_model_files

        with atomic_directory(directory, overwrite=overwrite) as temporary:
            write_model_files(self, temporary)

    def get_config(self):
        return {
            "name": self.name,
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "labels": list(self.labels),
            "dropout": self.dropout,
        }

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("backbone")), **config)
