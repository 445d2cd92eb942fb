"""Learning rates as functions of the step: linear warm-up, then a decay by name."""

import math

import keras
from keras import ops

# The share of the way from the highest rate to the lowest that is left, by the share of the way past the warm-up.
# wsd is apart: its decay begins late; inverse_sqrt, too: it does not know how long the run is.
DECAYS = {
    "cosine": lambda progress: 0.5 * (1.0 + ops.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
    "constant": ops.ones_like,
}


@keras.saving.register_keras_serializable(package="tfgpt")
class WarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear from 0 to `learning_rate` over `warmup_steps`, then a decay to `min_learning_rate` at `steps`.

    "cosine" is half a cosine (Loshchilov and Hutter 2017, SGDR, without restarts); "linear" a line; "constant" stays;
    "wsd" (warm-up–stable–decay: MiniCPM, Hu et al. 2024, section 4) stays until the last `decay_fraction` of all steps,
    and is linear there (Hägele et al. 2024); "inverse_sqrt" is `learning_rate * sqrt(warmup_steps / step)`, but not
    below `min_learning_rate` (Vaswani et al. 2017, section 5.3, where the highest is 1 / sqrt(D warmup_steps)).

    Args:
        learning_rate: the highest.
        min_learning_rate: the last; "constant" never comes to it, and "inverse_sqrt" may.
        warmup_steps: 0 begins at the top.
        steps: of the run; the rate stays as it is after them.
        name: "cosine", "linear", "constant", "wsd" or "inverse_sqrt".
        decay_fraction: of "wsd".

    Example:

    >>> schedule = WarmupDecay(1.0, 0.0, warmup_steps=2, steps=10, name="wsd", decay_fraction=0.4)
    >>> [round(float(schedule(step)), 2) for step in range(11)]
    [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """

    def __init__(self, learning_rate, min_learning_rate, warmup_steps, steps, name="cosine", decay_fraction=0.2):
        self.learning_rate = learning_rate
        self.min_learning_rate = min(min_learning_rate, learning_rate)
        self.warmup_steps = warmup_steps
        self.steps = steps
        self.name = name
        self.decay_fraction = decay_fraction

    def __call__(self, step):
        step = ops.cast(step, "float32")
        start, decay = self.warmup_steps, DECAYS.get(self.name)
        if self.name == "wsd":
            start, decay = max(start, self.steps * (1.0 - self.decay_fraction)), DECAYS["linear"]
        if self.name == "inverse_sqrt":
            ratio = ops.sqrt(max(start, 1) / ops.maximum(step, max(start, 1)))
            decayed = ops.maximum(self.learning_rate * ratio, self.min_learning_rate)
        else:
            progress = ops.clip((step - start) / max(self.steps - start, 1), 0.0, 1.0)
            decayed = self.min_learning_rate + (self.learning_rate - self.min_learning_rate) * decay(progress)
        warmed = self.learning_rate * step / max(self.warmup_steps, 1)
        return ops.where(step < self.warmup_steps, warmed, decayed)

    def get_config(self):
        names = ("learning_rate", "min_learning_rate", "warmup_steps", "steps", "name", "decay_fraction")
        return {name: getattr(self, name) for name in names}
