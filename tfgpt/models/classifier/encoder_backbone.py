import keras
from keras import ops

from tfgpt.errors import UserError
from tfgpt.layers import (
    LayerNormalization,
    LearnedPositions,
    SinusoidalPositions,
    TokenEmbedding,
    TransformerEncoderBlock,
    padding_mask_to_attention_mask,
)
from tfgpt.models.gpt2.backbone import normal_initializer, positions_from_mask, split_inputs

POSITIONS = ("learned", "sinusoidal", "none")


@keras.saving.register_keras_serializable(package="tfgpt")
class EncoderBackbone(keras.Model):
    """The Transformer's encoder (Vaswani et al. 2017, section 3.1): every token looks at every other.

    Token and position vectors, `num_layers` encoder blocks, and with pre-norm a last normalization (post-norm ends with
    one). With sinusoidal positions the token vectors are multiplied by sqrt(D) (section 3.4), so that they are not
    drowned by the positions', whose numbers are about 1.

    Args:
        vocabulary_size: V.
        num_layers: L.
        num_heads: H.
        hidden_dim: D.
        intermediate_dim: F, by default 4 D.
        max_sequence_length: the window, in tokens.
        dropout: rate at the embeddings, the attention weights, and each sublayer's output.
        activation: of the feed-forward networks, by name.
        normalization: "pre" or "post" (see `tfgpt.layers.ResidualBlock`).
        positions: "learned", "sinusoidal" or "none", with which order is not seen.
        layer_norm_epsilon: of the normalizations.
        initializer_range: standard deviation of the initial kernels.
        dtype: a dtype or a Keras policy such as "mixed_bfloat16".

    Call arguments:
        inputs: token ids (B, T), or a dictionary `{"token_ids": (B, T), "padding_mask": (B, T)}`. Padding may stand
            anywhere; positions count the real tokens.

    Returns:
        Hidden states (B, T, D).

    Raises:
        UserError: for sequences longer than the window.

    Example:

    >>> backbone = EncoderBackbone(vocabulary_size=50, num_layers=1, num_heads=2, hidden_dim=8, max_sequence_length=16)
    >>> backbone(keras.ops.array([[1, 2, 3]])).shape
    TensorShape([1, 3, 8])
    """

    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        intermediate_dim=None,
        max_sequence_length=512,
        dropout=0.0,
        activation="gelu_tanh",
        normalization="pre",
        positions="learned",
        layer_norm_epsilon=1e-5,
        initializer_range=0.02,
        dtype=None,
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        if normalization not in ("pre", "post"):
            raise UserError(f"normalization is {normalization!r}, expected pre or post")
        if positions not in POSITIONS:
            raise UserError(f"positions is {positions!r}, expected one of {', '.join(POSITIONS)}")

        # === Config ===
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim or 4 * hidden_dim
        self.max_sequence_length = max_sequence_length
        self.dropout = dropout
        self.activation = activation
        self.normalization = normalization
        self.positions = positions
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_range = initializer_range

        # === Layers ===
        self.embedding_scale = hidden_dim**0.5 if positions == "sinusoidal" else 1.0
        self.token_embedding = TokenEmbedding(
            vocabulary_size,
            hidden_dim,
            embeddings_initializer=normal_initializer(initializer_range and initializer_range / self.embedding_scale),
            dtype=self.dtype_policy,
            name="token_embedding",
        )
        self.position_embedding = None
        if positions == "learned":
            self.position_embedding = LearnedPositions(
                max_sequence_length,
                hidden_dim,
                embeddings_initializer=normal_initializer(initializer_range),
                dtype=self.dtype_policy,
                name="position_embedding",
            )
        elif positions == "sinusoidal":
            self.position_embedding = SinusoidalPositions(hidden_dim, dtype=self.dtype_policy, name="positions")
        self.embeddings_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="embeddings_dropout")
        self.blocks = [
            TransformerEncoderBlock(
                num_heads,
                self.intermediate_dim,
                activation=activation,
                normalization=normalization,
                dropout=dropout,
                layer_norm_epsilon=layer_norm_epsilon,
                kernel_initializer=normal_initializer(initializer_range),
                dtype=self.dtype_policy,
                name=f"block_{i}",
            )
            for i in range(num_layers)
        ]
        self.final_norm = None
        if normalization == "pre":
            self.final_norm = LayerNormalization(epsilon=layer_norm_epsilon, dtype=self.dtype_policy, name="final_norm")
        self.build()

    def build(self, input_shape=None):
        hidden_shape = (None, None, self.hidden_dim)
        for layer in (self.token_embedding, self.position_embedding):
            if layer is not None:
                layer.build(None)
        for block in self.blocks:
            block.build(hidden_shape)
        if self.final_norm is not None:
            self.final_norm.build(hidden_shape)
        self.built = True

    def call(self, inputs, training=None):
        token_ids, padding_mask = split_inputs(inputs)
        length = token_ids.shape[1]
        if length is not None and length > self.max_sequence_length:
            raise UserError(
                f"the sequence has {length} tokens, expected at most the window's {self.max_sequence_length}"
            )
        mask = None if padding_mask is None else padding_mask_to_attention_mask(padding_mask)  # (B, 1, 1, T)
        x = self.token_embedding(token_ids)  # (B, T, D)
        if self.embedding_scale != 1.0:
            x = x * ops.cast(self.embedding_scale, x.dtype)
        if self.position_embedding is not None:
            positions = ops.arange(ops.shape(token_ids)[1])
            x = x + self.position_embedding(positions if padding_mask is None else positions_from_mask(padding_mask))
        x = self.embeddings_dropout(x, training=training)
        for block in self.blocks:
            x = block(x, attention_mask=mask, training=training)
        return x if self.final_norm is None else self.final_norm(x)

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "intermediate_dim": self.intermediate_dim,
            "max_sequence_length": self.max_sequence_length,
            "dropout": self.dropout,
            "activation": self.activation,
            "normalization": self.normalization,
            "positions": self.positions,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "initializer_range": self.initializer_range,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }
