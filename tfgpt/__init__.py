"""Transformer language models in Keras, from `fit` to the machines that serve them, with proof that they stay the same.

Names are imported when they are first used, so that `import tfgpt` costs nothing.
"""

import importlib

from tfgpt.version import __version__

_MODULES = {
    "EncoderDecoderBackbone": "tfgpt.models",
    "EncoderDecoderTransformer": "tfgpt.models",
    "GPT2Backbone": "tfgpt.models",
    "GPT2CausalLM": "tfgpt.models",
    "GenerationSettings": "tfgpt.generation",
    "RunConfig": "tfgpt.training.run_config",
    "UserError": "tfgpt.errors",
    "convert": "tfgpt.weights",
    "evaluate_text": "tfgpt.training.evaluation",
    "export_release": "tfgpt.export",
    "load": "tfgpt.weights",
    "open_runner": "tfgpt.runtime",
    "train": "tfgpt.training.trainer",
}

__all__ = [*sorted(_MODULES), "__version__"]


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__():
    return sorted({*globals(), *__all__})
