"""Model directory in, release directory out: every format, its proof, and a manifest."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib
import json
import pathlib
import platform
import re
import shutil
from importlib import metadata

from tfgpt.atomic import atomic_directory, write_text
from tfgpt.checksum import sha256_of_file
from tfgpt.classification import is_classifier
from tfgpt.errors import UserError
from tfgpt.export.classifier_parity import PROBABILITY_TOLERANCE, TOLERANCE_REASON, ClassifierReport
from tfgpt.export.parity import Breach, Cost, Expectation, breach_on_failure, check_runner
from tfgpt.export.parity_batches import MIN_PERPLEXITY_TOKENS
from tfgpt.export.parity_report import REPORT_FILES, write_parity_report
from tfgpt.export.text_parity import check_text
from tfgpt.export.tolerances import TOLERANCES
from tfgpt.generation_settings import GenerationSettings
from tfgpt.json_file import read_json
from tfgpt.runtime import RUNTIMES, open_runner
from tfgpt.runtime.release_files import change, read_manifest
from tfgpt.runtime.runner import with_stop
from tfgpt.runtime.variants import VARIANTS, data_path, onnx_path
from tfgpt.version import __version__

FORMATS = RUNTIMES  # an export format is named as the runtime that runs it
QUANTIZED = ("int8", "int8_weight_only", "int4")
EXTRA_VARIANTS = (*QUANTIZED, "float16")
# model_type in config.json → the module that exports such models, by its `export` and `prove`; GPT-2 is exported here.
KINDS = {"tfgpt_encoder_decoder": "tfgpt.export.translator_release"}
CLASSIFIERS = "tfgpt.export.classifier_release"  # which other types have, too: a GPT-2 may be one
EXPORTERS = ("tensorflow", "keras", "tf2onnx", "onnxscript", "onnx-ir", "onnx", "onnxruntime")
COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
)


class ParityError(Exception):
    """An artifact left its tolerance.

    Attributes:
        reports: the `RunnerReport`s of all runtimes.
        breaches: where it happened, the worst first.
    """

    def __init__(self, reports):
        self.reports = reports
        breaches = [breach for report in reports for breach in report.breaches]
        self.breaches = sorted(breaches, key=lambda breach: -breach.excess)
        super().__init__(f"parity failed: {self.breaches[0]}")


def export_release(
    model_directory,
    out,
    formats=FORMATS,
    name=None,
    text=None,
    overwrite=False,
    quantize=(),
    sensitivity=False,
    on_progress=None,
):
    """Exports a model directory, and publishes the release only if every artifact passes parity.

    A quantized variant that leaves its budget keeps in float32 the weight matrices whose quantization costs most, as
    few as it takes.

    Args:
        model_directory: what `tfgpt train` wrote.
        out: the release directory to be made.
        formats: of `FORMATS`. "onnx" is the portable decoder and the one tuned for ONNX Runtime.
        name: of the served model; by default the model directory's.
        text: a text file for the parity check; by default the validation split that the model was trained with.
        overwrite: replace `out` if it exists.
        quantize: further ONNX variants, of `EXTRA_VARIANTS`.
        sensitivity: measure what the integers of each weight matrix cost, even where no budget is broken; float16 has
            none, and either holds its tolerance or fails.
        on_progress: called with a line of text at each stage.

    Returns:
        The `RunnerReport`s of the parity check.

    Raises:
        UserError: for bad input.
        ParityError: if an artifact is not the model; nothing is left at `out`.
    """
    model_directory, out = pathlib.Path(model_directory), pathlib.Path(out)
    name = name or model_directory.absolute().name
    _check_request(formats, quantize, name)
    if (kind := _other_kind(model_directory)) is not None:
        if quantize:
            raise UserError(f"quantized variants are of language models, expected none of {model_directory}")
        return kind.export(model_directory, out, formats, name, text, overwrite, on_progress)
    say = on_progress or (lambda line: None)
    with atomic_directory(out, overwrite=overwrite) as release:
        model = load_for_export(model_directory)
        tokens = held_out_tokens(model_directory, model.tokenizer, text)
        _check_variants(quantize, model.backbone, tokens)
        copy_model_files(model_directory, release)
        source = model_directory.absolute().name
        _write_formats(model, release, formats, quantize, name, source, served_settings(model_directory, model), say)
        expected = _expectation(model, tokens, say)
        reports = [_check(expected, open_one(), release, model, say) for open_one in _openers(release, formats)]
        if quantize and all(report.passed for report in reports if TOLERANCES[report.precision].same_text):
            from tfgpt.export.budget import is_over_budget, within_budget

            for i, report in enumerate(reports):
                wanted = (sensitivity and report.passed) or is_over_budget(report)
                if report.precision in QUANTIZED and wanted:
                    reports[i] = within_budget(release, report, expected, say)
        raise_breaches(reports)
        write_parity_report(release, reports)
        write_manifest(release, model_directory, reports)
    return reports


def _check_request(formats, quantize, name):
    for what, names, known in (("formats", formats, FORMATS), ("quantized variants", quantize, EXTRA_VARIANTS)):
        unknown = [name for name in names if name not in known]
        if unknown or (what == "formats" and not names):
            raise UserError(f"{what} are {', '.join(unknown) or 'none'}, expected some of {', '.join(known)}")
    if quantize and "onnx" not in formats:
        raise UserError(f"quantized variants are ONNX files, expected the format onnx, found {', '.join(formats)}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"the model's name is {name!r}, expected letters, digits, '.', '_' and '-'")


def _other_kind(directory):
    """The module that exports models of the kind in this directory; None of GPT-2's kind, which this one does."""
    path = pathlib.Path(directory) / "config.json"
    config = read_json(path) if path.is_file() else {}
    module = CLASSIFIERS if is_classifier(config) else KINDS.get(config.get("model_type"))
    return module and importlib.import_module(module)


