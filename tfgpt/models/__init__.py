"""Models composed of the layers: GPT-2, and the encoder–decoder Transformer."""

from tfgpt.models.encoder_decoder import ENCODER_DECODER_PRESETS, EncoderDecoderBackbone, EncoderDecoderTransformer
from tfgpt.models.gpt2 import PRESETS, GPT2Backbone, GPT2CausalLM

__all__ = [
    "ENCODER_DECODER_PRESETS",
    "PRESETS",
    "EncoderDecoderBackbone",
    "EncoderDecoderTransformer",
    "GPT2Backbone",
    "GPT2CausalLM",
]
