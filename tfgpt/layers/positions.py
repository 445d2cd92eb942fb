import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfgpt")
class LearnedPositions(keras.layers.Layer):
    """One learned vector a position, as in GPT-2 (Radford et al. 2018, section 4.1).

    Args:
        max_sequence_length: the number of positions.
        hidden_dim: D.
        embeddings_initializer: a Keras initializer.

    Call arguments:
        position_ids: integers (T,) or (B, T), each below `max_sequence_length`.

    Returns:
        (T, D) or (B, T, D), to be added to the token vectors.

    Example:

    >>> LearnedPositions(max_sequence_length=16, hidden_dim=4)(keras.ops.arange(5)).shape
    TensorShape([5, 4])
    """

    def __init__(self, max_sequence_length, hidden_dim, embeddings_initializer="uniform", **kwargs):
        super().__init__(**kwargs)
        self.max_sequence_length = max_sequence_length
        self.hidden_dim = hidden_dim
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)

    def build(self, input_shape=None):
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.max_sequence_length, self.hidden_dim),
            initializer=self.embeddings_initializer,
        )

    def call(self, position_ids):
        return ops.take(self.embeddings, position_ids, axis=0)

    def compute_output_shape(self, input_shape):
        return (*input_shape, self.hidden_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "max_sequence_length": self.max_sequence_length,
            "hidden_dim": self.hidden_dim,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
        }


@keras.saving.register_keras_serializable(package="tfgpt")
class SinusoidalPositions(keras.layers.Layer):
    """Sines and cosines of geometrically spaced wavelengths (Vaswani et al. 2017, section 3.5).

    `PE(p, 2i) = sin(p / 10000^(2i/D))`, `PE(p, 2i+1) = cos(p / 10000^(2i/D))`; no weights and no longest position.

    Args:
        hidden_dim: D, even.
        max_wavelength: 10000 in the paper.

    Call arguments:
        position_ids: integers (T,) or (B, T).

    Returns:
        (T, D) or (B, T, D).

    Example:

    >>> SinusoidalPositions(hidden_dim=4)(keras.ops.arange(5)).shape
    TensorShape([5, 4])
    """

    def __init__(self, hidden_dim, max_wavelength=10_000, **kwargs):
        super().__init__(**kwargs)
        if hidden_dim % 2:
            raise ValueError(f"sinusoidal positions need an even hidden dim, found {hidden_dim}")
        self.hidden_dim = hidden_dim
        self.max_wavelength = max_wavelength

    def call(self, position_ids):
        # float32 whatever the policy: in bfloat16 neighbouring positions above 256 would be the same number.
        exponents = ops.arange(0, self.hidden_dim, 2, dtype="float32") / self.hidden_dim
        angles = ops.cast(position_ids, "float32")[..., None] * self.max_wavelength**-exponents  # (..., D/2)
        waves = ops.stack([ops.sin(angles), ops.cos(angles)], axis=-1)  # (..., D/2, 2)
        waves = ops.reshape(waves, (*ops.shape(position_ids), self.hidden_dim))
        return ops.cast(waves, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (*input_shape, self.hidden_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "max_wavelength": self.max_wavelength,
        }
