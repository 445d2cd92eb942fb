"""Sizes of the encoder–decoder Transformer: the arguments of `EncoderDecoderBackbone`."""

from __future__ import annotations

import difflib

from tfgpt.errors import UserError


def _transformer(
    layers, num_heads, hidden_dim, intermediate_dim, vocabulary_size, max_sequence_length=256, dropout=0.1
):
    return {
        "vocabulary_size": vocabulary_size,
        "num_encoder_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": num_heads,
        "hidden_dim": hidden_dim,
        "intermediate_dim": intermediate_dim,
        "max_sequence_length": max_sequence_length,
        "dropout": dropout,
    }


ENCODER_DECODER_PRESETS = {
    # Vaswani et al. 2017, table 3, with its vocabulary of about 37,000.
    "transformer-base": _transformer(6, 8, 512, 2048, vocabulary_size=37000),
    "transformer-big": _transformer(6, 16, 1024, 4096, vocabulary_size=37000, dropout=0.3),
    # For small data, such as Multi30k (Wu et al. 2021, "Good for Misconceived Reasons", table 2).
    "transformer-tiny": _transformer(4, 4, 128, 256, vocabulary_size=8000, max_sequence_length=128, dropout=0.3),
    "transformer-test": _transformer(2, 2, 32, 64, vocabulary_size=300, max_sequence_length=32, dropout=0.0),
}


def encoder_decoder_preset_config(name):
    """The `EncoderDecoderBackbone` arguments of a preset.

    Raises:
        UserError: for an unknown name, with the nearest known one.
    """
    if name in ENCODER_DECODER_PRESETS:
        return dict(ENCODER_DECODER_PRESETS[name])
    near = difflib.get_close_matches(name, ENCODER_DECODER_PRESETS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"unknown preset {name!r}, expected a model directory or one of {', '.join(ENCODER_DECODER_PRESETS)}{hint}"
    )