def copy_model_files(model_directory, release):
    """Copies the files of a model directory, but the weights, that every release has as they are."""
    for file in COPIED:
        if (pathlib.Path(model_directory) / file).exists():
            shutil.copyfile(pathlib.Path(model_directory) / file, release / file)


def _check_variants(variants, backbone, tokens):
    """What can be told before anything is written."""
    if not variants:
        return
    from tfgpt.export.onnx_decoder import HEAD_DIM_MULTIPLE, can_tune
    from tfgpt.export.quantization import BITS, common_block

    if not can_tune(backbone):
        raise UserError(
            f"the model's heads are {backbone.hidden_dim // backbone.num_heads} wide, expected a multiple of "
            f"{HEAD_DIM_MULTIPLE} for any ONNX variant but the portable one"
        )
    for variant in variants:
        if variant in BITS:
            common_block([backbone.hidden_dim, backbone.intermediate_dim], variant)
    if len(tokens) < MIN_PERPLEXITY_TOKENS:
        raise UserError(
            f"the held-out text has {len(tokens)} tokens, expected at least {MIN_PERPLEXITY_TOKENS} to measure the "
            "perplexity of quantized variants; --data gives other text"
        )


def _write_formats(model, release, formats, quantize, name, source, settings, say):
    if "saved_model" in formats:
        say("exporting SavedModel")
        from tfgpt.export.saved_model import export_saved_model

        export_saved_model(model, release / "saved_model" / name / "1", settings)
    if "onnx" in formats:
        say("exporting ONNX")
        from tfgpt.export.onnx_decoder import export_onnx
        from tfgpt.export.quantization import write_variant

        export_onnx(model, release / "onnx", source=source)
        for variant in quantize:
            say(f"quantizing: {variant}")
            write_variant(release / "onnx", variant)


def _expectation(model, tokens, say):
    from tfgpt.export.keras_runner import KerasRunner

    return Expectation(KerasRunner(model), tokens, say)


def _check(expected, runner, release, model, say):
    """The report of one runner: of tokens, and of text where its artifact holds the tokenizer."""
    report = check_runner(expected, runner, say)
    if runner.name == "saved_model" and model.tokenizer is not None:
        stops = with_stop(served_settings(release, model), model.tokenizer).stop_token_ids
        say(f"{runner.name}: continuations of text")
        with breach_on_failure(report, "text"):
            check_text(report, runner, expected, model.tokenizer, stops)
    return report


def _openers(release, formats):
    """Functions that open a release's runners, each ONNX variant's among them; one at a time is kept in memory."""
    openers = []
    for runtime in formats:
        variants = [v for v in VARIANTS if (release / onnx_path(v)).is_file()] if runtime == "onnx" else ["float32"]
        openers += [functools.partial(open_runner, release, runtime, variant, verify=False) for variant in variants]
    return openers


def raise_breaches(reports):
    """Raises a `ParityError` if a report has breaches."""
    if any(report.breaches for report in reports):
        raise ParityError(reports)


def prove_release(release, model_directory, text=None, report=None, on_progress=None):
    """Checks a published release against its manifest and a model directory.

    Args:
        release: the release directory.
        model_directory: where its model came from.
        text: as in `export_release`.
        report: a folder for parity.json, parity.md and parity.png, written whatever the outcome; None writes none.
        on_progress: called with a line of text at each stage.

    Raises:
        UserError: for bad input.
        ParityError: if an artifact is not the model.
    """
    release = pathlib.Path(release)
    if (kind := _other_kind(release)) is not None:
        return kind.prove(release, model_directory, text, report, on_progress)
    runtimes = [runtime for runtime in RUNTIMES if (release / runtime).is_dir()]
    if not runtimes:
        raise UserError(f"{release} holds none of {', '.join(RUNTIMES)}, expected a release directory")
    manifest = read_manifest(release)
    model = load_for_export(model_directory)
    expected = _expectation(model, held_out_tokens(model_directory, model.tokenizer, text), on_progress)
    say = on_progress or (lambda line: None)
    reports = [_check(expected, open_one(), release, model, say) for open_one in _openers(release, runtimes)]
    manifest_breaches(release, manifest, reports)
    for measured in reports:  # what only an export measures
        recorded = manifest.get("quantization", {}).get(measured.runtime, {})
        measured.kept_in_float32 = recorded.get("kept_in_float32", [])
        measured.sensitivity = [Cost(**cost) for cost in recorded.get("sensitivity", [])]
    if report is not None:
        write_parity_report(pathlib.Path(report), reports)
    raise_breaches(reports)
    return reports


