"""Models composed of the layers: GPT-2, the encoder–decoder Transformer, and classifiers."""

from tfgpt.models.classifier import EncoderBackbone, EncoderClassifier, GPT2Classifier, load_classifier
from tfgpt.models.encoder_decoder import ENCODER_DECODER_PRESETS, EncoderDecoderBackbone, EncoderDecoderTransformer
from tfgpt.models.gpt2 import PRESETS, GPT2Backbone, GPT2CausalLM

__all__ = [
    "ENCODER_DECODER_PRESETS",
    "PRESETS",
    "EncoderBackbone",
    "EncoderClassifier",
    "EncoderDecoderBackbone",
    "EncoderDecoderTransformer",
    "GPT2Backbone",
    "GPT2CausalLM",
    "GPT2Classifier",
    "load_classifier",
]
