"""Activation recomputation: a block keeps its input only, and computes what is inside again for its gradient."""

import functools

import tensorflow as tf


def recompute_blocks(backbone):
    """Has each block of a backbone recompute its activations (Chen et al. 2016, section 4, with segments of a block).

    Keras' `RematScope` does not take layers that are called with keyword arguments in a graph. Dropout would draw other
    numbers the second time: its rate has to be 0.

    Args:
        backbone: a `GPT2Backbone`; its blocks are changed in place. Calls with a cache, and eager ones, stay as they
            are.
    """
    for block in backbone.blocks:
        block.call = _recomputed(block.call)


def _recomputed(call):
    @functools.wraps(call)
    def wrapper(x, cache=None, **arguments):
        if cache is not None or tf.executing_eagerly():
            return call(x, cache=cache, **arguments)

        @tf.custom_gradient
        def block(x):
            def gradient(upstream, variables=()):
                # Not before the gradient is there, and not the same operators as those of the forward pass, which
                # TensorFlow would find out and keep. XLA sees through identities and control dependencies.
                first = tf.reshape(upstream, [-1])[0]
                again = x + tf.where(tf.math.is_nan(first), first, 0)
                with tf.GradientTape() as tape:
                    tape.watch(again)
                    y = call(again, **arguments)
                d_x, *d_variables = tape.gradient(y, [again, *variables], output_gradients=upstream)
                return d_x, d_variables

            return call(x, **arguments), gradient

        return block(x)

    return wrapper
