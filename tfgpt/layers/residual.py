import keras

from tfgpt.layers.normalization import LayerNormalization
from tfgpt.layers.observation import show

NORMALIZATIONS = ("pre", "post", "none")


@keras.saving.register_keras_serializable(package="tfgpt")
class ResidualBlock(keras.layers.Layer):
    """A residual connection around a layer `f`, with layer normalization before it, after it, or not at all.

    - "pre": `x + dropout(f(norm(x)))`, GPT-2's order (Radford et al. 2019, section 2.3; Xiong et al. 2020);
    - "post": `norm(x + dropout(f(x)))`, the original Transformer's (Vaswani et al. 2017, section 3.1);
    - "none": `x + dropout(f(x))` (He et al. 2016).

    Args:
        sublayer: the layer `f`, whose output has the shape of its first input.
        normalization: "pre", "post" or "none".
        dropout: rate on the output of `f`.
        epsilon: of the normalization.
        residual: whether `x` is added; without it this is the plain layer that He et al. compare with.

    Call arguments:
        x: the residual stream, (B, T, D).
        through: the call of `sublayer` when it takes more than `x`: a function of the (normalized) input, such as
            `lambda y: block.sublayer(y, attention_mask=mask)`. If it returns a tuple, the first element joins the
            residual stream and the others are returned behind it.

    Example:

    >>> block = ResidualBlock(keras.layers.Dense(8), normalization="post")
    >>> block(keras.ops.ones((2, 5, 8))).shape
    TensorShape([2, 5, 8])
    """

    def __init__(self, sublayer, normalization="pre", dropout=0.0, epsilon=1e-5, residual=True, **kwargs):
        super().__init__(**kwargs)
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization is {normalization!r}, expected one of {', '.join(NORMALIZATIONS)}")
        self.sublayer = sublayer
        self.normalization = normalization
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.epsilon = epsilon
        self.residual = residual
        self.norm = None
        if normalization != "none":
            self.norm = LayerNormalization(epsilon=epsilon, dtype=self.dtype_policy, name="norm")

    def build(self, input_shape, **shapes):
        if self.norm is not None:
            self.norm.build(input_shape)
        if not self.sublayer.built:
            self.sublayer.build(input_shape, **shapes)

    def call(self, x, through=None, training=None):
        # `training` reaches the sublayer through Keras' call context.
        y = (through or self.sublayer)(self.norm(x) if self.normalization == "pre" else x)
        y, *others = y if isinstance(y, tuple) else (y,)
        y = self.dropout_layer(y, training=training)
        x = x + y if self.residual else y
        if self.normalization == "post":
            x = self.norm(x)
        show(self, x)
        return (x, *others) if others else x

    def get_config(self):
        return {
            **super().get_config(),
            "sublayer": keras.saving.serialize_keras_object(self.sublayer),
            "normalization": self.normalization,
            "dropout": self.dropout_layer.rate,
            "epsilon": self.epsilon,
            "residual": self.residual,
        }

    @classmethod
    def from_config(cls, config):
        sublayer = keras.saving.deserialize_keras_object(config.pop("sublayer"))
        return cls(sublayer, **config)
