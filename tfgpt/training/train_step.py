"""The training step: gradients of a batch, in one piece or in micro-batches, and what there is to log of them."""

import keras
import tensorflow as tf

from tfgpt.layers.embedding import project
from tfgpt.layers.fusible import kernels
from tfgpt.models.gpt2 import GPT2CausalLM
from tfgpt.training.chunked_loss import chunked_loss, chunked_loss_sum
from tfgpt.training.gradients import layer_norms, noise_scale_parts, squared_norm
from tfgpt.training.kernels import fused_kernel
from tfgpt.training.losses import TokenLoss

ROUND = 64


class TrainingCausalLM(GPT2CausalLM):
    """A `GPT2CausalLM` whose `fit` accumulates gradients, minimizes a loss of its own, and logs gradient norms.

    Keras' `gradient_accumulation_steps` is another thing than a bigger batch: its learning rate schedule and its moving
    average of the weights count micro-batches, as `fit` and its callbacks do, and with float16 an overflow drops one
    micro-batch from the mean and shifts the updates. Here a step takes the whole batch and the optimizer sees one
    averaged gradient: clipping, decay, schedule, moving average and loss scale all count updates.

    Args:
        backbone: a `GPT2Backbone`.
        tokenizer: kept beside the model.
        label_smoothing: of the training loss; validation has the loss that is given to `compile`, a `TokenLoss`.
        z_loss: of the training loss.
        kernels: what computes fusible functions in `fit` (see `tfgpt.layers.fusible`); None for themselves.
        accumulate_steps: micro-batches a step; divides the batch size of each replica.
        log_gradients: keeps means of gradient norms, before clipping, in `gradient_metrics`; where a batch comes in
            parts, by accumulation or replicas, those of the noise scale, too.
    """

    def __init__(
        self,
        backbone,
        tokenizer=None,
        label_smoothing=0.0,
        z_loss=0.0,
        kernels=None,
        accumulate_steps=1,
        log_gradients=False,
    ):
        super().__init__(backbone, tokenizer=tokenizer)
        self.label_smoothing, self.z_loss = label_smoothing, z_loss
        self.kernels = kernels
        self.accumulate_steps = accumulate_steps
        self.log_gradients = log_gradients
        if log_gradients:
            names = ["gradient_norm", *(f"gradient_norm/{layer}" for layer in layer_norms(self.backbone, None))]
            names += ["noise_trace", "squared_gradient"] if self._has_parts() else []
            self.gradient_metrics = {name: keras.metrics.Mean(name=name) for name in names}

    def train_step(self, data):
        token_ids, targets, weights = keras.utils.unpack_x_y_sample_weight(data)
        if weights is None:
            weights = tf.ones(tf.shape(targets), "float32")
        replicas = self.distribute_strategy.num_replicas_in_sync  # whose gradients the optimizer adds up
        total = tf.reduce_sum(weights) * replicas
        if self.accumulate_steps == 1:
            loss, gradients = self._loss_and_gradients(token_ids, targets, weights, total)
            part = squared_norm(gradients) if self.log_gradients else None
        else:
            loss, gradients, part = self._accumulate(token_ids, targets, weights, total)
        self._loss_tracker.update_state(loss * replicas, sample_weight=tf.shape(token_ids)[0])
        if self.log_gradients:
            self._log_gradients(gradients, part, token_ids.shape[0])
        self.optimizer.apply(gradients, self.trainable_variables)
        return self.get_metrics_result()

    def test_step(self, data):
        """Keras' own, but that logits are there a chunk at a time, and that the loss of a batch is the mean over its
        targets in the whole of it under every strategy: replicas' shares of the last batch differ in padding, and
        their means would not count alike."""
        token_ids, targets, weights = keras.utils.unpack_x_y_sample_weight(data)
        if not isinstance(self.loss, TokenLoss):
            raise ValueError(f"validation has the loss {self.loss!r}, expected a TokenLoss")
        if weights is None:
            weights = tf.ones(tf.shape(targets), "float32")
        embedding = self.backbone.token_embedding
        with kernels(self.kernels):
            hidden = self.backbone(token_ids, training=False)  # (B, T, D)
            loss = chunked_loss_sum(
                lambda rows: embedding(rows, reverse=True),
                embedding.vocabulary_size,
                *_rows(hidden, targets, weights),
                label_smoothing=self.loss.label_smoothing,
                z_loss=self.loss.z_loss,
            )
        sums = [loss, tf.reduce_sum(weights)]
        if self.distribute_strategy.num_replicas_in_sync > 1:
            sums = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, sums)
        self._loss_tracker.update_state(tf.math.divide_no_nan(*sums), sample_weight=tf.shape(targets)[0])
        return self.get_metrics_result()

    def _loss_and_gradients(self, token_ids, targets, weights, total):
        """The losses' sum over `total`, and its gradients times the loss scale."""
        scale = self.optimizer.scale_loss(1.0)  # of float16's gradients
        embedding = self.backbone.token_embedding
        with kernels(self.kernels):
            with tf.GradientTape() as tape:
                hidden = self.backbone(token_ids, training=True)  # (B, T, D)
            matrix = self._projection_matrix()
            loss, d_hidden, [d_projection] = chunked_loss(
                lambda rows: project(rows, matrix),
                [matrix],
                *_rows(hidden, targets, weights * tf.math.divide_no_nan(scale, total)),
                label_smoothing=self.label_smoothing,
                z_loss=self.z_loss,
                classes=embedding.vocabulary_size if matrix.shape[0] > embedding.vocabulary_size else None,
            )
            gradients = tape.gradient(  # which may compute blocks again
                hidden,
                {id(variable): variable.value for variable in self.trainable_variables},
                output_gradients=tf.reshape(d_hidden, tf.shape(hidden)),
            )
        key = id(embedding.embeddings)
        if key in gradients:  # it is not frozen
            # The embedding is projection, too. Keras' sum of both gradients would first make the few rows that were
            # looked up a whole matrix.
            rows = gradients[key]
            d_projection = d_projection[: embedding.vocabulary_size]
            gradients[key] = tf.tensor_scatter_nd_add(d_projection, rows.indices[:, None], rows.values)
        return loss / scale, [tf.convert_to_tensor(gradient) for gradient in gradients.values()]  # no IndexedSlices

    def _projection_matrix(self):
        """The tied embedding as the products take it, cast once a step."""
        embedding = self.backbone.token_embedding
        matrix = tf.cast(embedding.embeddings.value, self.compute_dtype)
        if self.kernels is fused_kernel and not self.label_smoothing:
            # A number of rows like 50257 makes the gradient's product a quarter slower than the next round one.
            matrix = tf.pad(matrix, [[0, -embedding.vocabulary_size % ROUND], [0, 0]])
        return matrix

    def _accumulate(self, token_ids, targets, weights, total):
        """As `_loss_and_gradients`, a micro-batch at a time; also the mean squared norm of micro-batches' gradients."""
        count, size = self.accumulate_steps, token_ids.shape[0]
        if size is None or size % count:
            raise ValueError(f"a replica's batch has {size} windows, expected a multiple of accumulate_steps {count}")
        micro_batches = [tf.reshape(x, (count, size // count, *x.shape[1:])) for x in (token_ids, targets, weights)]

        def add(index, loss, part, *sums):
            micro_loss, gradients = self._loss_and_gradients(*(x[index] for x in micro_batches), total)
            if self.log_gradients:
                part += squared_norm(gradients) / count
            return index + 1, loss + micro_loss, part, *(s + g for s, g in zip(sums, gradients))

        zeros = [tf.zeros(variable.shape, variable.dtype) for variable in self.trainable_variables]
        _, loss, part, *gradients = tf.while_loop(
            lambda index, *_: index < count, add, (0, 0.0, 0.0, *zeros), parallel_iterations=1, maximum_iterations=count
        )
        return loss, gradients, part

    def _has_parts(self):
        return self.accumulate_steps * self.distribute_strategy.num_replicas_in_sync > 1

    def _log_gradients(self, gradients, part, windows):
        """Updates the metrics; `part` is the mean squared norm of a part of the batch, as a share of the whole."""
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas > 1:
            gradients = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        scale = self.optimizer.scale_loss(1.0)  # of float16's gradients
        whole = squared_norm(gradients) / scale**2
        values = {"gradient_norm": tf.sqrt(whole)}
        norms = layer_norms(self.backbone, gradients)
        values |= {f"gradient_norm/{name}": norm / scale for name, norm in norms.items()}
        if self._has_parts():
            parts = self.accumulate_steps * replicas
            part = part * parts**2 / scale**2  # of a part's own mean
            trace, squared_gradient = noise_scale_parts(
                part, whole, windows / self.accumulate_steps, windows * replicas
            )
            values |= {"noise_trace": trace, "squared_gradient": squared_gradient}
        finite = tf.math.is_finite(whole)  # not where float16 overflows and the step is skipped
        for name, value in values.items():
            self.gradient_metrics[name].update_state(tf.where(finite, value, 0.0), sample_weight=finite)


def _rows(*tensors):
    """Tensors (B, T, ...) as (B * T, ...)."""
    return [tf.reshape(x, (-1, *x.shape[2:])) for x in tensors]
