"""Models composed of the layers: GPT-2."""

from tfgpt.models.gpt2 import PRESETS, GPT2Backbone, GPT2CausalLM

__all__ = ["PRESETS", "GPT2Backbone", "GPT2CausalLM"]
