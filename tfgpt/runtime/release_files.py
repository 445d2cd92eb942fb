"""A release directory's files, and whether they are what its manifest says."""

from __future__ import annotations

import json
import pathlib

from tfgpt.checksum import sha256_of_file
from tfgpt.classification import is_classifier
from tfgpt.errors import UserError

SIZES = ("n_positions", "vocab_size", "n_layer", "n_head", "n_embd")


def read_release_config(release, sizes=SIZES, kind=None):
    """The contents of a release directory's config.json.

    Args:
        release: its path.
        sizes: keys that must be integers.
        kind: what its `model_type` must be, where it matters.

    Raises:
        UserError: if there is none, or it is that of another kind of model.
    """
    path = pathlib.Path(release) / "config.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist, expected a release directory that has it")
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read as JSON, expected a release directory that has it: {error}") from error
    if kind is not None and config.get("model_type") != kind:
        raise UserError(f"{path} has model_type {config.get('model_type')!r}, expected {kind!r}")
    if kind is None and config.get("is_encoder_decoder"):
        raise UserError(f"{release} is a translation model's release, expected it with `tfgpt translate`")
    if kind is None and sizes and is_classifier(config):
        raise UserError(f"{release} is a classifier's release, expected it with `tfgpt classify`")
    for key in sizes:
        if not isinstance(config.get(key), int):
            raise UserError(f"{path} has {key} {config.get(key)!r}, expected an integer")
    return config


def read_manifest(release):
    """The contents of manifest.json, which has `files`, name → size and SHA-256.

    Raises:
        UserError: if the manifest is missing or not one.
    """
    path = pathlib.Path(release) / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        {name: dict(entry) for name, entry in manifest["files"].items()}
        return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read, expected a release with its manifest: {error}") from error


def change(release, name, expected):
    """What is wrong with a file of which the manifest says `expected`: a sentence, or None."""
    path = pathlib.Path(release) / name
    if not path.is_file():
        return "the file is missing, expected one as in manifest.json"
    if (size := path.stat().st_size) != expected.get("bytes"):
        return f"the file has {size} bytes, expected {expected.get('bytes')} as in manifest.json"
    if (found := sha256_of_file(path)) != expected.get("sha256"):
        return f"the file has sha256 {found[:12]}…, expected {str(expected.get('sha256'))[:12]}… as in manifest.json"
    return None


def check_files(release, names, verify=True):
    """Raises a `UserError` if one of a release's files is missing, or with `verify` not what the manifest says.

    A release without a manifest, one that is being made, is not compared.
    """
    release = pathlib.Path(release)
    for name in names:
        if not (release / name).is_file():
            raise UserError(f"{release / name} is missing, expected the file beside the others of its release")
    if not verify or not (release / "manifest.json").is_file():
        return
    files = read_manifest(release)["files"]
    for name in map(str, names):
        if name in files and (wrong := change(release, name, files[name])):
            raise UserError(f"{release / name}: {wrong}")
