"""Model directory in, release directory out: every format, its proof, and a manifest."""

from __future__ import annotations

import datetime
import json
import pathlib
import platform
import re
import shutil
from importlib import metadata

from tfgpt.atomic import atomic_directory, write_text
from tfgpt.checksum import sha256_of_file
from tfgpt.errors import UserError
from tfgpt.export.parity import Breach, check_parity
from tfgpt.export.parity_report import REPORT_FILES, write_parity_report
from tfgpt.export.tolerances import TOLERANCES
from tfgpt.runtime import RUNTIMES, open_runner
from tfgpt.version import __version__

FORMATS = RUNTIMES  # an export format is named as the runtime that runs it
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


def export_release(model_directory, out, formats=FORMATS, name=None, text=None, overwrite=False, on_progress=None):
    """Exports a model directory, and publishes the release only if every artifact passes parity.

    Args:
        model_directory: what `tfgpt train` wrote.
        out: the release directory to be made.
        formats: of `FORMATS`.
        name: of the served model; by default the model directory's.
        text: a text file for the parity check; by default the validation split that the model was trained with.
        overwrite: replace `out` if it exists.
        on_progress: called with a line of text at each stage.

    Returns:
        The `RunnerReport`s of the parity check.

    Raises:
        UserError: for bad input.
        ParityError: if an artifact is not the model; nothing is left at `out`.
    """
    model_directory, out = pathlib.Path(model_directory), pathlib.Path(out)
    unknown = [format for format in formats if format not in FORMATS]
    if unknown or not formats:
        raise UserError(f"formats are {', '.join(unknown) or 'none'}, expected some of {', '.join(FORMATS)}")
    name = name or model_directory.absolute().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"the model's name is {name!r}, expected letters, digits, '.', '_' and '-'")
    say = on_progress or (lambda line: None)
    with atomic_directory(out, overwrite=overwrite) as release:
        model = load_for_export(model_directory)
        tokens = held_out_tokens(model_directory, model.tokenizer, text)
        for file in COPIED:
            if (model_directory / file).exists():
                shutil.copyfile(model_directory / file, release / file)
        if "saved_model" in formats:
            say("exporting SavedModel")
            from tfgpt.export.saved_model import export_saved_model

            export_saved_model(model, release / "saved_model" / name / "1")
        if "onnx" in formats:
            say("exporting ONNX")
            from tfgpt.export.onnx_decoder import export_onnx

            export_onnx(model, release / "onnx" / "model.onnx", source=model_directory.absolute().name)
        reports = compare(release, model, tokens, formats, say)
        _raise_breaches(reports)
        write_parity_report(release, reports, TOLERANCES["float32"])
        write_manifest(release, model_directory)
    return reports


def compare(release, model, tokens, runtimes, on_progress=None):
    """A `RunnerReport` for each runtime of a release, beside the Keras model on the same tokens."""
    from tfgpt.export.keras_runner import KerasRunner

    runners = [open_runner(release, runtime) for runtime in runtimes]
    return check_parity(KerasRunner(model), runners, tokens, TOLERANCES["float32"], on_progress)


def _raise_breaches(reports):
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
    runtimes = [runtime for runtime in RUNTIMES if (release / runtime).is_dir()]
    if not runtimes:
        raise UserError(f"{release} holds none of {', '.join(RUNTIMES)}, expected a release directory")
    model = load_for_export(model_directory)
    reports = compare(release, model, held_out_tokens(model_directory, model.tokenizer, text), runtimes, on_progress)
    for name, message in changed_files(release):
        # With the runtime whose file it is; what all share, such as the tokenizer, with the first.
        owner = next((owner for owner in reports if name.startswith(f"{owner.runtime}/")), reports[0])
        owner.breaches.append(Breach(name, "manifest", 0, 0, message, excess=0.0))
    if report is not None:
        write_parity_report(pathlib.Path(report), reports, TOLERANCES["float32"])
    _raise_breaches(reports)
    return reports


def changed_files(release):
    """(name, sentence) of each file that is not what the release's manifest says."""
    path = release / "manifest.json"
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read, expected a release with its manifest: {error}") from error
    changed = []
    for name, expected in files.items():
        if not (release / name).is_file():
            changed.append((name, "the file is missing, expected one as in manifest.json"))
        elif (found := sha256_of_file(release / name)) != expected["sha256"]:
            changed.append((name, f"the file has sha256 {found[:12]}…, expected {expected['sha256'][:12]}…"))
    return changed


def load_for_export(model_directory):
    """The model of a model directory, computing in float32 whatever it was trained in."""
    from tfgpt.models import GPT2CausalLM

    return GPT2CausalLM.from_preset(model_directory, dtype="float32")


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


def write_manifest(release, source):
    """Writes manifest.json: every file with size and sha256, versions, source and tolerances.

    The parity report is not in it, for `tfgpt parity` renews it.
    """
    files = sorted(path for path in release.rglob("*") if path.is_file() and path.name not in REPORT_FILES)
    manifest = {
        "tfgpt_version": __version__,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "source": {
            "model_directory": source.absolute().name,
            "weights_sha256": sha256_of_file(source / "model.safetensors"),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime")},
        },
        "tolerances": {kind: tolerance.logit for kind, tolerance in TOLERANCES.items()},
        "files": {
            str(path.relative_to(release)): {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
            for path in files
        },
    }
    write_text(release / "manifest.json", json.dumps(manifest, indent=2) + "\n")
