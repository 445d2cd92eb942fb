import keras

from tfgpt.layers.attention import MultiHeadAttention
from tfgpt.layers.feed_forward import FeedForward
from tfgpt.layers.residual import ResidualBlock


class TransformerBlock(keras.layers.Layer):
    """What encoder and decoder blocks share: attention, then feed-forward, each in a residual connection.

    Args:
        num_heads: H.
        intermediate_dim: F, the width inside the feed-forward network.
        activation: of the feed-forward network, by name.
        normalization: "pre", "post" or "none" (see `ResidualBlock`).
        dropout: rate on each sublayer's output.
        attention_dropout: rate on the attention weights; by default `dropout`.
        layer_norm_epsilon: of the normalizations.
        use_bias: whether products have a bias.
        kernel_initializer: of the products that read the residual stream.
        output_initializer: of those that write into it; by default `kernel_initializer`.
        cross_attention: whether attention to a `memory` stands between the two sublayers (decoder blocks).
        residual: whether there are residual connections.
    """

    def __init__(
        self,
        num_heads,
        intermediate_dim,
        activation="gelu_tanh",
        normalization="pre",
        dropout=0.0,
        attention_dropout=None,
        layer_norm_epsilon=1e-5,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        output_initializer=None,
        cross_attention=False,
        residual=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.normalization = normalization
        self.dropout = dropout
        self.attention_dropout = dropout if attention_dropout is None else attention_dropout
        self.layer_norm_epsilon = layer_norm_epsilon
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.output_initializer = keras.initializers.get(output_initializer or kernel_initializer)
        self.cross_attention = cross_attention
        self.residual = residual

        self.attention = self._attention("attention")
        if cross_attention:
            self.memory_attention = self._attention("memory_attention", cross_attention=True)
        self.feed_forward = self._residual(
            "feed_forward", FeedForward, intermediate_dim=intermediate_dim, activation=activation
        )

    def _attention(self, name, cross_attention=False):
        return self._residual(
            name,
            MultiHeadAttention,
            num_heads=self.num_heads,
            cross_attention=cross_attention,
            dropout=self.attention_dropout,
        )

    def _residual(self, name, sublayer_class, **options):
        sublayer = sublayer_class(
            use_bias=self.use_bias,
            # Clones, since an initializer with a seed of its own gives every kernel the same numbers.
            kernel_initializer=self.kernel_initializer.clone(),
            output_initializer=self.output_initializer.clone(),
            dtype=self.dtype_policy,
            name="sublayer",
            **options,
        )
        return ResidualBlock(
            sublayer,
            normalization=self.normalization,
            dropout=self.dropout,
            epsilon=self.layer_norm_epsilon,
            residual=self.residual,
            dtype=self.dtype_policy,
            name=name,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "activation": self.activation,
            "normalization": self.normalization,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
            "residual": self.residual,
        }


@keras.saving.register_keras_serializable(package="tfgpt")
class TransformerEncoderBlock(TransformerBlock):
    """Self-attention over the whole sequence, then feed-forward (Vaswani et al. 2017, section 3.1).

    Arguments as in `TransformerBlock`.

    Call arguments:
        x: (B, T, D).
        attention_mask: boolean, broadcastable to (B, H, T, T), True where a query may look at a key.
        return_attention_weights: return `(output, weights)`, weights (B, H, T, T).

    Example:

    >>> TransformerEncoderBlock(num_heads=2, intermediate_dim=32)(keras.ops.ones((1, 5, 8))).shape
    TensorShape([1, 5, 8])
    """

    def build(self, input_shape):
        self.attention.build(input_shape)
        self.feed_forward.build(input_shape)

    def call(self, x, attention_mask=None, return_attention_weights=False):
        def attention(x):
            return self.attention.sublayer(
                x, attention_mask=attention_mask, return_attention_weights=return_attention_weights
            )

        x, *others = _as_tuple(self.attention(x, through=attention))
        x = self.feed_forward(x)
        return (x, *others) if others else x


@keras.saving.register_keras_serializable(package="tfgpt")
class TransformerDecoderBlock(TransformerBlock):
    """Causal self-attention, attention to an encoder's output if asked for, then feed-forward.

    Without cross-attention this is GPT-2's block. Arguments as in `TransformerBlock`.

    Call arguments:
        x: (B, T, D).
        memory: (B, S, D_memory), with cross-attention.
        attention_mask: boolean, broadcastable to (B, H, T, S), such as a padding mask.
        use_causal_mask: also hide each query's future. A stack of blocks that makes its masks once, with
            `decoder_mask`, turns it off.
        memory_attention_mask: the same for the keys of `memory`.
        cache, cache_index: of self-attention (see `MultiHeadAttention`).
        memory_cache: of cross-attention, from `keys_and_values`.
        return_attention_weights: return the weights, too.

    Returns:
        (B, T, D), followed by the cache if one was given and the weights (self, then cross) if asked for.

    Example:

    >>> TransformerDecoderBlock(num_heads=2, intermediate_dim=32)(keras.ops.ones((1, 5, 8))).shape
    TensorShape([1, 5, 8])
    """

    def build(self, x_shape, memory_shape=None):
        self.attention.build(x_shape)
        if self.cross_attention:
            self.memory_attention.build(x_shape, memory_shape=memory_shape)
        self.feed_forward.build(x_shape)

    def call(
        self,
        x,
        memory=None,
        attention_mask=None,
        use_causal_mask=True,
        memory_attention_mask=None,
        cache=None,
        cache_index=None,
        memory_cache=None,
        return_attention_weights=False,
    ):
        def attention(x):
            return self.attention.sublayer(
                x,
                attention_mask=attention_mask,
                use_causal_mask=use_causal_mask,
                cache=cache,
                cache_index=cache_index,
                return_attention_weights=return_attention_weights,
            )

        def memory_attention(x):
            return self.memory_attention.sublayer(
                x,
                memory=memory,
                attention_mask=memory_attention_mask,
                cache=memory_cache,
                return_attention_weights=return_attention_weights,
            )

        x, *others = _as_tuple(self.attention(x, through=attention))
        if self.cross_attention:
            x, *memory_others = _as_tuple(self.memory_attention(x, through=memory_attention))
            others += memory_others if memory_cache is None else memory_others[1:]  # that cache does not change
        x = self.feed_forward(x)
        return (x, *others) if others else x

    def get_config(self):
        return {**super().get_config(), "cross_attention": self.cross_attention}


def _as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)
