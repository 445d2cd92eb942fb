"""Model directory to release directory: SavedModel, ONNX, and the proof that both are the model."""

from tfgpt.export.release import FORMATS, ParityError, export_release, prove_release

__all__ = ["FORMATS", "ParityError", "export_release", "prove_release"]
