"""The commands for what leaves training: releases, their versions, checkpoints of other origins."""

from __future__ import annotations

import pathlib
import shlex
import sys

from tfgpt.cli.figures import print_json, write_json
from tfgpt.cli.quiet import import_tensorflow


def export(
    model: str,
    out: str,
    formats: list[str] = ("saved_model", "onnx"),
    quantize: list[str] = (),
    sensitivity: bool = False,
    name: str | None = None,
    data: str | None = None,
    overwrite: bool = False,
    json: str | None = None,
):
    """Export a model directory to a release directory, published only if every artifact passes parity.

    Args:
        model: a model directory.
        out: the release directory to be made.
        formats: saved_model, onnx, or both, separated by commas or spaces.
        quantize: further ONNX variants: int8, int8_weight_only, int4, float16.
        sensitivity: measure what the integers of each weight cost; done anyway where a budget is broken.
        name: of the served model; by default the model directory's.
        data: a file for the parity check: text, of a translation model lines `source TAB target`, of a classifier
            labelled texts or a text a line; by default what the training held out.
        overwrite: replace a release that `out` holds.
        json: also write the parity figures to this file.
    """
    from tfgpt.cli.progress import show_status

    with show_status("loading TensorFlow") as on_progress:
        import_tensorflow(return_memory=True)
        from tfgpt.export import ParityError, export_release

        chosen, variants = ([name for part in parts for name in part.split(",")] for parts in (formats, quantize))
        try:
            reports = export_release(
                model, out, chosen, name, data, overwrite, variants, sensitivity, on_progress=on_progress
            )
        except ParityError as error:
            return _parity_failed(error, json)
    _print_parity(reports, json)
    size = sum(path.stat().st_size for path in pathlib.Path(out).rglob("*") if path.is_file())
    print(f"{out}: {size / 1e6:.1f} MB; the proof is in {out}/parity.md")


def parity(release: str, model: str, data: str | None = None, report: str | None = None, json: str | None = None):
    """Check that every artifact of a release is the model: same tokens in, same logits and same text out.

    Args:
        release: a release directory.
        model: the model directory it came from (as `--model`).
        data: as for `export`; by default what the training held out.
        report: a folder for parity.json, parity.md and parity.png; by default the release, whose own it renews.
        json: also write the figures to this file.
    """
    from tfgpt.cli.progress import show_status

    with show_status("loading TensorFlow") as on_progress:
        import_tensorflow()
        from tfgpt.export import ParityError, prove_release

        try:
            reports = prove_release(release, model, data, report or release, on_progress)
        except ParityError as error:
            return _parity_failed(error, json)
    _print_parity(reports, json)


def inspect(path: str, checksums: bool = True, json: bool = False):
    """Say what a model or artifact is, without loading weights: architecture, dtypes, signatures, checksums.

    Args:
        path: a model or release directory, a run's checkpoint, a SavedModel, a .safetensors or .onnx file.
        checksums: read the files for their SHA-256 where none was recorded.
        json: print JSON.
    """
    from tfgpt.cli.inspection import describe

    described = describe(path, checksums)
    if json:
        return print_json(described)
    from tfgpt.cli.inspection_report import print_description

    print_description(described)


def publish(release: str, models: str, keep: int | None = None):
    """Put a release's SavedModel into a directory of TensorFlow Serving base paths, as the model's next version.

    Args:
        release: a release directory that has a SavedModel.
        models: the directory whose folder of the model's name gets the version.
        keep: leave this many of the newest versions and remove the others; by default all stay. Withdrawn versions do
            not count, and are never removed.
    """
    from tfgpt.export import publish_version

    published = publish_version(release, models, keep)
    print(f"published {published.source} as {published.path}")
    if published.pruned:
        what = "version" if len(published.pruned) == 1 else "versions"
        print(f"pruned {what} {', '.join(map(str, published.pruned))}")


def rollback(base_path: str, to: int | None = None):
    """Withdraw the newest version of a TensorFlow Serving base path, so that the one before it is served.

    Args:
        base_path: the directory that holds a model's versions, MODELS/NAME.
        to: withdraw all versions newer than this one; by default the newest alone.
    """
    from tfgpt.export import withdraw_versions

    withdrawn = withdraw_versions(base_path, to)
    print(f"{base_path} is back at version {withdrawn.newest}; nothing is lost, this brings back what was withdrawn:")
    for number, path in withdrawn.paths.items():
        print(f"  mv {shlex.quote(str(path))} {shlex.quote(str(path.with_name(str(number))))}")


def convert(
    source: str,
    destination: str,
    to: str = "tfgpt",
    tokenizer: str | None = None,
    overwrite: bool = False,
    json: str | None = None,
):
    """Turn a GPT-2 of any origin into another's files: OpenAI's, Hugging Face's, keras-hub's, nanoGPT's, tfgpt's.

    The source's origin is detected, and its dtype stays.

    Args:
        source: a model directory, OpenAI's checkpoint directory, a keras-hub preset, nanoGPT's ckpt.pt, hf://user/model
            or kaggle://owner/model/keras/variant.
        destination: the directory to be made.
        to: tfgpt, which is the same as hugging_face; openai, keras_hub or nanogpt.
        tokenizer: a directory whose tokenizer the model gets, for origins that have none.
        overwrite: replace what `destination` holds.
        json: also write the figures to this file.
    """
    import_tensorflow(return_memory=True)
    from tfgpt.weights import ORIGINS
    from tfgpt.weights import convert as convert_checkpoint

    checkpoint, origin = convert_checkpoint(source, destination, to, tokenizer, overwrite)
    config, count = checkpoint.config, checkpoint.parameter_count
    print(
        f"{source} is a {origin}: {config['num_layers']} layers of {config['hidden_dim']}, {count:,} parameters in "
        f"{checkpoint.dtype}, {'no' if checkpoint.tokenizer is None else 'a'} tokenizer"
    )
    for note in checkpoint.notes:
        print(f"note: {note}")
    size = sum(path.stat().st_size for path in pathlib.Path(destination).rglob("*") if path.is_file())
    print(f"{destination} is a {ORIGINS[to].NAME}: {size / 1e6:.1f} MB")
    write_json(json, {"origin": origin, "parameters": count, "dtype": checkpoint.dtype, "notes": checkpoint.notes})


def _parity_failed(error, json_path):
    _print_parity(error.reports, json_path)
    print(f"tfgpt: {error}", file=sys.stderr)
    if len(error.breaches) > 1:
        print(f"tfgpt: and {len(error.breaches) - 1} more breaches", file=sys.stderr)
    return 1


def _print_parity(reports, json_path):
    from tfgpt.cli.progress import print_table
    from tfgpt.export.parity_report import table, to_json

    print_table(*table(reports))
    write_json(json_path, to_json(reports))
