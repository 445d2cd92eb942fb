import keras
from keras import ops

from tfgpt.layers.dense import reshapable
from tfgpt.layers.fusible import fusible


@keras.saving.register_keras_serializable(package="tfgpt")
class TokenEmbedding(keras.layers.Layer):
    """Token vectors, and with `reverse=True` the tied output projection (Press and Wolf 2017).

    Args:
        vocabulary_size: V.
        hidden_dim: D.
        embeddings_initializer: a Keras initializer.

    Call arguments:
        inputs: token ids (B, T); with `reverse` hidden states (..., D).
        reverse: project hidden states onto the vocabulary with the same matrix.

    Returns:
        Vectors (B, T, D); with `reverse` logits (..., V).

    Example:

    >>> embedding = TokenEmbedding(vocabulary_size=10, hidden_dim=4)
    >>> x = embedding(keras.ops.array([[1, 2, 3]]))
    >>> x.shape, embedding(x, reverse=True).shape
    (TensorShape([1, 3, 4]), TensorShape([1, 3, 10]))
    """

    def __init__(self, vocabulary_size, hidden_dim, embeddings_initializer="uniform", **kwargs):
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.hidden_dim = hidden_dim
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)

    def build(self, input_shape=None):
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.vocabulary_size, self.hidden_dim),
            initializer=self.embeddings_initializer,
            autocast=False,  # which would cast the whole matrix to look up a few rows
        )

    def call(self, inputs, reverse=False):
        if not reverse:
            return ops.cast(ops.take(self.embeddings, inputs, axis=0), self.compute_dtype)
        shape, embeddings = reshapable(inputs), ops.cast(self.embeddings, self.compute_dtype)
        x = ops.reshape(inputs, (-1, self.hidden_dim))
        if inputs.shape[-2] == 1:  # a step of decoding: few rows
            logits = ops.transpose(ops.matmul(embeddings, ops.transpose(x)))
        else:
            logits = project(x, embeddings)
        return ops.reshape(logits, (*shape[:-1], self.vocabulary_size))

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "hidden_dim": self.hidden_dim,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
        }


@fusible
def project(x, embeddings):
    """Logits (N, V) of rows (N, D): their products with each token's vector."""
    return ops.matmul(x, ops.transpose(embeddings))
