"""Classifier's model directory in, release directory out: SavedModel and ONNX, their proof, and a manifest."""

from __future__ import annotations

import pathlib

import numpy as np

from tfgpt.atomic import atomic_directory
from tfgpt.classification import encode_texts
from tfgpt.errors import UserError
from tfgpt.export.classifier_parity import TEXTS, ClassifierExpectation, check_classifier
from tfgpt.export.parity_report import write_parity_report
from tfgpt.export.release import copy_model_files, manifest_breaches, raise_breaches, write_manifest
from tfgpt.runtime import RUNTIMES, open_classifier_runner
from tfgpt.runtime.release_files import read_manifest

HELD_OUT = pathlib.PurePath("training", "validation.jsonl")  # which a run writes


def export(model_directory, out, formats, name, text=None, overwrite=False, on_progress=None):
    """Exports a classifier, and publishes the release only if every artifact passes parity.

    Args:
        model_directory, out, overwrite, on_progress: as in `tfgpt.export.export_release`.
        formats: of "saved_model" and "onnx".
        name: of the served model.
        text: a file for the parity check: labelled texts (.tsv, .csv, .jsonl), or a text a line; by default the texts
            that the model was validated with.

    Returns:
        The `ClassifierReport`s of the parity check.

    Raises:
        UserError: for bad input.
        ParityError: if an artifact is not the model; nothing is left at `out`.
    """
    say = on_progress or (lambda line: None)
    with atomic_directory(out, overwrite=overwrite) as release:
        model = load_for_export(model_directory)
        texts = held_out_texts(model_directory, model, text)
        copy_model_files(model_directory, release)
        from tfgpt.export.classifier_formats import export_classifier_onnx, export_classifier_saved_model

        if "saved_model" in formats:
            say("exporting SavedModel")
            export_classifier_saved_model(model, release / "saved_model" / name / "1")
        if "onnx" in formats:
            say("exporting ONNX")
            export_classifier_onnx(model, release / "onnx", source=pathlib.Path(model_directory).absolute().name)
        reports = _reports(model, release, formats, texts, say)
        raise_breaches(reports)
        write_parity_report(release, reports)
        write_manifest(release, pathlib.Path(model_directory), reports)
    return reports


def prove(release, model_directory, text=None, report=None, on_progress=None):
    """Checks a classifier's release against its manifest and a model directory; see `tfgpt.export.prove_release`."""
    release = pathlib.Path(release)
    formats = [runtime for runtime in RUNTIMES if (release / runtime).is_dir()]
    if not formats:
        raise UserError(f"{release} holds none of {', '.join(RUNTIMES)}, expected a release directory")
    manifest = read_manifest(release)
    model = load_for_export(model_directory)
    texts = held_out_texts(model_directory, model, text)
    reports = _reports(model, release, formats, texts, on_progress or (lambda line: None))
    manifest_breaches(release, manifest, reports)
    if report is not None:
        write_parity_report(pathlib.Path(report), reports)
    raise_breaches(reports)
    return reports


def _reports(model, release, formats, texts, say):
    say("keras: reference probabilities")
    expected = ClassifierExpectation(model, texts)
    return [
        check_classifier(expected, open_classifier_runner(release, runtime, verify=False), say) for runtime in formats
    ]


def load_for_export(model_directory):
    """The classifier of a model directory, computing in float32 whatever it was trained in."""
    from tfgpt.models import load_classifier

    return load_classifier(model_directory, dtype="float32")


def held_out_texts(model_directory, model, text=None):
    """Texts that fit the window, up to `TEXTS` of them: of a file, else those that the model was validated with.

    Raises:
        UserError: if there is none, or the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise UserError(f"{model_directory} has no tokenizer, expected one for the texts of the parity check")
    path = pathlib.Path(text or pathlib.Path(model_directory) / HELD_OUT)
    if not path.is_file():
        expected = "expected --data with some" if text is None else "expected a file of texts"
        raise UserError(f"{path} is missing, {expected} for the parity check")
    texts = _read_texts(path)
    window = model.backbone.max_sequence_length
    rows = encode_texts(model.tokenizer, texts, window, truncate=True)
    if text is None:  # cut in training, if it was told to
        texts = [one for one, row in zip(texts, rows) if model.tokenizer.encode(one) == row]
    else:
        encode_texts(model.tokenizer, texts, window)
    if not texts:
        raise UserError(f"{path} has no text within the window of {window} tokens, expected some for the parity check")
    chosen = np.linspace(0, len(texts) - 1, min(TEXTS, len(texts))).round().astype(int)
    return [texts[i] for i in chosen]


def _read_texts(path):
    from tfgpt.text import read_documents, read_labelled
    from tfgpt.text.labelled import SUFFIXES

    if any(suffix in SUFFIXES for suffix in path.suffixes):
        return [example.text for example in read_labelled([path])]
    lines = [line.strip() for document in read_documents([str(path)]) for line in document.splitlines()]
    return [line for line in lines if line]
