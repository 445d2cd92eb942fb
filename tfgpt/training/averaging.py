"""The moving average of a model's weights, lent to the model for a while."""

import contextlib

import keras


@contextlib.contextmanager
def averaged_weights(model):
    """Within the block a model has its optimizer's moving average of its weights, if that keeps one.

    Then the weights are back bit for bit, so that training goes on as if nothing had been. (Keras'
    `SwapEMAWeights` swaps by adding and subtracting, which rounds them.)

    Args:
        model: compiled with an optimizer whose `use_ema` may be set.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # of a LossScaleOptimizer
    if not optimizer.use_ema or not optimizer.built or int(keras.ops.convert_to_numpy(optimizer.iterations)) == 0:
        yield
        return
    raw = [keras.ops.convert_to_numpy(variable) for variable in model.trainable_variables]
    for variable, average in zip(model.trainable_variables, optimizer._model_variables_moving_average):
        variable.assign(average)
    try:
        yield
    finally:
        for variable, value in zip(model.trainable_variables, raw):
            variable.assign(value)


class AveragedValidation(keras.callbacks.Callback):
    """Validates the moving average of the weights, where the optimizer keeps one."""

    def on_test_begin(self, logs=None):
        self._block = averaged_weights(self.model)
        self._block.__enter__()

    def on_test_end(self, logs=None):
        self._block.__exit__(None, None, None)
