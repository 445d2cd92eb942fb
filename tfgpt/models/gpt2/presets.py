"""GPT-2's published sizes, and small ones for CPUs and tests: the arguments of `GPT2Backbone`."""

from __future__ import annotations

import difflib

from tfgpt.errors import UserError


def _gpt2(num_layers, num_heads, hidden_dim, vocabulary_size=50257, max_sequence_length=1024, dropout=0.1):
    return {
        "vocabulary_size": vocabulary_size,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "hidden_dim": hidden_dim,
        "intermediate_dim": 4 * hidden_dim,
        "max_sequence_length": max_sequence_length,
        "dropout": dropout,
    }


# Radford et al. 2019, table 2 (whose parameter counts were later corrected by its authors).
PRESETS = {
    "gpt2": _gpt2(12, 12, 768),  # 124,439,808 parameters
    "gpt2-medium": _gpt2(24, 16, 1024),  # 354,823,168
    "gpt2-large": _gpt2(36, 20, 1280),  # 774,030,080
    "gpt2-xl": _gpt2(48, 25, 1600),  # 1,557,611,200
    # For CPUs; the vocabulary is that of a tokenizer trained on one's own corpus.
    "gpt2-small-cpu": _gpt2(6, 6, 384, vocabulary_size=8192, max_sequence_length=256, dropout=0.0),  # 13,891,584
    "gpt2-mini": _gpt2(4, 4, 128, vocabulary_size=4096, max_sequence_length=128, dropout=0.0),  # 1,334,016
    "gpt2-test": _gpt2(2, 2, 32, vocabulary_size=300, max_sequence_length=32, dropout=0.0),  # 36,096
}


def preset_config(name):
    """The `GPT2Backbone` arguments of a preset.

    Raises:
        UserError: for an unknown name, with the nearest known one.
    """
    if name in PRESETS:
        return dict(PRESETS[name])
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"unknown preset {name!r}, expected a model directory or one of {', '.join(PRESETS)}{hint}")
