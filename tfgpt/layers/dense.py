import keras
from keras import ops

from tfgpt.layers.fusible import fusible


@keras.saving.register_keras_serializable(package="tfgpt")
class Dense(keras.layers.Layer):
    """An affine map of the last axis, `x W + b`, computed as one two-dimensional matrix product.

    Keras' own Dense leaves inputs of three axes to `tensordot`, whose shape arithmetic survives into exported graphs,
    and hides the product from the fused matrix kernels. Here leading axes are folded into the rows first.

    Args:
        units: the width of the output.
        use_bias: whether to add `b`.
        kernel_initializer, bias_initializer: Keras initializers.

    Input (..., D), output (..., units).

    Example:

    >>> Dense(8)(keras.ops.ones((2, 5, 4))).shape
    TensorShape([2, 5, 8])
    """

    def __init__(self, units, use_bias=True, kernel_initializer="glorot_uniform", bias_initializer="zeros", **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, input_shape):
        self.input_dim = input_shape[-1]
        self.kernel = self.add_weight(
            name="kernel", shape=(self.input_dim, self.units), initializer=self.kernel_initializer
        )
        self.bias = (
            self.add_weight(name="bias", shape=(self.units,), initializer=self.bias_initializer)
            if self.use_bias
            else None
        )

    def call(self, x):
        weights = (self.kernel,) if self.bias is None else (self.kernel, self.bias)
        if len(x.shape) == 2:
            return affine(x, *weights)
        y = affine(ops.reshape(x, (-1, self.input_dim)), *weights)
        return ops.reshape(y, (*reshapable(x)[:-1], self.units))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }


@fusible
def affine(x, kernel, *bias):
    """`x W + b` of rows (N, D); without `bias`, `x W`."""
    y = ops.matmul(x, kernel)
    return ops.add(y, *bias) if bias else y


def reshapable(x):
    """The shape of `x` as `ops.reshape` takes it: a single unknown axis is -1, so that nothing has to be computed."""
    shape = tuple(x.shape)
    if shape.count(None) == 1:
        return tuple(-1 if size is None else size for size in shape)
    return ops.shape(x)
