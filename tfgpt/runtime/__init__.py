"""Runners: a release directory on SavedModel or ONNX Runtime, behind one interface. No Keras here, and no model."""

from __future__ import annotations

from tfgpt.errors import UserError

RUNTIMES = ("saved_model", "onnx")


def open_runner(release, runtime, variant="float32", threads=0, verify=True):
    """The runner of a release directory.

    Args:
        release: its path.
        runtime: "saved_model" or "onnx"; only what it needs is imported.
        variant: which ONNX file (see `tfgpt.runtime.variants`).
        threads: of ONNX Runtime; 0 lets it choose.
        verify: compare the ONNX files with the release's manifest first.

    Raises:
        UserError: for another runtime or variant, or a release that lacks it.
    """
    if runtime == "onnx":
        from tfgpt.runtime.onnx_runtime import open_onnx_runner

        return open_onnx_runner(release, variant, threads, verify)
    if runtime == "saved_model":
        from tfgpt.runtime.saved_model import SavedModelRunner

        return SavedModelRunner(release)
    raise UserError(f"unknown runtime {runtime!r}, expected one of {', '.join(RUNTIMES)}")


def open_translator(release, runtime, threads=0, verify=True):
    """The translator of a translation model's release directory.

    Args:
        release, runtime, threads, verify: as in `open_runner`.

    Raises:
        UserError: for another runtime, or a release that lacks it or is of another kind of model.
    """
    from tfgpt.runtime.release_files import read_release_config
    from tfgpt.runtime.translator import MODEL_TYPE, SIZES

    config = read_release_config(release, SIZES, MODEL_TYPE)
    if runtime == "onnx":
        from tfgpt.runtime.onnx_translator import open_onnx_translator

        return open_onnx_translator(release, config, threads, verify)
    if runtime == "saved_model":
        from tfgpt.runtime.saved_model import SavedModelTranslator

        return SavedModelTranslator(release, config)
    raise UserError(f"unknown runtime {runtime!r}, expected one of {', '.join(RUNTIMES)}")


def open_classifier_runner(release, runtime, threads=0, verify=True):
    """The runner of a classifier's release directory.

    Args:
        release, runtime, threads, verify: as in `open_runner`.

    Returns:
        A `tfgpt.runtime.classifier_runner.ClassifierRunner`.

    Raises:
        UserError: for another runtime, or a release that lacks it.
    """
    if runtime == "onnx":
        from tfgpt.runtime.onnx_runtime import open_onnx_classifier

        return open_onnx_classifier(release, threads, verify)
    if runtime == "saved_model":
        from tfgpt.runtime.saved_model import SavedModelClassifier

        return SavedModelClassifier(release)
    raise UserError(f"unknown runtime {runtime!r}, expected one of {', '.join(RUNTIMES)}")
