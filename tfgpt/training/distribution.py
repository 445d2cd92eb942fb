"""Where a run's replicas are: one device, several, or those of many workers."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf

from tfgpt.errors import UserError
from tfgpt.training.cluster import Cluster


@dataclasses.dataclass(frozen=True)
class Distribution:
    """A strategy of tf.distribute, and this process' part in it.

    Args:
        name: one of `tfgpt.training.fit_config.STRATEGIES` but "auto".
        strategy: a `tf.distribute.Strategy`; TensorFlow's default one for "one_device", which places a model on the
            GPU that there is, or else on the CPU.
        cluster: the workers.
    """

    name: str
    strategy: tf.distribute.Strategy
    cluster: Cluster

    @classmethod
    def open(cls, name, batch_size, compile="auto", accumulate_steps=1):
        """Chooses and starts a strategy; that of several workers waits until all of them are there.

        Args:
            name: "auto" takes multi_worker where `TF_CONFIG` names several workers, tpu where there is a TPU,
                mirrored where there are several GPUs, and else one_device.
            batch_size: the global one.
            compile: what the run is to compile with XLA (see `RunConfig`).
            accumulate_steps: micro-batches of each replica's share of the batch.

        Raises:
            UserError: if this machine cannot give the strategy, or its replicas do not divide the batch.
        """
        cluster = Cluster.from_environment()
        if name == "auto":
            name = _best(cluster)
        if name == "parameter_server" or cluster.has_parameter_servers:
            raise UserError(
                "parameter servers are not supported by Keras 3, whose fit has no cluster coordinator; expected a "
                "strategy such as multi_worker, and a TF_CONFIG without tasks of type 'ps'"
            )
        _check_cluster(name, cluster, batch_size)
        check_compile(compile, name)
        strategy = _OPENERS[name]()
        replicas = strategy.num_replicas_in_sync
        if batch_size % replicas:
            raise UserError(f"batch_size is {batch_size}, expected a multiple of the {replicas} replicas of {name}")
        share = batch_size // replicas
        if share % accumulate_steps:
            raise UserError(
                f"accumulate_steps is {accumulate_steps}, expected a divisor of the {share} windows of each of the "
                f"{replicas} replicas"
            )
        return cls(name, strategy, cluster)

    @property
    def chief(self):
        """Whether this process writes the run's files and prints."""
        return self.cluster.chief

    def describe(self, config):
        """What the run's batch is made of, such as "global batch 16 = 2 workers × 8 windows"."""
        replicas, workers = self.strategy.num_replicas_in_sync, max(len(self.cluster.workers), 1)
        parts = [f"{workers} workers"] if workers > 1 else []
        if replicas > workers:
            parts.append(f"{replicas // workers} devices")
        parts.append(f"{config.batch_size // replicas} {config.examples}")
        batch = f"global batch {config.batch_size} = {' × '.join(parts)}" if parts[1:] else f"batch {parts[0]}"
        return f"strategy {self.name}; {batch}; learning rate {config.learning_rate:g}"

    def scope(self):
        """The context in which models and optimizers are made."""
        return contextlib.nullcontext() if self.name == "one_device" else self.strategy.scope()

    @contextlib.contextmanager
    def private_directory(self, config):
        """Yields the run's configuration; that of all workers but the chief writes to a temporary directory."""
        if self.chief:
            yield config
            return
        with tempfile.TemporaryDirectory(prefix="tfgpt-worker-") as directory:
            out = str(pathlib.Path(directory) / "model")
            yield dataclasses.replace(config, out=out, overwrite=False, tensorboard=False, wandb=None)

    def dataset(self, make_dataset, batch_size):
        """A dataset of which each replica reads its own rows of the global batch.

        Args:
            make_dataset: a function of `num_pipelines` and `pipeline` (see `tfgpt.text.training_windows`).
            batch_size: the global one.
        """
        if self.name == "one_device":
            return make_dataset(num_pipelines=1, pipeline=0)

        def rows_of_pipeline(context):
            dataset = make_dataset(num_pipelines=context.num_input_pipelines, pipeline=context.input_pipeline_id)
            if context.num_replicas_in_sync > context.num_input_pipelines:
                # TPUs compile for one shape; here all are the same.
                dataset = dataset.rebatch(batch_size // context.num_replicas_in_sync, drop_remainder=True)
            return dataset

        return self.strategy.distribute_datasets_from_function(rows_of_pipeline)  # which shards nothing by itself

    def any_worker(self, flag):
        """Whether a flag is set on any worker; all of them must call this at the same step."""
        if len(self.cluster.workers) <= 1:
            return flag
        values = self.strategy.experimental_distribute_values_from_function(lambda _: tf.constant(int(flag)))
        return int(self.strategy.reduce("SUM", values, axis=None)) > 0

    def from_chief(self, number):
        """The chief's whole number, on every worker; all of them must call this at the same step."""
        if len(self.cluster.workers) <= 1:
            return number
        mine = number if self.chief else 0
        values = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(0 if context.replica_id_in_sync_group else mine, tf.int64)
        )
        return int(self.strategy.reduce("SUM", values, axis=None))

    def broadcast(self, variables):
        """Gives variables the chief's values on every worker, such as those that it alone has read from a checkpoint.

        Args:
            variables: Keras' or TensorFlow's, in the same order on every worker.
        """
        if len(self.cluster.workers) <= 1:
            return
        for variable in variables:
            value = np.asarray(variable.numpy())
            wide = value.astype(np.float64 if np.issubdtype(value.dtype, np.floating) else np.int64)
            wide = wide if self.chief else np.zeros_like(wide)
            share = wide / (self.strategy.num_replicas_in_sync // len(self.cluster.workers))
            values = self.strategy.experimental_distribute_values_from_function(lambda _, share=share: share)
            variable.assign(self.strategy.reduce("SUM", values, axis=None).numpy().astype(value.dtype))


class AgreeOnStopping(keras.callbacks.Callback):
    """Stops every worker after the epoch in which one is to stop: whoever went on alone would wait for the others
    forever.

    It comes after those that end a run, where epochs end, and before the checkpoints.

    Args:
        distribution: the run's.
    """

    def __init__(self, distribution):
        super().__init__()
        self.distribution = distribution

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = self.distribution.any_worker(self.model.stop_training)


def check_compile(compile, name):
    """Refuses what a run is to compile with XLA where a strategy cannot have it compiled."""
    if compile not in ("auto", "none") and name in ("mirrored", "multi_worker"):
        raise UserError(f"compile is {compile!r}, expected 'none' with strategy {name}: XLA does not sum over replicas")
    if compile == "kernels" and name == "tpu":
        raise UserError("compile is 'kernels', expected 'none' with strategy tpu, which compiles the step itself")


def _best(cluster):
    if len(cluster.workers) > 1:
        return "multi_worker"
    if os.environ.get("TPU_NAME") or tf.config.list_physical_devices("TPU"):
        return "tpu"
    return "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "one_device"


def _check_cluster(name, cluster, batch_size):
    workers = len(cluster.workers)
    if name == "multi_worker" and not workers:
        raise UserError(
            "strategy is multi_worker, but TF_CONFIG names no workers; expected one that does, as tfgpt launch sets it"
        )
    if name != "multi_worker" and workers > 1:
        raise UserError(
            f"strategy is {name}, but TF_CONFIG names {workers} workers; expected multi_worker or no TF_CONFIG"
        )
    if workers and batch_size % workers:
        raise UserError(f"batch_size is {batch_size}, expected a multiple of the {workers} workers")


def _mirrored():
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    if len(devices) < 2:
        raise UserError(f"strategy is mirrored, but this machine has one device, {devices[0]}; expected several")
    return tf.distribute.MirroredStrategy(devices)


def _tpu():
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(os.environ.get("TPU_NAME", "local"))
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        reason = str(error).partition(". ")[0].rstrip(".")
        raise UserError(f"strategy is tpu, but no TPU answers ({reason}); expected one, or its TPU_NAME") from error
    return tf.distribute.TPUStrategy(resolver)


_OPENERS = {
    "one_device": tf.distribute.get_strategy,
    "mirrored": _mirrored,
    "multi_worker": tf.distribute.MultiWorkerMirroredStrategy,
    "tpu": _tpu,
}
