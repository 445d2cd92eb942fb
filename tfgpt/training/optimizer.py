"""Optimizers by name, each decaying matrices only and clipping by the global norm."""

import keras
import tensorflow as tf

from tfgpt.training.kernels import adamw_update
from tfgpt.training.schedules import WarmupDecay


def make_schedule(config):
    """The learning rate of a `FitConfig` as a function of the step."""
    return WarmupDecay(
        config.learning_rate,
        config.min_learning_rate,
        config.warmup_steps,
        config.steps,
        name=config.schedule,
        decay_fraction=config.decay_fraction,
    )


class FusedAdamW(keras.optimizers.AdamW):
    """Keras' AdamW with clipping, decay and update in one compiled pass over each variable, for one device."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Its own: TensorFlow refuses traces whose variables are gone, such as those of an earlier model in the process.
        self._update = tf.function(adamw_update, jit_compile=True, autograph=False)

    def _clip_gradients(self, grads):
        if not self.global_clipnorm:
            return super()._clip_gradients(grads)
        norm = tf.linalg.global_norm(grads)
        # The scale waits for the pass. A norm that is infinite is no reason to go on with zeros.
        scale = self.global_clipnorm / tf.maximum(norm, self.global_clipnorm)
        self._clip_scale = tf.where(tf.math.is_finite(norm), scale, float("nan"))
        return grads

    def _apply_weight_decay(self, variables):
        pass

    def update_step(self, gradient, variable, learning_rate):
        index, step = self._get_variable_index(variable), tf.cast(self.iterations.value + 1, "float32")
        rate = tf.cast(learning_rate, "float32")
        self._update(
            variable,
            self._momentums[index].value,
            self._velocities[index].value,
            gradient,
            scale=self._clip_scale if self.global_clipnorm else tf.constant(1.0),
            rate=rate,
            corrected_rate=rate * tf.sqrt(1.0 - tf.pow(self.beta_2, step)) / (1.0 - tf.pow(self.beta_1, step)),
            decay=self.weight_decay if self.weight_decay and self._use_weight_decay(variable) else 0.0,
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self.epsilon,
        )


def _adamw(config, fused=False, **common):
    AdamW = FusedAdamW if fused else keras.optimizers.AdamW
    return AdamW(beta_1=config.beta_1, beta_2=config.beta_2, epsilon=config.epsilon, **common)


def _adafactor(config, **common):
    # Its rate is relative to each tensor's own size, and in Keras at most 1 / sqrt(step), whatever the schedule says.
    return keras.optimizers.Adafactor(**common)


def _lion(config, **common):
    return keras.optimizers.Lion(beta_1=config.beta_1, beta_2=config.beta_2, **common)


def _muon(config, **common):
    # Embeddings and vectors go by AdamW; kernels' updates are scaled so that they need no rate of their own.
    return keras.optimizers.Muon(
        adam_beta_1=config.beta_1,
        adam_beta_2=config.beta_2,
        epsilon=config.epsilon,
        adam_weight_decay=config.weight_decay,
        **common,
    )


OPTIMIZERS = {"adamw": _adamw, "adafactor": _adafactor, "lion": _lion, "muon": _muon}


def make_optimizer(config, variables, fused=False):
    """The optimizer that the run names, with decoupled weight decay of matrices only and clipping by global norm.

    AdamW (Loshchilov and Hutter 2019), Adafactor (Shazeer and Stern 2018), Lion (Chen et al. 2023) and Muon (Jordan
    et al. 2024, with the scale of Liu et al. 2025), all Keras'.

    Args:
        config: a `FitConfig`.
        variables: the model's trainable variables; those of fewer than two axes are not decayed.
        fused: one compiled pass over each variable, where there is such a kernel: AdamW's.
    """
    fused = {"fused": True} if fused and config.optimizer == "adamw" else {}
    optimizer = OPTIMIZERS[config.optimizer](
        config,
        learning_rate=make_schedule(config),
        weight_decay=config.weight_decay,
        global_clipnorm=config.clip_norm or None,
        use_ema=bool(config.ema_decay),
        ema_momentum=config.ema_decay,
        **fused,
    )
    optimizer.exclude_from_weight_decay(var_list=[v for v in variables if len(v.shape) < 2])
    return optimizer
