"""The ONNX files of a release: one model in several forms."""

from __future__ import annotations

import pathlib

VARIANTS = ("portable", "float32", "float16", "int8", "int8_weight_only", "int4")


def onnx_path(variant):
    """Where a release directory keeps a variant: `onnx/model.onnx` the portable one, `onnx/model_int8.onnx` another."""
    name = "model.onnx" if variant == "portable" else f"model_{variant}.onnx"
    return pathlib.PurePath("onnx", name)


def data_path(variant):
    """Where its weights are; the float32 variants share them."""
    name = onnx_path("portable" if variant == "float32" else variant).name
    return pathlib.PurePath("onnx", f"{name}.data")
