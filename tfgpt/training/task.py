"""What a run learns: its data and its model. The trainer does the rest, alike for all tasks."""

from __future__ import annotations

import abc

import tensorflow as tf

from tfgpt.errors import UserError
from tfgpt.training.distributed_fit import steps_per_execution, sum_gradients_first
from tfgpt.training.optimizer import make_optimizer


class Task(abc.ABC):
    """The part of a training run that is the task's own (see `tfgpt.training.trainer.train`).

    The trainer calls `begin` or `reopen` once, and then the others. Attributes that a task sets by then:

        tokens_per_step: of the logged speed, target tokens of an update.

    Args:
        config: the task's `FitConfig`, with `precision` and `compile` still as they were given.
    """

    # Columns of metrics.csv in a validation's row, beside its loss: where a callback of the task writes "val_x" into
    # the logs, "validation_x" is here.
    validation_columns = ()

    def __init__(self, config):
        self.config = config

    @property
    @abc.abstractmethod
    def hidden_dim(self):
        """D of the model, by which `arrange` chooses."""

    @abc.abstractmethod
    def begin(self, config, observer, distribution):
        """The compiled model of a new run, whose directory then holds nothing of an older one.

        Everything that was given is checked before anything is written.

        Args:
            config: the arranged configuration.
            observer: a `RunObserver`.
            distribution: a `Distribution`, in whose scope the model is made.
        """

    @abc.abstractmethod
    def reopen(self, config, observer, distribution):
        """The compiled model of an unfinished run, with weights to be restored; what it learns from has not changed.

        Raises:
            UserError: if it has.
        """

    @abc.abstractmethod
    def training(self, step=0, num_pipelines=1, pipeline=0):
        """An endless `tf.data.Dataset` of the batches after `step`, a function of the seed and the step alone.

        Args:
            step: updates taken before.
            num_pipelines, pipeline: how many readers share out the rows of each batch, and which this is.
        """

    @abc.abstractmethod
    def validation(self, num_pipelines=1, pipeline=0):
        """A `tf.data.Dataset` of the batches of a validation, of known cardinality."""

    @abc.abstractmethod
    def write(self, model, directory):
        """Writes the files of a model directory into an existing one, each atomically."""

    @abc.abstractmethod
    def read_weights(self, model, directory):
        """Reads the weights that `write` has written back into the model."""

    @abc.abstractmethod
    def report(self, directory, model, callbacks, utilization, interrupted):
        """Evaluates the best weights and writes training/summary.json.

        Args:
            directory: the model directory, a `pathlib.Path`.
            model: with the best weights.
            callbacks: the run's `RunCallbacks`.
            utilization: a `ModelFlopsUtilization`, or None.
            interrupted: whether Ctrl-C ended the run.

        Returns:
            A `TrainingResult`, or a dataclass like it, with `steps`, `directory`, `interrupted` and `lines()`.
        """

    def sample(self, model):
        """A text that shows what the model can do by now, kept after each validation; None for none."""
        return None

    def score(self, logs):
        """What the best weights have least of, from the logs of a validation: its loss."""
        return logs["val_loss"]

    def callbacks(self, model, observer):
        """Keras callbacks of the task's own; they see a validation's logs before these are recorded.

        Those with `state` and `restore` are continued with the run (see `tfgpt.training.callbacks`).
        """
        return []

    def utilization(self, model):
        """The `ModelFlopsUtilization` of a task whose configuration has `measure_peak`."""
        raise NotImplementedError(f"{type(self).__name__} has no utilization")


def check_heads(sizes):
    """Raises a `UserError` if a backbone's heads do not share its width.

    Args:
        sizes: its arguments, with `hidden_dim` and `num_heads`.
    """
    if sizes["hidden_dim"] % sizes["num_heads"]:
        raise UserError(f"hidden_dim is {sizes['hidden_dim']}, expected a multiple of num_heads {sizes['num_heads']}")


def compile_for_fit(model, config, loss, **options):
    """Compiles a model for `fit` as the arranged configuration says, with its optimizer built.

    Args:
        model: to be compiled.
        config: the arranged configuration.
        loss: a Keras loss.
        **options: of `keras.Model.compile`.
    """
    if config.compile == "kernels":
        # TensorFlow's fusion of product and bias takes a kernel that lays the weights out anew in every step.
        tf.config.optimizer.set_experimental_options({"remapping": False})
    model.compile(
        optimizer=make_optimizer(config, model.trainable_variables, fused=config.compile != "none"),
        loss=loss,
        steps_per_execution=steps_per_execution(config),
        jit_compile=config.compile == "step",
        **options,
    )
    # Variables made in the first step would have it traced twice, and a checkpoint before it would lack them.
    # Built here, because `compile` puts loss scaling around the optimizer, which has variables of its own.
    model.optimizer.build(model.trainable_variables)
    sum_gradients_first(model.optimizer)
    return model
