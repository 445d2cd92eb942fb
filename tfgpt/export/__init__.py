"""Model directory to release directory: SavedModel, ONNX, and the proof that both are the model.

Names are imported when they are first used, so that publishing a release does without TensorFlow.
"""

import importlib

_MODULES = {
    "FORMATS": "tfgpt.export.release",
    "ParityError": "tfgpt.export.release",
    "export_release": "tfgpt.export.release",
    "prove_release": "tfgpt.export.release",
    "publish_version": "tfgpt.export.versions",
    "withdraw_versions": "tfgpt.export.versions",
}

__all__ = sorted(_MODULES)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