def manifest_breaches(release, manifest, reports):
    """Adds a breach to the reports of those that read a file which is not as the manifest says."""
    for name, entry in manifest["files"].items():
        if message := change(release, name, entry):
            for owner in _owners(name, reports):
                owner.breaches.append(Breach(name, "manifest", 0, 0, message, excess=0.0))


def _owners(name, reports):
    """The reports of those that read a file of the release; of what all share, such as the tokenizer, the first."""
    owners = []
    for report in reports:
        variant = "portable" if report.runtime == "onnx" else report.precision
        reads = report.runtime.startswith("onnx") and name in map(str, (onnx_path(variant), data_path(variant)))
        if reads or (name.startswith(f"{report.runtime}/") and report.runtime == "saved_model"):
            owners.append(report)
    others = [report for report in reports if name.startswith(f"{report.runtime}/")]  # of kinds without variants
    return (owners or others or reports)[:1]


def load_for_export(model_directory):
    """The model of a model directory, computing in float32 whatever it was trained in."""
    from tfgpt.models import GPT2CausalLM

    return GPT2CausalLM.from_preset(model_directory, dtype="float32")


def served_settings(model_directory, model):
    """What a server generates with unless it is told: the `GenerationSettings` of generation_config.json.

    Raises:
        UserError: if the file is not one, or asks for what a SavedModel cannot do.
    """
    path = pathlib.Path(model_directory) / "generation_config.json"
    if not path.is_file():
        return GenerationSettings()
    config = read_json(path)
    try:
        settings = GenerationSettings.from_hugging_face(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if settings.num_beams > 1:
        raise UserError(f"{path}: num_beams is {settings.num_beams}, expected 1: a SavedModel takes no beams")
    size = model.backbone.vocabulary_size
    for token_id in settings.stop_token_ids or ():
        if not 0 <= token_id < size:
            raise UserError(f"{path}: eos_token_id is {token_id}, expected 0 to {size - 1}")
    return settings


def held_out_tokens(model_directory, tokenizer, text=None):
    """Token ids of real text: of the file `text`, else of the model's validation split, else of the stdlib corpus.

    Raises:
        UserError: if there is no text, or the model has no tokenizer for it.
    """
    from tfgpt.text import TokenShards, read_documents

    shards = pathlib.Path(model_directory) / "training" / "tokens"
    if text is None and shards.is_dir():
        opened = TokenShards.open(shards)
        if tokenizer is not None:
            opened.check_tokenizer(tokenizer)
        return opened.split("validation").read(0, 2**20)
    if tokenizer is None:
        raise UserError(f"{model_directory} has no tokenizer, expected one for the text of the parity check")
    documents = read_documents([str(text)]) if text is not None else read_documents(["stdlib"], max_bytes=2**19)
    tokens = [token for document in documents for token in tokenizer.encode(document)]
    if len(tokens) < 2:
        raise UserError(f"{text} has {len(tokens)} tokens, expected at least 2 for the parity check")
    return tokens


def write_manifest(release, source, reports=()):
    """Writes manifest.json: every file with size and sha256, versions, source and tolerances.

    The parity report is not in it, for `tfgpt parity` renews it.
    """
    files = sorted(path for path in release.rglob("*") if path.is_file() and path.name not in REPORT_FILES)
    tolerances = {kind: dataclasses.asdict(tolerance) for kind, tolerance in TOLERANCES.items()}
    if any(isinstance(report, ClassifierReport) for report in reports):
        tolerances = {"probability": {"limit": PROBABILITY_TOLERANCE, "reason": TOLERANCE_REASON}}
    manifest = {
        "tfgpt_version": __version__,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "source": {
            "model_directory": source.absolute().name,
            "weights_sha256": sha256_of_file(source / "model.safetensors"),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in EXPORTERS},
        },
        "tolerances": tolerances,
        "quantization": {
            report.runtime: {
                "kept_in_float32": report.kept_in_float32,
                "sensitivity": [dataclasses.asdict(cost) for cost in report.sensitivity],
            }
            for report in reports
            if report.precision in QUANTIZED
        },
        "files": {
            str(path.relative_to(release)): {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
            for path in files
        },
    }
    write_text(release / "manifest.json", json.dumps(manifest, indent=2) + "\n")
