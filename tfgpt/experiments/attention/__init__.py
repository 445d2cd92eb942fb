"""Attention, seen: pictures and a page of where a model's tokens look, and of what its layers would say."""

from tfgpt.experiments.attention.page import page
from tfgpt.experiments.attention.report import show_attention
from tfgpt.experiments.attention.visible import visible
