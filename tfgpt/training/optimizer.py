"""AdamW with linear warm-up and cosine decay, as GPT-2's descendants are trained."""

import keras


def learning_rate_schedule(learning_rate, min_learning_rate, warmup_steps, steps):
    """Linear from 0 to `learning_rate` over `warmup_steps`, then a half cosine to `min_learning_rate` at `steps`.

    Loshchilov and Hutter 2017 (SGDR), without restarts.
    """
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup_steps else learning_rate,
        decay_steps=max(steps - warmup_steps, 1),
        alpha=min(min_learning_rate / learning_rate, 1.0),
        warmup_target=learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )


def make_optimizer(config, variables):
    """AdamW (Loshchilov and Hutter 2019) that decays matrices only, with clipping by global norm.

    Args:
        config: a `RunConfig`.
        variables: the model's trainable variables; those of fewer than two axes are not decayed.
    """
    optimizer = keras.optimizers.AdamW(
        learning_rate_schedule(config.learning_rate, config.min_learning_rate, config.warmup_steps, config.steps),
        weight_decay=config.weight_decay,
        beta_1=config.beta_1,
        beta_2=config.beta_2,
        epsilon=config.epsilon,
        global_clipnorm=config.clip_norm or None,
    )
    optimizer.exclude_from_weight_decay(var_list=[v for v in variables if len(v.shape) < 2])
    return optimizer
