"""What gradients say of a run: their norms, and the batch size from which on more examples help little."""

import tensorflow as tf


def squared_norm(gradients):
    """The sum of squares of all the gradients' entries, float32."""
    return tf.add_n([tf.reduce_sum(tf.square(tf.cast(g, "float32"))) for g in gradients])


def layer_norms(backbone, gradients):
    """The norm of each layer's gradient, by the layer's name: embeddings, blocks, the last normalization.

    Args:
        backbone: a `GPT2Backbone`, or another model whose layers hold all of its weights.
        gradients: of its trainable variables, in their order; None gives the names alone.

    Example:

    >>> from tfgpt.models import GPT2CausalLM
    >>> model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0)
    >>> list(layer_norms(model.backbone, None))
    ['token_embedding', 'position_embedding', 'block_0', 'block_1', 'final_norm']
    """
    of_variable = {id(v): layer.name for layer in backbone.layers for v in layer.trainable_variables}
    layers = {}
    for i, variable in enumerate(backbone.trainable_variables):
        layers.setdefault(of_variable[id(variable)], []).append(i)
    if gradients is None:
        return dict.fromkeys(layers)
    return {name: tf.sqrt(squared_norm([gradients[i] for i in indices])) for name, indices in layers.items()}


def noise_scale_parts(small_squared_norm, big_squared_norm, small_batch, big_batch):
    """Unbiased estimates of tr(Σ), the variance of one example's gradient, and of |G|², the true gradient's square.

    McCandlish et al. 2018 ("An Empirical Model of Large-Batch Training"), appendix A.1. The simple noise scale is the
    ratio of their means over many steps: single estimates are noisy, and that of |G|² may even be negative.

    Args:
        small_squared_norm: mean squared norm of the gradient of small batches.
        big_squared_norm: of the gradient of the big batch.
        small_batch: examples in one; tr(Σ) is in units of these.
        big_batch: examples in the other.

    Example:

    >>> noise_scale_parts(5.0, 2.0, 1, 4)  # |G|² + tr(Σ) / 1 = 5 and |G|² + tr(Σ) / 4 = 2
    (4.0, 1.0)
    """
    trace = (small_squared_norm - big_squared_norm) / (1.0 / small_batch - 1.0 / big_batch)
    squared_gradient = (big_batch * big_squared_norm - small_batch * small_squared_norm) / (big_batch - small_batch)
    return trace, squared_gradient
