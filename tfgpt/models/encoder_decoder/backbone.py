import keras
from keras import ops

from tfgpt.errors import UserError
from tfgpt.layers import (
    LayerNormalization,
    LearnedPositions,
    SinusoidalPositions,
    TokenEmbedding,
    TransformerDecoderBlock,
    TransformerEncoderBlock,
    decoder_mask,
    padding_mask_to_attention_mask,
)

POSITIONS = ("sinusoidal", "learned")


@keras.saving.register_keras_serializable(package="tfgpt")
class EncoderDecoderBackbone(keras.Model):
    """The original Transformer without its output projection ("Attention Is All You Need", Vaswani et al. 2017).

    The encoder reads the source; the decoder reads the target's past and, by cross-attention, the encoder's output
    ("memory"). Token vectors are drawn with standard deviation 1/sqrt(D) and multiplied by sqrt(D) (section 3.4), so
    that they are as large as the positions' and, as output projection, give logits of the size of one.

    Args:
        vocabulary_size: V, of the joint vocabulary of both languages.
        num_encoder_layers, num_decoder_layers: L of each stack.
        num_heads: H.
        hidden_dim: D.
        intermediate_dim: F, by default 4 D.
        max_sequence_length: the most tokens of a source, and of a target.
        dropout: rate at the paper's places, sums of embeddings and positions and each sublayer's output (section 5.4).
        attention_dropout: rate on the attention weights; by default `dropout`.
        activation: of the feed-forward networks, by name; "relu" in the paper.
        normalization: "post" as in the paper; "pre" normalizes each sublayer's input, and both stacks' outputs, and
            trains without care (Xiong et al. 2020); "none".
        positions: "sinusoidal" or "learned".
        share_embeddings: one matrix for source, target and output (section 3.4; Press and Wolf 2017); else the source
            has its own, and the output is tied to the target's.
        scale_embeddings: whether token vectors are multiplied by sqrt(D).
        layer_norm_epsilon: of the normalizations.
        dtype: a dtype or a Keras policy such as "mixed_bfloat16".

    Call arguments:
        inputs: a dictionary: `source_ids` (B, S), `target_ids` (B, T) and, where sources are padded,
            `source_padding_mask` (B, S), nonzero at real tokens. Padding stands on the right. A padded target needs no
            mask: no real token sees what comes after it.

    Returns:
        Hidden states of the decoder (B, T, D).

    Raises:
        UserError: for sequences longer than `max_sequence_length`.

    Example:

    >>> backbone = EncoderDecoderBackbone(50, 2, 2, num_heads=2, hidden_dim=8, max_sequence_length=16)
    >>> inputs = {"source_ids": ops.array([[1, 2, 3]]), "target_ids": ops.array([[4, 5]])}
    >>> backbone(inputs).shape
    TensorShape([1, 2, 8])
    """

    def __init__(
        self,
        vocabulary_size,
        num_encoder_layers,
        num_decoder_layers,
        num_heads,
        hidden_dim,
        intermediate_dim=None,
        max_sequence_length=256,
        dropout=0.0,
        attention_dropout=None,
        activation="relu",
        normalization="pre",
        positions="sinusoidal",
        share_embeddings=True,
        scale_embeddings=True,
        layer_norm_epsilon=1e-5,
        dtype=None,
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        if positions not in POSITIONS:
            raise ValueError(f"positions is {positions!r}, expected one of {', '.join(POSITIONS)}")

        # === Config ===
        self.vocabulary_size = vocabulary_size
        self.num_encoder_layers = num_encoder_layers
        self.num_decoder_layers = num_decoder_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim or 4 * hidden_dim
        self.max_sequence_length = max_sequence_length
        self.dropout = dropout
        self.attention_dropout = dropout if attention_dropout is None else attention_dropout
        self.activation = activation
        self.normalization = normalization
        self.positions = positions
        self.share_embeddings = share_embeddings
        self.scale_embeddings = scale_embeddings
        self.layer_norm_epsilon = layer_norm_epsilon

        # === Layers ===
        names = ("embedding",) if share_embeddings else ("target_embedding", "source_embedding")
        embeddings = [self._token_embedding(name) for name in names]
        self.target_embedding, self.source_embedding = embeddings[0], embeddings[-1]
        self.source_positions = self._positions("source_positions")
        self.target_positions = self._positions("target_positions")
        self.source_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="source_dropout")
        self.target_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="target_dropout")
        self.encoder_blocks = [
            self._block(TransformerEncoderBlock, f"encoder_block_{i}") for i in range(num_encoder_layers)
        ]
        self.decoder_blocks = [
            self._block(TransformerDecoderBlock, f"decoder_block_{i}", cross_attention=True)
            for i in range(num_decoder_layers)
        ]
        self.encoder_norm = self.decoder_norm = None
        if normalization == "pre":
            self.encoder_norm = self._norm("encoder_norm")
            self.decoder_norm = self._norm("decoder_norm")
        self.build()

    def _token_embedding(self, name):
        return TokenEmbedding(
            self.vocabulary_size,
            self.hidden_dim,
            embeddings_initializer=keras.initializers.RandomNormal(stddev=self.hidden_dim**-0.5),
            dtype=self.dtype_policy,
            name=name,
        )

    def _positions(self, name):
        if self.positions == "sinusoidal":
            return SinusoidalPositions(self.hidden_dim, dtype=self.dtype_policy, name=name)
        stddev = 1.0 if self.scale_embeddings else self.hidden_dim**-0.5  # as large as the token vectors
        return LearnedPositions(
            self.max_sequence_length,
            self.hidden_dim,
            embeddings_initializer=keras.initializers.RandomNormal(stddev=stddev),
            dtype=self.dtype_policy,
            name=name,
        )

    def _block(self, block_class, name, **options):
        return block_class(
            self.num_heads,
            self.intermediate_dim,
            activation=self.activation,
            normalization=self.normalization,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            layer_norm_epsilon=self.layer_norm_epsilon,
            dtype=self.dtype_policy,
            name=name,
            **options,
        )

    def _norm(self, name):
        return LayerNormalization(epsilon=self.layer_norm_epsilon, dtype=self.dtype_policy, name=name)

    def build(self, input_shape=None):
        hidden_shape = (None, None, self.hidden_dim)
        for layer in (self.target_embedding, self.source_embedding, self.source_positions, self.target_positions):
            if not layer.built:
                layer.build(None)
        for block in self.encoder_blocks:
            block.build(hidden_shape)
        for block in self.decoder_blocks:
            block.build(hidden_shape, memory_shape=hidden_shape)
        for norm in (self.encoder_norm, self.decoder_norm):
            if norm is not None:
                norm.build(hidden_shape)
        self.built = True

    def call(self, inputs, training=None):
        mask = inputs.get("source_padding_mask")
        memory = self.encode(inputs["source_ids"], mask, training=training)
        return self.decode(inputs["target_ids"], memory, mask, training=training)

    def encode(self, source_ids, source_padding_mask=None, training=None):
        """The encoder's output for sources (B, S): memory (B, S, D)."""
        self._check_length("source", source_ids)
        mask = None if source_padding_mask is None else padding_mask_to_attention_mask(source_padding_mask)
        positions = self.source_positions(ops.arange(ops.shape(source_ids)[1]))
        x = self._embed(self.source_embedding, source_ids) + positions  # (B, S, D)
        x = self.source_dropout(x, training=training)
        for block in self.encoder_blocks:
            x = block(x, attention_mask=mask, training=training)
        return x if self.encoder_norm is None else self.encoder_norm(x)

    def decode(
        self,
        target_ids,
        memory=None,
        source_padding_mask=None,
        memory_cache=None,
        cache=None,
        cache_index=None,
        training=None,
    ):
        """Hidden states of targets.

        Args:
            target_ids: (B, T); with a cache the new tokens alone.
            memory: (B, S, D), of `encode`.
            source_padding_mask: (B, S), or None where no source is padded.
            memory_cache: of `memory_cache(memory)`, in place of `memory`: what cross-attention computes of it.
            cache: of self-attention, a pair (keys, values) a layer, each (B, H, S', K).
            cache_index: the slot of the first new token in a preallocated cache; None grows the cache (see
                `MultiHeadAttention`). The tokens before are those of the slots before.
            training: whether dropout is on.

        Returns:
            (B, T, D); with a cache `(hidden states, cache)`.
        """
        self._check_length("target", target_ids)
        length = ops.shape(target_ids)[1]
        past, slots = 0, length
        if cache is not None:
            held = ops.shape(cache[0][0])[2]
            past, slots = (held, held + length) if cache_index is None else (cache_index, held)
        mask = decoder_mask(length, slots, offset=past)  # (T, S')
        memory_mask = None if source_padding_mask is None else padding_mask_to_attention_mask(source_padding_mask)

        positions = self.target_positions(ops.arange(length) + past)
        x = self._embed(self.target_embedding, target_ids) + positions  # (B, T, D)
        x = self.target_dropout(x, training=training)
        new_cache = []
        for i, block in enumerate(self.decoder_blocks):
            options = {} if cache is None else {"cache": cache[i], "cache_index": cache_index}
            if memory_cache is not None:
                options["memory_cache"] = memory_cache[i]
            x = block(
                x,
                memory,
                attention_mask=mask,
                use_causal_mask=False,
                memory_attention_mask=memory_mask,
                training=training,
                **options,
            )
            if cache is not None:
                x, layer_cache = x
                new_cache.append(layer_cache)
        if self.decoder_norm is not None:
            x = self.decoder_norm(x)
        return x if cache is None else (x, new_cache)

    def memory_cache(self, memory):
        """What every step of decoding needs of memory (B, S, D): a pair (keys, values) a layer, each (B, H, S, K)."""
        return [block.memory_attention.sublayer.keys_and_values(memory) for block in self.decoder_blocks]

    def empty_cache(self, batch_size, length=0):
        """A cache of zeros for self-attention: `length` slots to be filled in place, or none, for one that grows."""
        shape = (batch_size, self.num_heads, length, self.hidden_dim // self.num_heads)
        zeros = [ops.zeros(shape, self.compute_dtype) for _ in range(2 * self.num_decoder_layers)]
        return list(zip(zeros[::2], zeros[1::2], strict=True))

    def _embed(self, embedding, token_ids):
        x = embedding(token_ids)
        return x * ops.cast(self.hidden_dim**0.5, x.dtype) if self.scale_embeddings else x

    def _check_length(self, side, token_ids):
        length = token_ids.shape[1]
        if length is not None and length > self.max_sequence_length:
            raise UserError(f"the {side} has {length} tokens, expected at most the window's {self.max_sequence_length}")

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "num_encoder_layers": self.num_encoder_layers,
            "num_decoder_layers": self.num_decoder_layers,
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "intermediate_dim": self.intermediate_dim,
            "max_sequence_length": self.max_sequence_length,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "activation": self.activation,
            "normalization": self.normalization,
            "positions": self.positions,
            "share_embeddings": self.share_embeddings,
            "scale_embeddings": self.scale_embeddings,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }
