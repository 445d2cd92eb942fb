"""Runners: a release directory on SavedModel or ONNX Runtime, behind one interface. No Keras here, and no model."""

from __future__ import annotations

from tfgpt.errors import UserError

RUNTIMES = ("saved_model", "onnx")


def open_runner(release, runtime):
    """The runner of a release directory.

    Args:
        release: its path.
        runtime: "saved_model" or "onnx"; only what it needs is imported.

    Raises:
        UserError: for another runtime, or a release that lacks it.
    """
    if runtime == "onnx":
        from tfgpt.runtime.onnx_runtime import OnnxRunner

        return OnnxRunner(release)
    if runtime == "saved_model":
        from tfgpt.runtime.saved_model import SavedModelRunner

        return SavedModelRunner(release)
    raise UserError(f"unknown runtime {runtime!r}, expected one of {', '.join(RUNTIMES)}")
