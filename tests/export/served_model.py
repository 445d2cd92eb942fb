"""A SavedModel as a client of a server sees it, and the random models that these tests serve."""

import types

import keras
import numpy as np
import tensorflow as tf

from tfgpt.export.saved_model import export_saved_model
from tfgpt.models import GPT2Backbone, GPT2CausalLM
from tfgpt.text import read_documents

# What a request has where a test says nothing: greedy.
DEFAULTS = {
    "max_new_tokens": 8,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "seed": 0,
    "first_index": 0,
}


class ServedModel:
    """A loaded SavedModel whose signatures are called by name, with one value of each setting a row.

    Args:
        path: of the SavedModel's version.
    """

    def __init__(self, path):
        self.path = path
        self._module = tf.saved_model.load(str(path))  # kept: signatures do not keep their variables alive
        self.signatures = self._module.signatures

    def __call__(self, signature, **inputs):
        """Its outputs as a namespace of arrays; settings that are missing have `DEFAULTS`, single ones go to all rows.

        Every input is sent, as TensorFlow Serving demands.
        """
        function = self.signatures[signature]
        _, specifications = function.structured_input_signature
        rows = len(next(iter(inputs.values())))
        tensors = {}
        for name, spec in specifications.items():
            value = inputs[name] if name in inputs else DEFAULTS[name]
            tensors[name] = tf.constant([value] * rows if np.isscalar(value) else value, spec.dtype)
        assert set(inputs) <= set(tensors)
        return types.SimpleNamespace(**{name: value.numpy() for name, value in function(**tensors).items()})


def new_tokens(outputs):
    """The rows of `token_ids`, each as long as it is."""
    return [row[:count].tolist() for row, count in zip(outputs.token_ids, outputs.num_new_tokens, strict=True)]


def strings(array):
    return [value.decode() for value in array]


def random_model(tokenizer=None, **sizes):
    """A model whose matrices are so large that its logits are far apart and its text is varied."""
    keras.utils.set_random_seed(1)
    model = GPT2CausalLM(GPT2Backbone(num_layers=2, num_heads=2, **sizes), tokenizer=tokenizer)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            # Less for the tied embedding, or each token would be followed by itself.
            variable.assign(variable * (8.0 if variable is model.backbone.token_embedding.embeddings else 16.0))
    return model


def serve(model, folder, settings=None):
    """The model, exported and loaded."""
    export_saved_model(model, folder / "served" / "1", settings)
    return ServedModel(folder / "served" / "1")


def stdlib_text():
    """Some of the standard library's source."""
    return "\n".join(read_documents(["stdlib"], max_bytes=2**17))


def text_of_tokens(text, start, count, tokenizer):
    """The longest piece of a text from `start` on that has at most `count` tokens."""
    end = start + 1
    while len(tokenizer.encode(text[start : end + 1])) <= count:
        end += 1
    return text[start:end]
