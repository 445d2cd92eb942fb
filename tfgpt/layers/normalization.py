import keras
from keras import ops

from tfgpt.layers.fusible import fusible


@keras.saving.register_keras_serializable(package="tfgpt")
class LayerNormalization(keras.layers.Layer):
    """Layer normalization over the last axis (Ba et al. 2016, section 3).

    Keras' own, written for any axes, reshapes scale and offset in every call and multiplies out the sum, which costs
    twice the operators in a graph that is exported. Here it is the paper's formula, in one function.

    Args:
        epsilon: added to the variance.

    Input and output (..., D).

    Example:

    >>> LayerNormalization()(keras.ops.array([[1.0, 3.0]])).numpy().round(3).tolist()
    [[-1.0, 1.0]]
    """

    def __init__(self, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape):
        # Not cast down by a mixed policy: the arithmetic is float32.
        self.gamma = self.add_weight(name="gamma", shape=input_shape[-1:], initializer="ones", autocast=False)
        self.beta = self.add_weight(name="beta", shape=input_shape[-1:], initializer="zeros", autocast=False)

    def call(self, x):
        return normalize(x, self.gamma, self.beta, epsilon=self.epsilon)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}


@fusible
def normalize(x, gamma, beta, epsilon):
    """`(x - mean) / sqrt(variance + epsilon) * gamma + beta`, of any floating type, computed in float32."""
    y = ops.cast(x, "float32")  # house rule: statistics are float32 under every policy
    centered = y - ops.mean(y, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centered), axis=-1, keepdims=True)
    return ops.cast(centered * ops.rsqrt(variance + epsilon) * gamma + beta, x.dtype)
