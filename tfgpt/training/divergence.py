"""Which step, which rows of its batch and which layer a loss that became NaN or infinite came from."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from tfgpt.errors import UserError
from tfgpt.training.run_state import DamagedCheckpoint, restore_state


def explain_divergence(error, model, task, config, checkpoints, observer):
    """Takes the steps since the last good checkpoint again, the last ones one by one, and finds where it began.

    Steps before those that the loss was found in run as they did. These run eagerly, which rounds a little otherwise,
    so that a loss at the brink may survive them; then the message says so.

    Args:
        error: the `NonFiniteLoss`.
        model: the run's, whose weights this changes.
        task: its `Task`.
        config: its `FitConfig`.
        checkpoints: its `Checkpoints`.
        observer: its `RunObserver`.

    Returns:
        The `UserError` to be raised instead.
    """
    message = str(error)
    good = f"the last good checkpoint is {checkpoints.newest}"
    if model.distribute_strategy.num_replicas_in_sync > 1:
        return UserError(f"{message}; {good}")
    observer.note(f"{message.partition(',')[0]}; taking the steps since {checkpoints.newest} again to find the layer")
    try:
        step = restore_state(checkpoints.newest, model)["step"]
    except DamagedCheckpoint as damage:
        return UserError(f"{message}; {good}, but {damage}")
    batches = iter(task.training(step))
    for _ in range((error.first - 1 - step) // config.steps_per_execution):
        model.train_function(batches)  # not `fit`, which ends with the moving average of the weights
    for number in range(error.first, error.last + 1):
        batch = next(batches)
        inputs = batch[0]
        try:
            found = first_nonfinite_layer(model, inputs)
        except tf.errors.OpError:  # a CPU has no eager products of float16
            return UserError(f"{message}; {config.precision} has no eager kernels here to find the layer by; {good}")
        if found:
            layer, rows = found
            return UserError(
                f"{message}; at step {number} the activations of {layer} were the first that are not finite, in rows "
                f"{', '.join(map(str, rows))} of the batch that seed {config.seed} draws for it"
                f"{_bad_weights(model, layer)}; {good}"
            )
        model.reset_metrics()
        loss = float(model.train_step(batch)["loss"])
        if not np.isfinite(loss):
            return UserError(f"{message}; at step {number} it was {loss} though all activations were finite; {good}")
    return UserError(f"{message}; taken again, these steps had finite activations and losses; {good}")


def first_nonfinite_layer(model, inputs):
    """Runs the model eagerly in training mode, and finds the first layer whose output is not finite.

    The states of seed generators are afterwards as they were.

    Args:
        model: a Keras model.
        inputs: of it.

    Returns:
        The layer's path below the model and the numbers of the rows (first axis) that are not finite; None if every
        output is finite.

    Example:

    >>> first = keras.layers.Dense(2, kernel_initializer="ones")
    >>> model = keras.Sequential([first, keras.layers.Dense(2, name="second", kernel_initializer="ones")])
    >>> first_nonfinite_layer(model, np.array([[1.0], [3e38]], "float32"))
    ('second', [1])
    """
    found = []
    batch_size = len(keras.tree.flatten(inputs)[0])

    def watched(path, call):
        def wrapper(*args, **kwargs):
            outputs = call(*args, **kwargs)
            # Layers return innermost first, in the order of the computation.
            rows = [] if found else _nonfinite_rows(outputs, batch_size)
            if rows:
                found.append((path, rows))
            return outputs

        return wrapper

    seeds = [(v, v.numpy()) for v in model.non_trainable_variables if v.name == "seed_generator_state"]
    with contextlib.ExitStack() as stack:
        for path, layer in _layers(model):
            layer.__dict__["call"] = watched(path, layer.call)  # past Keras' tracking of attributes
            stack.callback(layer.__dict__.pop, "call")
        model(inputs, training=True)
    for variable, value in seeds:
        variable.assign(value)
    return found[0] if found else None


def _layers(layer, prefix=""):
    """(path, layer) of every layer below one, and of itself without a path."""
    yield prefix.rstrip("/") or layer.name, layer
    for child in layer._flatten_layers(include_self=False, recursive=False):
        yield from _layers(child, f"{prefix}{child.name}/")


def _nonfinite_rows(outputs, batch_size):
    rows = set()
    for output in keras.tree.flatten(outputs):
        if tf.is_tensor(output) and output.dtype.is_floating:
            finite = tf.math.is_finite(output)
            axes = list(range(1, len(output.shape)))
            found = np.flatnonzero(~tf.reduce_all(finite, axis=axes).numpy())
            rows |= set((found * batch_size // output.shape[0]).tolist())  # positions may be folded into the first axis
    return sorted(rows)


def _bad_weights(model, path):
    layer = dict(_layers(model))[path]
    bad = [v.name for v in layer.weights if not np.isfinite(v.numpy().astype("float32")).all()]
    return f" (its weights {', '.join(bad)} are not finite either)" if bad else ""
