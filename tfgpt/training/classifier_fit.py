"""Classifiers whose `fit` takes the kernels of a run, and validates by an exact mean and a confusion matrix."""

import keras
import tensorflow as tf

from tfgpt.layers.fusible import kernels
from tfgpt.models.classifier import EncoderClassifier, GPT2Classifier
from tfgpt.training.losses import token_losses


class ConfusionMatrix(keras.metrics.Metric):
    """Accuracy and macro F1 of a whole validation, from counts (C, C) of classes and what they are taken for.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes, name="confusion"):
        super().__init__(name=name, dtype="float32")
        # Counts of texts: float32, which all strategies sum, is exact up to 2^24 of them.
        self.counts = self.add_variable((num_classes, num_classes), initializer="zeros", name="counts")

    def update_state(self, counts):
        self.counts.assign_add(counts)

    def result(self):
        counts = tf.convert_to_tensor(self.counts)
        right = tf.linalg.diag_part(counts)
        taken, support = tf.reduce_sum(counts, axis=0), tf.reduce_sum(counts, axis=1)
        f1 = tf.math.divide_no_nan(2 * right, taken + support)
        accuracy = tf.math.divide_no_nan(tf.reduce_sum(right), tf.reduce_sum(counts))
        return {"accuracy": accuracy, "macro_f1": tf.reduce_mean(f1)}


class _ClassifierFit:
    """Goes before a `SequenceClassifier` in the bases of a class.

    Args:
        kernels: what computes fusible functions in `fit` (see `tfgpt.layers.fusible`); None for themselves.
    """

    def __init__(self, *args, kernels=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.kernels = kernels
        self.confusion = ConfusionMatrix(len(self.labels))

    def train_step(self, data):
        with kernels(self.kernels):
            return super().train_step(data)

    def test_step(self, data):
        """The loss is the mean over all texts, without smoothing, whatever replicas' batches are filled up with."""
        inputs, classes, weights = keras.utils.unpack_x_y_sample_weight(data)
        with kernels(self.kernels):
            logits = self(inputs, training=False)
        if weights is None:
            weights = tf.ones(tf.shape(classes), "float32")
        num_classes = len(self.labels)
        pairs = classes * num_classes + tf.argmax(logits, axis=-1, output_type=classes.dtype)
        counts = tf.reduce_sum(tf.one_hot(pairs, num_classes**2) * weights[:, None], axis=0)
        sums = [tf.reduce_sum(token_losses(logits, classes) * weights), tf.reduce_sum(weights), counts]
        if self.distribute_strategy.num_replicas_in_sync > 1:
            sums = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, sums)
        loss, total, counts = sums
        self._loss_tracker.update_state(tf.math.divide_no_nan(loss, total), sample_weight=total)
        self.confusion.update_state(tf.reshape(counts, (num_classes, num_classes)))
        return self.get_metrics_result()


class TrainingEncoderClassifier(_ClassifierFit, EncoderClassifier):
    """An `EncoderClassifier` for runs."""


class TrainingGPT2Classifier(_ClassifierFit, GPT2Classifier):
    """A `GPT2Classifier` for runs."""
