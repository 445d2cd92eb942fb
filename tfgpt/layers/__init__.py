"""Keras layers of the Transformer, written with `keras.ops`; `decoding_kernels` says what that has no kernel for."""

from tfgpt.layers.attention import MultiHeadAttention
from tfgpt.layers.dense import Dense
from tfgpt.layers.embedding import TokenEmbedding
from tfgpt.layers.feed_forward import FeedForward, gelu_tanh
from tfgpt.layers.masks import causal_mask, decoder_mask, padding_mask_to_attention_mask
from tfgpt.layers.normalization import LayerNormalization
from tfgpt.layers.positions import LearnedPositions, SinusoidalPositions
from tfgpt.layers.residual import ResidualBlock
from tfgpt.layers.transformer import TransformerDecoderBlock, TransformerEncoderBlock

__all__ = [
    "Dense",
    "FeedForward",
    "LayerNormalization",
    "LearnedPositions",
    "MultiHeadAttention",
    "ResidualBlock",
    "SinusoidalPositions",
    "TokenEmbedding",
    "TransformerDecoderBlock",
    "TransformerEncoderBlock",
    "causal_mask",
    "decoder_mask",
    "gelu_tanh",
    "padding_mask_to_attention_mask",
]
