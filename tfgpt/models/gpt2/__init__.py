"""GPT-2."""

from tfgpt.models.gpt2.backbone import GPT2Backbone
from tfgpt.models.gpt2.causal_lm import GPT2CausalLM
from tfgpt.models.gpt2.presets import PRESETS, preset_config

__all__ = ["PRESETS", "GPT2Backbone", "GPT2CausalLM", "preset_config"]
