"""A process of the tests in test_distributed_fit.py: trains as a run's configuration says, and reports what it saw.

python distributed_worker.py RUN.json REPORT.json [LOGICAL_CPUS]
"""

import json
import os
import pathlib
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import tensorflow as tf

from tfgpt.models import GPT2CausalLM
from tfgpt.training.distribution import Distribution
from tfgpt.training.run_config import RunConfig
from tfgpt.training.trainer import RunObserver, train


class Report(RunObserver):
    def __init__(self):
        self.description, self.rows = "", []

    def distribution(self, text):
        self.description = text

    def row(self, row):
        names = ("step", "loss", "validation_loss", "gradient_norm")
        self.rows.append({name: value for name, value in row.items() if name in names})


class WithoutSymbolicBuild(GPT2CausalLM):
    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        pass


def what_keras_says(model_class, strategy):
    """The error of Keras' own fit under a strategy, or "" when there is none."""
    with strategy.scope():
        model = model_class.from_preset("gpt2-test", load_weights=False, seed=0)
        optimizer = keras.optimizers.SGD(0.1)
        optimizer.build(model.trainable_variables)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, jit_compile=False)
    tokens = tf.ones((4, 9), tf.int32)
    rows = strategy.distribute_datasets_from_function(
        lambda _: tf.data.Dataset.from_tensors((tokens[:, :-1], tokens[:, 1:])).repeat()
    )
    try:
        model.fit(rows, steps_per_epoch=1, verbose=0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def agreements(distribution):
    """What the workers come to together: a flag of the last one alone, and weights of the chief alone."""
    weights = [keras.Variable(np.full((2, 3), distribution.cluster.index + 1.5, "float32"))]
    weights.append(keras.Variable(distribution.cluster.index + 7, dtype="int64"))
    distribution.broadcast(weights)
    last = distribution.cluster.index + 1 == len(distribution.cluster.workers)
    return {
        "flags": [distribution.any_worker(last), distribution.any_worker(False)],
        "weights": [np.unique(weight.numpy()).tolist() for weight in weights],
    }


def main(run, report, logical_cpus=1):
    if int(logical_cpus) > 1:
        device = tf.config.list_physical_devices("CPU")[0]
        devices = [tf.config.LogicalDeviceConfiguration()] * int(logical_cpus)
        tf.config.set_logical_device_configuration(device, devices)
    observer = Report()
    opened = []
    open_distribution = Distribution.open
    Distribution.open = lambda *arguments: opened.append(open_distribution(*arguments)) or opened[0]
    result = train(RunConfig(**json.loads(pathlib.Path(run).read_text())), observer)
    figures = {"description": observer.description, "rows": observer.rows, "wrote": result is not None}
    [distribution] = opened
    figures |= agreements(distribution)
    if len(distribution.cluster.workers) == 2:
        figures["symbolic_build"] = what_keras_says(GPT2CausalLM, distribution.strategy)
        figures["reduce"] = what_keras_says(WithoutSymbolicBuild, distribution.strategy)
    pathlib.Path(report).write_text(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
