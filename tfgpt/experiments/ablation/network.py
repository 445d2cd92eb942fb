import keras
from keras import ops

from tfgpt.layers import LayerNormalization, SinusoidalPositions, TokenEmbedding, TransformerDecoderBlock, decoder_mask

# What differs between the networks that are compared, as arguments of `TransformerDecoderBlock`. Without residual
# connections, normalization stays where it is in the pre-norm network, so that the connections are all that is missing.
VARIANTS = {
    "pre": {"normalization": "pre", "residual": True},
    "post": {"normalization": "post", "residual": True},
    "none": {"normalization": "none", "residual": True},
    "no_residual": {"normalization": "pre", "residual": False},
}


class AblationNetwork(keras.Model):
    """A causal language model with pre-norm, post-norm, no normalization, or no residual connections.

    Everything else is the same: kernels by Glorot and Bengio 2010, embeddings of unit variance after their factor
    sqrt(D), sinusoidal positions, the token embedding as output projection (Vaswani et al. 2017, section 3.4 and 3.5).
    A last normalization stands where there is one in each block's branch, and not after it (Xiong et al. 2020,
    section 3.1).

    Args:
        variant: a name in `VARIANTS`.
        vocabulary_size: V.
        depth: L, blocks.
        num_heads: H.
        hidden_dim: D, even.
        residual_scaling: whether kernels that write into the residual stream begin 1 / sqrt(2 L) as large, so that the
            2 L branches together add the variance of one (Radford et al. 2019, section 2.3).

    Call arguments:
        token_ids: (B, T).

    Returns:
        Logits (B, T, V), and L + 1 states (B, T, D): the embeddings, and what each block gives.

    Example:

    >>> network = AblationNetwork("post", vocabulary_size=10, depth=2, num_heads=2, hidden_dim=8)
    >>> logits, states = network(ops.array([[1, 2, 3]]))
    >>> logits.shape, len(states)
    (TensorShape([1, 3, 10]), 3)
    """

    def __init__(self, variant, vocabulary_size, depth, num_heads, hidden_dim, residual_scaling=False):
        super().__init__()
        self.hidden_dim = hidden_dim
        kernel_initializer = keras.initializers.GlorotUniform()
        scaled = keras.initializers.VarianceScaling(1.0 / (2 * depth), mode="fan_avg", distribution="uniform")

        # === Layers ===
        self.token_embedding = TokenEmbedding(
            vocabulary_size,
            hidden_dim,
            embeddings_initializer=keras.initializers.RandomNormal(stddev=hidden_dim**-0.5),
            name="token_embedding",
        )
        self.positions = SinusoidalPositions(hidden_dim, name="positions")
        self.blocks = [
            TransformerDecoderBlock(
                num_heads,
                4 * hidden_dim,
                kernel_initializer=kernel_initializer,
                output_initializer=scaled if residual_scaling else kernel_initializer,
                name=f"block_{i}",
                **VARIANTS[variant],
            )
            for i in range(depth)
        ]
        self.final_norm = LayerNormalization(name="final_norm") if VARIANTS[variant]["normalization"] == "pre" else None
        self.build()

    def build(self, input_shape=None):
        self.token_embedding.build()
        for layer in [*self.blocks, self.final_norm] if self.final_norm is not None else self.blocks:
            layer.build((None, None, self.hidden_dim))
        self.built = True

    def call(self, token_ids):
        length = token_ids.shape[1]
        mask = decoder_mask(length, length)  # (T, T)
        x = self.token_embedding(token_ids) * self.hidden_dim**0.5 + self.positions(ops.arange(length))  # (B, T, D)
        states = [x]
        for block in self.blocks:
            x = block(x, attention_mask=mask, use_causal_mask=False)
            states.append(x)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return self.token_embedding(x, reverse=True), states
