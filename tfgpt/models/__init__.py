"""Models composed of the layers: GPT-2, and classifiers."""

from tfgpt.models.classifier import EncoderBackbone, EncoderClassifier, GPT2Classifier, load_classifier
from tfgpt.models.gpt2 import PRESETS, GPT2Backbone, GPT2CausalLM

__all__ = [
    "PRESETS",
    "EncoderBackbone",
    "EncoderClassifier",
    "GPT2Backbone",
    "GPT2CausalLM",
    "GPT2Classifier",
    "load_classifier",
]
