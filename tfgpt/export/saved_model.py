"""The Keras model as a SavedModel, in the layout of a TensorFlow Serving base path."""

from __future__ import annotations

import pathlib

import tensorflow as tf

from tfgpt.export.signatures import TextSignatures, TokenSignatures
from tfgpt.export.translation_signatures import TranslationSignatures
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
    settings, tokenizer = settings or GenerationSettings(), None
    if model.tokenizer is None:
        served = TokenSignatures(model, settings.stop_token_ids or ())
    else:
        tokenizer = in_graph_tokenizer(model.tokenizer)
        settings = with_stop(settings, model.tokenizer)
        served = TextSignatures(model, tokenizer, settings, model.tokenizer.end_token_id)
    write_saved_model(path, model, tokenizer, served, example_text(model.tokenizer))


def export_translation_saved_model(model, path, settings):
    """Writes `model` with the signatures of `tfgpt.export.translation_signatures`, likewise.

    Args:
        model: an `EncoderDecoderTransformer` that computes in float32, with a tokenizer.
        path: as above.
        settings: what the default signature translates with (`tfgpt.runtime.translator.default_settings`).

    Raises:
        UserError, OSError: as above.
    """
    tokenizer = in_graph_tokenizer(model.tokenizer)
    served = TranslationSignatures(model, tokenizer, settings)
    text, eos_token_id = example_text(model.tokenizer), model.tokenizer.eos_token_id
    # Two rows, one a branch: greedily and by beam search.
    examples = {
        "text": [text, text],
        "target": [text, text],
        "num_beams": [1, settings["num_beams"]],
        "length_penalty": [1.0, 1.0],
        "max_new_tokens": [2, 2],
        "source_ids": [[eos_token_id]] * 2,
        "source_padding_mask": [[1]] * 2,
        "target_ids": [[model.tokenizer.bos_token_id]] * 2,
        "encoder_attention_mask": [[1]],
    }
    write_saved_model(path, model, tokenizer, served, text, examples)


def write_saved_model(path, model, tokenizer, served, text=None, examples=None):
    """Writes the variables of a model, each once, a tokenizer, signatures and their warm-up requests.

    Args:
        path: the directory of one version.
        model: a Keras model.
        tokenizer: one for a graph, or None.
        served: what has `functions()`, name → `tf.function`.
        text, examples: of warm-up requests (see `tfgpt.export.warm_up`).

    Raises:
        OSError: if it cannot be written.
    """
    path, module = pathlib.Path(path), tf.Module()
    # The variables and nothing else of Keras: the artifact does not depend on Keras' classes.
    module.weights = [variable.value for variable in model.variables]
    if tokenizer is not None:
        module.tokenizer = tokenizer
    signatures = {name: function.get_concrete_function() for name, function in served.functions().items()}
    try:
        tf.saved_model.save(module, str(path), signatures=signatures)
        write_warm_up(path, signatures, text, examples)
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
