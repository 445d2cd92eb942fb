"""The original encoder–decoder Transformer."""

from tfgpt.models.encoder_decoder.backbone import EncoderDecoderBackbone
from tfgpt.models.encoder_decoder.presets import ENCODER_DECODER_PRESETS, encoder_decoder_preset_config
from tfgpt.models.encoder_decoder.transformer import EncoderDecoderTransformer

__all__ = [
    "ENCODER_DECODER_PRESETS",
    "EncoderDecoderBackbone",
    "EncoderDecoderTransformer",
    "encoder_decoder_preset_config",
]
