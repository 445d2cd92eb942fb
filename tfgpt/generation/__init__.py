"""Decoding: greedy, sampling and beam search from a KV cache, in batches of prompts, or sources, of any lengths."""

from tfgpt.generation.beam_search import beam_search
from tfgpt.generation.decoding import decode
from tfgpt.generation.text_generation import generate, generate_token_ids
from tfgpt.generation.translation import (
    translate,
    translate_by_beam_search,
    translate_greedily,
    translate_token_ids,
)
from tfgpt.generation_settings import GenerationSettings

__all__ = [
    "GenerationSettings",
    "beam_search",
    "decode",
    "generate",
    "generate_token_ids",
    "translate",
    "translate_by_beam_search",
    "translate_greedily",
    "translate_token_ids",
]
