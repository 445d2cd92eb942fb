"""Keras' `fit` under tf.distribute: what Keras 3.15 gets wrong there, put right on one model and its optimizer.

Five things, none of which edits Keras or replaces a function of its modules:

- `_maybe_symbolic_build` calls the model on a distributed batch, or on its mean, which is no token id (keras#20585).
  Our models and optimizers are built beforehand, so there is nothing for it to do.
- `reduce_per_replica` takes the mean of each metric along axis 0, which a scalar does not have, under
  `MultiWorkerMirroredStrategy` alone (keras#20585). Metrics of one axis of one element come out right.
- Several steps in one execution put collective operations into a `tf.cond`, where workers' placeholders are not fed.
  So they execute one step at a time.
- Gradients are clipped, checked for finiteness and accumulated on each replica, before they are summed: the clipped
  norm is another one than that of the global batch. They are summed first here.
- Dropout draws the same numbers on every replica.

tests/training/test_distributed_fit.py says when Keras has changed.
"""

import functools

import tensorflow as tf

DRAWS_PER_REPLICA = 2**20  # counters are 32 bits: 4096 replicas until one meets another's at another step


def distributed_model_class(model_class):
    """The model class whose `fit` works under the strategy in scope; the class itself without one.

    Args:
        model_class: a `keras.Model` whose weights are built when it is constructed.
    """
    if not tf.distribute.has_strategy():
        return model_class
    return type(model_class.__name__, (_DistributedFit, model_class), {"__module__": model_class.__module__})


def steps_per_execution(config):
    """How many steps a run executes in one call: one where replicas' sums are collective operations."""
    strategy = tf.distribute.get_strategy()
    collective = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)
    return 1 if isinstance(strategy, collective) else config.steps_per_execution


def sum_gradients_first(optimizer):
    """Has an optimizer sum gradients over replicas before it clips, checks or accumulates them.

    Args:
        optimizer: of a compiled model, built; changed in place.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return
    innermost = getattr(optimizer, "inner_optimizer", optimizer)  # of loss scaling
    innermost._all_reduce_sum_gradients = list  # done by then
    optimizer.apply = functools.partial(_apply_summed, optimizer.apply)


def separate_random_streams(model):
    """Has each replica draw random numbers of its own: Keras would drop the same places in every replica's rows.

    The first replica's numbers, which are what checkpoints hold, stay as they are.

    Args:
        model: built, with the seeds that the run begins or goes on with; its strategy is in scope.
    """
    strategy = tf.distribute.get_strategy()
    states = [variable.value for variable in model.variables if variable.path.endswith("seed_generator_state")]

    def move_on():
        replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int64)
        for state in states:  # a seed and a counter
            state.assign(state + tf.cast(tf.stack([0, replica * DRAWS_PER_REPLICA]), state.dtype))

    if strategy.num_replicas_in_sync > 1:
        strategy.run(tf.function(move_on, autograph=False))


def _apply_summed(apply, grads, trainable_variables=None):
    grads = [None if grad is None else tf.convert_to_tensor(grad) for grad in grads]  # no IndexedSlices
    there = [grad for grad in grads if grad is not None]
    summed = iter(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, there))
    return apply([None if grad is None else next(summed) for grad in grads], trainable_variables)


class _DistributedFit:
    """Goes before a `keras.Model` in the bases of a class."""

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        pass

    def train_step(self, data):
        return self._reducible(super().train_step(data))

    def test_step(self, data):
        return self._reducible(super().test_step(data))

    def _reducible(self, metrics):
        if not isinstance(self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return metrics
        return {name: tf.reshape(value, (1,)) for name, value in metrics.items()}
