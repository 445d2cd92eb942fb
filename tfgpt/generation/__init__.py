"""Decoding: greedy, sampling and beam search from a KV cache, in batches of prompts of any lengths."""

from tfgpt.generation.beam_search import beam_search
from tfgpt.generation.decoding import decode
from tfgpt.generation.text_generation import generate, generate_token_ids
from tfgpt.generation_settings import GenerationSettings

__all__ = ["GenerationSettings", "beam_search", "decode", "generate", "generate_token_ids"]
