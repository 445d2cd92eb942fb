"""The `tfgpt` command."""

from tfgpt.cli.main import main

__all__ = ["main"]
