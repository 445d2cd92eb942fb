"""What training minimizes: cross-entropy with label smoothing and z-loss, a token at a time."""

import keras
from keras import ops


def token_losses(logits, targets, label_smoothing=0.0, z_loss=0.0):
    """The loss of every token in nats.

    With log Z the logarithm of the softmax's denominator, the cross-entropy against (1 - ε) of the target and ε of the
    uniform distribution (Szegedy et al. 2016, section 7) is (1 - ε) (log Z - x_target) + ε (log Z - mean x). z-loss
    adds z (log Z)², which keeps logits from drifting (PaLM, Chowdhery et al. 2022, section 5).

    Args:
        logits: (..., V), of any floating type; the arithmetic is float32.
        targets: token ids (...).
        label_smoothing: ε.
        z_loss: the coefficient; PaLM has 1e-4.

    Returns:
        Losses (...), float32.

    Example:

    >>> loss = token_losses(ops.array([[0.0, 0.0]]), ops.array([1]), label_smoothing=0.1)
    >>> round(float(loss[0]), 4)
    0.6931
    """
    logits = ops.cast(logits, "float32")
    losses = ops.sparse_categorical_crossentropy(targets, logits, from_logits=True)
    if label_smoothing or z_loss:
        log_z = ops.logsumexp(logits, axis=-1)
    if label_smoothing:
        losses = (1.0 - label_smoothing) * losses + label_smoothing * (log_z - ops.mean(logits, axis=-1))
    if z_loss:
        losses += z_loss * ops.square(log_z)
    return losses


@keras.saving.register_keras_serializable(package="tfgpt")
class TokenLoss(keras.losses.Loss):
    """`token_losses` as a Keras loss, for `compile`.

    Its mean is over tokens by their weights (B, T): rows that only fill up a batch have the weight 0.

    Args:
        label_smoothing: ε of `token_losses`.
        z_loss: its coefficient.

    Example:

    >>> loss = TokenLoss(z_loss=1e-4)
    >>> round(float(loss(ops.array([[1]]), ops.array([[[0.0, 0.0]]]))), 4)
    0.6932
    """

    def __init__(self, label_smoothing=0.0, z_loss=0.0, reduction="mean_with_sample_weight", name="token_loss"):
        super().__init__(reduction=reduction, name=name, dtype="float32")
        self.label_smoothing, self.z_loss = label_smoothing, z_loss

    def call(self, y_true, y_pred):
        # Keras casts targets to the loss's dtype: token ids are exact in float32 up to 2^24.
        return token_losses(y_pred, ops.cast(y_true, "int32"), self.label_smoothing, self.z_loss)

    def get_config(self):
        return {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss, **super().get_config()}
