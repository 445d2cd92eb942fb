"""The Keras model as a SavedModel, in the layout of a TensorFlow Serving base path."""

from __future__ import annotations

import pathlib

import tensorflow as tf

from tfgpt.export.signatures import TextSignatures, TokenSignatures
from tfgpt.export.warm_up import write_warm_up
from tfgpt.generation_settings import GenerationSettings
from tfgpt.runtime.runner import with_stop
from tfgpt.text.in_graph_tokenizer import in_graph_tokenizer


def export_saved_model(model, path, settings=None):
    """Writes `model` with the signatures of `tfgpt.export.signatures`, each weight stored once, and warm-up requests.

    Args:
        model: a `GPT2CausalLM` that computes in float32. Without a tokenizer it gets the signatures of tokens alone.
        path: the directory of one version, such as `saved_model/NAME/1`.
        settings: `GenerationSettings` of the default signature.

    Raises:
        UserError: for a tokenizer that is neither byte-level BPE nor of characters.
        OSError: if it cannot be written.
    """
    path, settings = pathlib.Path(path), settings or GenerationSettings()
    module = tf.Module()
    # The variables and nothing else of Keras: the artifact does not depend on Keras' classes.
    module.weights = [variable.value for variable in model.variables]
    if model.tokenizer is None:
        served = TokenSignatures(model, settings.stop_token_ids or ())
    else:
        module.tokenizer = in_graph_tokenizer(model.tokenizer)
        settings = with_stop(settings, model.tokenizer)
        served = TextSignatures(model, module.tokenizer, settings, model.tokenizer.end_token_id)
    signatures = {name: function.get_concrete_function() for name, function in served.functions().items()}
    try:
        tf.saved_model.save(module, str(path), signatures=signatures)
        write_warm_up(path, signatures, example_text(model.tokenizer))
    except tf.errors.OpError as error:
        raise os_error(error) from error


def os_error(error):
    """What TensorFlow says of a full disk, as an OSError: the reason is the message's last part."""
    return OSError(error.message.rpartition("; ")[2].partition(" [Op:")[0])


def example_text(tokenizer):
    """A text that the tokenizer can read: its first token that is one; None without a tokenizer."""
    if tokenizer is None:
        return None
    texts = (tokenizer.decode([i]) for i in range(tokenizer.vocabulary_size))
    return next(text for text in texts if text.isprintable() and tokenizer.encode(text))
