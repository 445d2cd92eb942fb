import keras
from keras import ops

from tfgpt.layers.dense import Dense, reshapable
from tfgpt.layers.fusible import fusible


@keras.saving.register_keras_serializable(package="tfgpt")
@fusible
def gelu_tanh(x):
    """GELU in its tanh form, GPT-2's activation (Hendrycks and Gimpel 2016, section 2; "gelu_new" in Hugging Face).

    Written out, since the cube by multiplication is several times cheaper on a CPU than `pow`.
    """
    dtype = keras.backend.standardize_dtype(x.dtype)
    if dtype in ("bfloat16", "float16"):  # a CPU would go to float32 and back for every operator
        x = ops.cast(x, "float32")
    return ops.cast(0.5 * x * (1.0 + ops.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))), dtype)


ACTIVATIONS = {"gelu_tanh": gelu_tanh}


def get_activation(name):
    """The activation of this name: "gelu_tanh", or any of Keras' ("relu", "gelu" in its exact form, "silu", ...).

    Raises:
        ValueError: for a name that is neither.
    """
    if isinstance(name, str) and name in ACTIVATIONS:
        return ACTIVATIONS[name]
    return keras.activations.get(name)  # a name, a function, or the configuration of a registered one


@keras.saving.register_keras_serializable(package="tfgpt")
class FeedForward(keras.layers.Layer):
    """The position-wise feed-forward network, `activation(x W1 + b1) W2 + b2` (Vaswani et al. 2017, section 3.3).

    Args:
        intermediate_dim: F, the width between the two products.
        activation: a name (see `get_activation`) or a function.
        use_bias: whether the products have a bias.
        kernel_initializer: of the first product.
        output_initializer: of the second; by default `kernel_initializer`.

    Input and output (B, T, D).

    Example:

    >>> FeedForward(32, activation="relu")(keras.ops.ones((2, 5, 8))).shape
    TensorShape([2, 5, 8])
    """

    def __init__(
        self,
        intermediate_dim,
        activation="gelu_tanh",
        use_bias=True,
        kernel_initializer="glorot_uniform",
        output_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.intermediate_dim = intermediate_dim
        self.activation = get_activation(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.output_initializer = keras.initializers.get(output_initializer)

    def build(self, input_shape):
        hidden_dim = input_shape[-1]
        self.intermediate_dense = Dense(
            self.intermediate_dim,
            use_bias=self.use_bias,
            kernel_initializer=self.kernel_initializer.clone(),
            dtype=self.dtype_policy,
            name="intermediate",
        )
        self.intermediate_dense.build((None, hidden_dim))
        self.output_dense = Dense(
            hidden_dim,
            use_bias=self.use_bias,
            kernel_initializer=(self.output_initializer or self.kernel_initializer).clone(),
            dtype=self.dtype_policy,
            name="output",
        )
        self.output_dense.build((None, self.intermediate_dim))

    def call(self, x):
        rows = ops.reshape(x, (-1, x.shape[-1]))  # (B * T, D)
        y = self.output_dense(self.activation(self.intermediate_dense(rows)))
        return ops.reshape(y, reshapable(x))  # (B, T, D)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
        }
