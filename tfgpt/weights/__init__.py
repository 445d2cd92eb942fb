"""Other people's checkpoints, in and out: OpenAI, Hugging Face, keras-hub, nanoGPT."""

from tfgpt.weights.checkpoint import Checkpoint
from tfgpt.weights.origins import ORIGINS, convert, load

__all__ = ["ORIGINS", "Checkpoint", "convert", "load"]
