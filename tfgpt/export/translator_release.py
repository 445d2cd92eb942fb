"""A translation model's directory in, its release directory out: `tfgpt.export.release` for its kind of model."""

from __future__ import annotations

import pathlib

from tfgpt.atomic import atomic_directory
from tfgpt.errors import UserError
from tfgpt.export import release as releases
from tfgpt.export.parity_report import write_parity_report
from tfgpt.export.translation_parity import TranslationExpectation, check_translator, encode_held_out
from tfgpt.json_file import read_json
from tfgpt.runtime import RUNTIMES, open_translator
from tfgpt.runtime.release_files import read_manifest
from tfgpt.runtime.translator import default_settings


def export(model_directory, out, formats, name, text, overwrite, on_progress):
    """`export_release` of a translation model; `text` is as in `held_out_pairs`."""
    say = on_progress or (lambda line: None)
    with atomic_directory(out, overwrite=overwrite) as release:
        model = load(model_directory)
        settings = checked_settings(model_directory, model)
        pairs = held_out_pairs(model_directory, model, text)
        releases.copy_model_files(model_directory, release)
        if "saved_model" in formats:
            say("exporting SavedModel")
            from tfgpt.export.saved_model import export_translation_saved_model

            export_translation_saved_model(model, release / "saved_model" / name / "1", settings)
        if "onnx" in formats:
            say("exporting ONNX")
            from tfgpt.export.onnx_encoder_decoder import export_encoder_decoder_onnx

            export_encoder_decoder_onnx(model, release / "onnx", source=model_directory.absolute().name)
        reports = _check(model, pairs, settings, release, formats, say)
        releases.raise_breaches(reports)
        write_parity_report(release, reports)
        releases.write_manifest(release, model_directory, reports)
    return reports


def prove(release, model_directory, text, report, on_progress):
    """`prove_release` of a translation model."""
    say = on_progress or (lambda line: None)
    runtimes = [runtime for runtime in RUNTIMES if (release / runtime).is_dir()]
    if not runtimes:
        raise UserError(f"{release} holds none of {', '.join(RUNTIMES)}, expected a release directory")
    manifest = read_manifest(release)
    model = load(model_directory)
    pairs = held_out_pairs(model_directory, model, text)
    reports = _check(model, pairs, checked_settings(release, model), release, runtimes, say)
    releases.manifest_breaches(release, manifest, reports)
    if report is not None:
        write_parity_report(pathlib.Path(report), reports)
    releases.raise_breaches(reports)
    return reports


def _check(model, pairs, settings, release, formats, say):
    """The report of each runtime; one at a time is kept in memory."""
    from tfgpt.export.keras_translator import KerasTranslator

    expected = TranslationExpectation(KerasTranslator(model), *pairs, settings, say)
    return [check_translator(expected, open_translator(release, format, verify=False), say) for format in formats]


def load(model_directory):
    """The model of a directory, computing in float32 whatever it was trained in.

    Raises:
        UserError: if there is none, or it has no tokenizer.
    """
    from tfgpt.models import EncoderDecoderTransformer

    model = EncoderDecoderTransformer.from_preset(model_directory, dtype="float32")
    if model.tokenizer is None or None in (model.tokenizer.bos_token_id, model.tokenizer.eos_token_id):
        raise UserError(
            f"{model_directory} has no tokenizer with a begin and end of sentence, expected one for text to translate"
        )
    return model


def checked_settings(directory, model):
    """What a release translates with unless it is told, of the directory's generation_config.json.

    Raises:
        UserError: if the file asks for what this model or a release cannot do.
    """
    path = pathlib.Path(directory) / "generation_config.json"
    settings = default_settings(directory)
    window, size = model.backbone.max_sequence_length, model.backbone.vocabulary_size
    if settings["max_new_tokens"] is not None and settings["max_new_tokens"] > window:
        raise UserError(
            f"{path}: max_new_tokens is {settings['max_new_tokens']}, expected at most the window's {window}"
        )
    if settings["num_beams"] > size:
        raise UserError(f"{path}: num_beams is {settings['num_beams']}, expected at most the vocabulary's {size}")
    end = model.tokenizer.eos_token_id
    found = read_json(path).get("eos_token_id", end) if path.is_file() else end
    if found not in (end, [end]):
        raise UserError(f"{path}: eos_token_id is {found}, expected {end}, the tokenizer's </s>")
    return settings


def held_out_pairs(model_directory, model, text=None):
    """Token ids of sentence pairs that the model was not trained on, and the sources' texts.

    Args:
        model_directory: of the model.
        model: with its tokenizer.
        text: a file of lines `source TAB target`; by default the validation pairs that training left behind.

    Raises:
        UserError: if there are none that the model's window takes.
    """
    pairs = _read_pairs(pathlib.Path(model_directory), text)
    sources, targets, texts = encode_held_out(model.tokenizer, pairs, model.backbone.max_sequence_length)
    if not sources:
        raise UserError(f"{pairs.source_name} has no pair of sentences that fits the model's window, expected one")
    return sources, targets, texts


def _read_pairs(model_directory, text):
    from tfgpt.text import read_sentence_pairs, read_tab_separated_pairs

    if text is not None:
        return read_tab_separated_pairs(str(text))
    training = model_directory / "training"
    sides = [training / f"validation.{side}.txt" for side in ("source", "target")]
    if all(side.is_file() for side in sides):
        return read_sentence_pairs(*map(str, sides))
    raise UserError(
        f"{model_directory} has no held-out sentence pairs for the parity check, expected --data with a file of lines "
        "`source TAB target`"
    )
