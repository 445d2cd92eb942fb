"""Experiments on the Transformer itself, each of which one command repeats, and pictures of what a model does."""
