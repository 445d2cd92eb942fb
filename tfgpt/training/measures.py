"""What a row of a run's records holds beside loss, learning rate and speed, each measure where it is asked for."""

import keras

SMOOTHING = 0.95  # of the noise scale's parts: about the last twenty rows


def make_measures(config, model, utilization=None):
    """The measures of a run.

    Args:
        config: a `FitConfig`.
        model: a `TrainingCausalLM`, compiled.
        utilization: a `ModelFlopsUtilization`, where there is one.
    """
    measures = []
    if config.log_gradients:
        measures.append(GradientNorms(model))
    if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        measures.append(LossScale(model.optimizer))
    if utilization is not None:
        measures.append(utilization)
    return measures


class GradientNorms:
    """Means of gradient norms, before clipping, over a row's steps, and the noise scale.

    The noise scale is tr(Σ) / |G|² in windows (see `noise_scale_parts`): batches far below it gain by growing. Both are
    moving averages over rows, as single estimates are noisy.

    Args:
        model: a `TrainingCausalLM` with `log_gradients`.
    """

    def __init__(self, model):
        self.metrics = model.gradient_metrics
        self.norms = [name for name in self.metrics if name.startswith("gradient_norm")]
        self.columns = [*self.norms, *(["noise_scale"] if "noise_trace" in self.metrics else [])]
        self.parts = {"noise_trace": 0.0, "squared_gradient": 0.0}  # both too small by the same factor at first

    def __call__(self, row):
        means = {name: float(metric.result()) for name, metric in self.metrics.items()}
        for metric in self.metrics.values():
            metric.reset_state()
        values = {name: means[name] for name in self.norms}
        if "noise_trace" in means:
            for name in self.parts:
                self.parts[name] = SMOOTHING * self.parts[name] + (1 - SMOOTHING) * means[name]
            trace, square = self.parts["noise_trace"], self.parts["squared_gradient"]
            # Over few steps the estimate of |G|² may be negative, and the ratio says nothing.
            values["noise_scale"] = trace / square if square > 0 else float("nan")
        return values

    def state(self):
        """What a continued run needs, as a callback's `state`."""
        return self.parts

    def restore(self, state, step):
        """Goes on from that."""
        self.parts = dict(state)


class LossScale:
    """The state of float16's loss scaling: the scale, and how many steps overflowed and were skipped so far.

    Args:
        optimizer: a Keras `LossScaleOptimizer`.
    """

    columns = ("loss_scale", "skipped_steps")

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def __call__(self, row):
        taken = int(keras.ops.convert_to_numpy(self.optimizer.iterations))
        return {
            "loss_scale": float(keras.ops.convert_to_numpy(self.optimizer.dynamic_scale)),
            "skipped_steps": row["step"] - taken,
        }
