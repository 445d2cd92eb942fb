"""The Keras model as a SavedModel, in the layout of a TensorFlow Serving base path."""

from __future__ import annotations

import tensorflow as tf

from tfgpt.export.decoder import decoder_inputs, decoder_outputs, decoder_step
from tfgpt.generation.decoding import DECODE_SIGNATURE, decode

SERVE_DEFAULT = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY


def export_saved_model(model, path):
    """Writes `model` with these signatures, each weight stored once:

    - `logits` (also the default): `token_ids` and `padding_mask` (B, T) int32 -> `logits` (B, T, V);
    - `generate`: prompts padded on the left and one value of each setting a row -> `token_ids` (B, N) and
      `num_new_tokens` (B,); the KV cache lives inside the graph (see `tfgpt.generation.decode`);
    - `decode_step`: one step with the KV cache as inputs and outputs, under the names of the ONNX decoder with "_" in
      place of "." (see `tfgpt.export.decoder`).

    Args:
        model: a `GPT2CausalLM` that computes in float32.
        path: the directory of one version, such as `saved_model/NAME/1`.

    Raises:
        OSError: if it cannot be written.
    """
    module = tf.Module()
    # The variables and nothing else of Keras: the artifact does not depend on Keras' classes.
    module.weights = [variable.value for variable in model.variables]
    tokens, mask = DECODE_SIGNATURE["token_ids"], DECODE_SIGNATURE["padding_mask"]

    @tf.function(input_signature=[tokens, mask], autograph=False)
    def logits(token_ids, padding_mask):
        return {"logits": model({"token_ids": token_ids, "padding_mask": padding_mask}, training=False)}

    @tf.function(input_signature=list(DECODE_SIGNATURE.values()), autograph=False)
    def generate(*arguments):
        return decode(model, *arguments)

    inputs, outputs = decoder_inputs(model.backbone), decoder_outputs(model.backbone)

    @tf.function(input_signature=[_spec(tensor) for tensor in inputs], autograph=False)
    def step(*arguments):
        return {_name(tensor): value for tensor, value in zip(outputs, decoder_step(model, *arguments), strict=True)}

    logits = logits.get_concrete_function()
    signatures = {
        SERVE_DEFAULT: logits,
        "logits": logits,
        "generate": generate.get_concrete_function(),
        "decode_step": step.get_concrete_function(),
    }
    try:
        tf.saved_model.save(module, str(path), signatures=signatures)
    except tf.errors.OpError as error:  # how TensorFlow reports a full disk; the reason is the message's last part
        raise OSError(error.message.rpartition("; ")[2].partition(" [Op:")[0]) from error


def _name(tensor):
    return tensor.name.replace(".", "_")


def _spec(tensor):
    shape = [axis if isinstance(axis, int) else None for axis in tensor.axes]
    return tf.TensorSpec(shape, tensor.dtype, _name(tensor))
