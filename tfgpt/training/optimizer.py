"""Optimizers by name, each decaying matrices only and clipping by the global norm."""

import keras

from tfgpt.training.schedules import WarmupDecay


def make_schedule(config):
    """The learning rate of a `RunConfig` as a function of the step."""
    return WarmupDecay(
        config.learning_rate,
        config.min_learning_rate,
        config.warmup_steps,
        config.steps,
        name=config.schedule,
        decay_fraction=config.decay_fraction,
    )


def _adamw(config, **common):
    return keras.optimizers.AdamW(beta_1=config.beta_1, beta_2=config.beta_2, epsilon=config.epsilon, **common)


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


def make_optimizer(config, variables):
    """The optimizer that the run names, with decoupled weight decay of matrices only and clipping by global norm.

    AdamW (Loshchilov and Hutter 2019), Adafactor (Shazeer and Stern 2018), Lion (Chen et al. 2023) and Muon (Jordan
    et al. 2024, with the scale of Liu et al. 2025), all Keras'.

    Args:
        config: a `RunConfig`.
        variables: the model's trainable variables; those of fewer than two axes are not decayed.
    """
    optimizer = OPTIMIZERS[config.optimizer](
        config,
        learning_rate=make_schedule(config),
        weight_decay=config.weight_decay,
        global_clipnorm=config.clip_norm or None,
        use_ema=bool(config.ema_decay),
        ema_momentum=config.ema_decay,
    )
    optimizer.exclude_from_weight_decay(var_list=[v for v in variables if len(v.shape) < 2])
    return optimizer
