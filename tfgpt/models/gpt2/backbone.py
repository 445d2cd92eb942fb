import keras
from keras import ops

from tfgpt.errors import UserError
from tfgpt.layers import LayerNormalization, LearnedPositions, TokenEmbedding, TransformerDecoderBlock, decoder_mask


@keras.saving.register_keras_serializable(package="tfgpt")
class GPT2Backbone(keras.Model):
    """GPT-2 without its output projection ("Language Models are Unsupervised Multitask Learners", Radford et al. 2019).

    Token and position vectors, `num_layers` pre-norm decoder blocks, a last normalization. Kernels are initialized
    with standard deviation 0.02, those that write into the residual stream with 0.02 / sqrt(2 L) (section 2.3), so
    that its variance does not grow with depth.

    Args:
        vocabulary_size: V.
        num_layers: L.
        num_heads: H.
        hidden_dim: D.
        intermediate_dim: F, by default 4 D.
        max_sequence_length: the context window, in tokens.
        dropout: rate at GPT-2's three places: embeddings, attention weights, and each sublayer's output.
        activation: of the feed-forward networks, by name.
        layer_norm_epsilon: of the normalizations.
        initializer_range: standard deviation of the initial weights, 0.02 in GPT-2.
        dtype: a dtype or a Keras policy such as "mixed_bfloat16".

    Call arguments:
        inputs: token ids (B, T), or a dictionary `{"token_ids": (B, T), "padding_mask": (B, T)}`. Padding may stand
            on either side; positions are counted from each row's first real token.
        cache: the KV cache, a pair (keys, values) a layer, each (B, H, S, K). The padding mask then covers the keys,
            (B, S + T) with a growing cache and (B, S) with a preallocated one.
        cache_index: the slot of the first new token in a preallocated cache; None grows the cache (see
            `MultiHeadAttention`).
        position_ids: (B, T) or (T,); by default counted from the padding mask. Required with a cache.

    Returns:
        Hidden states (B, T, D); with a cache `(hidden states, cache)`.

    Raises:
        UserError: for sequences longer than the context window.

    Example:

    >>> backbone = GPT2Backbone(vocabulary_size=50, num_layers=2, num_heads=2, hidden_dim=8, max_sequence_length=16)
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
        max_sequence_length=1024,
        dropout=0.0,
        activation="gelu_tanh",
        layer_norm_epsilon=1e-5,
        initializer_range=0.02,
        dtype=None,
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)

        # === Config ===
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim or 4 * hidden_dim
        self.max_sequence_length = max_sequence_length
        self.dropout = dropout
        self.activation = activation
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_range = initializer_range

        # === Layers ===
        self.token_embedding = TokenEmbedding(
            vocabulary_size,
            hidden_dim,
            embeddings_initializer=normal_initializer(initializer_range),
            dtype=self.dtype_policy,
            name="token_embedding",
        )
        self.position_embedding = LearnedPositions(
            max_sequence_length,
            hidden_dim,
            embeddings_initializer=normal_initializer(initializer_range),
            dtype=self.dtype_policy,
            name="position_embedding",
        )
        self.embeddings_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="embeddings_dropout")
        self.blocks = [
            TransformerDecoderBlock(
                num_heads,
                self.intermediate_dim,
                activation=activation,
                normalization="pre",
                dropout=dropout,
                layer_norm_epsilon=layer_norm_epsilon,
                kernel_initializer=normal_initializer(initializer_range),
                output_initializer=normal_initializer(initializer_range * (2 * num_layers) ** -0.5),
                dtype=self.dtype_policy,
                name=f"block_{i}",
            )
            for i in range(num_layers)
        ]
        self.final_norm = LayerNormalization(epsilon=layer_norm_epsilon, dtype=self.dtype_policy, name="final_norm")
        self.build()

    def build(self, input_shape=None):
        hidden_shape = (None, None, self.hidden_dim)
        self.token_embedding.build()
        self.position_embedding.build()
        for block in self.blocks:
            block.build(hidden_shape)
        self.final_norm.build(hidden_shape)
        self.built = True

    def call(self, inputs, cache=None, cache_index=None, position_ids=None, training=None):
        token_ids, padding_mask = split_inputs(inputs)
        length = token_ids.shape[1]
        if length is not None and length > self.max_sequence_length:
            # Compiled by XLA, positions past the last one would silently become the last one.
            raise UserError(
                f"the sequence has {length} tokens, expected at most the window's {self.max_sequence_length}"
            )
        query_length = ops.shape(token_ids)[1]
        past_length = 0
        key_length = query_length
        if cache is not None:
            slots = ops.shape(cache[0][0])[2]
            past_length = slots if cache_index is None else cache_index
            key_length = slots + query_length if cache_index is None else slots
        if position_ids is None:
            if cache is not None:
                raise ValueError("a call with a cache needs position_ids")
            position_ids = positions_from_mask(padding_mask) if padding_mask is not None else ops.arange(query_length)
        mask = decoder_mask(query_length, key_length, padding_mask, offset=past_length)  # (T, S) or (B, 1, T, S)

        x = self.token_embedding(token_ids) + self.position_embedding(position_ids)  # (B, T, D)
        x = self.embeddings_dropout(x, training=training)
        new_cache = []
        for i, block in enumerate(self.blocks):
            if cache is None:
                x = block(x, attention_mask=mask, use_causal_mask=False, training=training)
            else:
                x, layer_cache = block(
                    x,
                    attention_mask=mask,
                    use_causal_mask=False,
                    cache=cache[i],
                    cache_index=cache_index,
                    training=training,
                )
                new_cache.append(layer_cache)
        x = self.final_norm(x)
        return x if cache is None else (x, new_cache)

    def empty_cache(self, batch_size, length=0):
        """A KV cache of zeros: `length` slots to be filled in place, or none, for a cache that grows."""
        shape = (batch_size, self.num_heads, length, self.hidden_dim // self.num_heads)
        return [(ops.zeros(shape, self.compute_dtype), ops.zeros(shape, self.compute_dtype)) for _ in self.blocks]

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
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "initializer_range": self.initializer_range,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }


def split_inputs(inputs):
    """Token ids and padding mask (or None) of a model's inputs, which may be a dictionary of both."""
    if isinstance(inputs, dict):
        return inputs["token_ids"], inputs.get("padding_mask")
    return inputs, None


def positions_from_mask(padding_mask):
    """Positions (B, T) counted from each row's first real token; padding gets a position that exists."""
    counts = ops.cumsum(ops.cast(padding_mask, "int32"), axis=1)
    return ops.maximum(counts - 1, 0)


def normal_initializer(stddev):
    """Normal random numbers of this standard deviation; zeros, which cost nothing, where it is 0."""
    return keras.initializers.RandomNormal(stddev=stddev) if stddev else keras.initializers.Zeros()
