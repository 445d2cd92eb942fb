"""What a path holds, read from headers, graphs and manifests: no weights are loaded, and TensorFlow is not imported.

Checkpoints of other origins are the exception: their readers map the weights or read them over.
"""

from __future__ import annotations

import collections
import math
import pathlib
import re

from tfgpt.checksum import sha256_of_file
from tfgpt.cli.quiet import import_tensorflow
from tfgpt.errors import UserError
from tfgpt.json_file import read_json
from tfgpt.safetensors_file import SafetensorsFile

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

LANGUAGE_MODEL = "GPT2LMHeadModel"

# Our words for what config.json says of an architecture: GPT-2's, an encoder's, an encoder–decoder's.
SIZES = {
    "num_layers": ("n_layer", "num_hidden_layers", "encoder_layers"),
    "num_decoder_layers": ("decoder_layers",),
    "num_heads": ("n_head", "num_attention_heads", "encoder_attention_heads"),
    "hidden_dim": ("n_embd", "hidden_size", "d_model"),
    "intermediate_dim": ("n_inner", "intermediate_size", "encoder_ffn_dim"),
    "max_sequence_length": ("n_positions", "max_position_embeddings"),
    "vocabulary_size": ("vocab_size",),
    "activation": ("activation_function", "hidden_act"),
}

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
CAUSAL_MASK = re.compile(r"(^|\.)attn\.(bias|masked_bias)$")  # which older files store; c_attn.bias is another


def describe(path, checksums=True):
    """What a path holds, as a dictionary for JSON.

    Args:
        path: a model directory, release directory, checkpoint of a run, SavedModel, base path of TensorFlow Serving,
            a safetensors or ONNX file, or another origin's checkpoint (see `tfgpt.weights`).
        checksums: read the files for their SHA-256 where none was recorded.

    Returns:
        "path", "kind", and what there is of "architecture", "parameters", "dtypes", "tokenizer", "checkpoints",
        "onnx", "saved_models", "files".

    Raises:
        UserError: if the path holds none of these, or something damaged.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist, expected a directory or file to inspect")
    described = {"path": str(path)} | (_file(path) if path.is_file() else _directory(path))
    files = described.pop("files")
    if not isinstance(files, dict):
        base = path if path.is_dir() else path.parent
        files = {str(file.relative_to(base)): _file_entry(file, checksums) for file in files}
    return described | {"files": files}


def _file(path):
    if path.suffix == ".safetensors":
        with SafetensorsFile(path) as file:
            shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
            return {"kind": "safetensors file", **_architecture_of_names(shapes), **_count(file), "files": [path]}
    if path.suffix == ".onnx":
        from tfgpt.cli.onnx_inspection import describe_onnx

        described = describe_onnx(path)
        data = [path.parent / name for name in described["external_data"]]
        return {"kind": "ONNX file", "onnx": {path.name: described}, "files": [path, *data]}
    if path.name == "saved_model.pb":
        return _directory(path.parent)
    if path.suffix == ".pt":
        return _other_origin(path)
    raise UserError(f"{path} is of no known kind, expected .safetensors, .onnx, .pt, saved_model.pb, or a directory")


def _directory(path):
    for name, describe_kind in (
        ("manifest.json", _release),
        ("SHA256SUMS", _checkpoint),
        ("saved_model.pb", _saved_model),
        ("config.json", _model_directory),
        ("hparams.json", _other_origin),
        ("ckpt.pt", _other_origin),
    ):
        if (path / name).is_file():
            return describe_kind(path)
    if found := _saved_models(path, "[0-9]*"):
        return {"kind": "base path of TensorFlow Serving", "saved_models": found, "files": _all_files(path)}
    if any(path.glob("*.onnx")):
        return {"kind": "directory of ONNX files", "onnx": _onnx_files(path), "files": _all_files(path)}
    raise UserError(
        f"{path} is of no known kind, expected config.json (a model directory), manifest.json (a release), SHA256SUMS "
        "(a run's checkpoint), hparams.json (OpenAI), ckpt.pt (nanoGPT), saved_model.pb or ONNX files in it"
    )


# === The kinds of directories ===


def _model_directory(path):
    config = read_json(path / "config.json")
    safetensors = any((path / name).is_file() for name in (WEIGHTS, INDEX))
    if "class_name" in config or (not safetensors and any(path.glob("pytorch_model*.bin"))):  # keras-hub's, PyTorch's
        return _other_origin(path)
    described = {"kind": "model directory", "architecture": _architecture(config)}
    described |= _weights(path, tied=config.get("tie_word_embeddings", True))
    described |= _tokenizer_of(path)
    if (path / "training" / "checkpoints").is_dir():
        found = (path / "training" / "checkpoints").iterdir()
        described["checkpoints"] = sorted(file.name for file in found if file.name.isdecimal())
    return described | {"files": [file for file in sorted(path.iterdir()) if file.is_file()]}


def _release(path):
    from tfgpt.runtime.release_files import SIZES as RELEASE_SIZES
    from tfgpt.runtime.release_files import read_manifest

    manifest = read_manifest(path)
    for name, expected in manifest["files"].items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != expected.get("bytes"):
            what = "is missing" if found is None else f"has {found} bytes"
            raise UserError(f"{path / name} {what}, expected {expected.get('bytes')} bytes as in manifest.json")
    config = read_json(path / "config.json")
    described = {"kind": "release directory", "architecture": _architecture(config)}
    sizes = {key: config.get(key) for key in RELEASE_SIZES}
    if config.get("architectures") == [LANGUAGE_MODEL] and all(isinstance(size, int) for size in sizes.values()):
        described["parameters"] = _parameters(**sizes, n_inner=config.get("n_inner"))
    described |= {key: manifest[key] for key in ("created", "source", "versions") if key in manifest}
    described |= _tokenizer_of(path)
    described["onnx"] = {f"onnx/{name}": one for name, one in _onnx_files(path / "onnx").items()}
    described["saved_models"] = _saved_models(path, "saved_model/*/[0-9]*")
    return described | {"files": manifest["files"]}


def _checkpoint(path):
    """Of `tfgpt.training.run_state`, which made the checksums, too."""
    described = {"kind": "checkpoint of a run", "step": read_json(path / "state.json").get("step")}
    with SafetensorsFile(path / WEIGHTS) as file:
        described |= _count(file)
    with SafetensorsFile(path / "optimizer.safetensors") as file:
        described["optimizer"] = _count(file)
    try:
        lines = (path / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
        return described | {"files": {n: {"bytes": (path / n).stat().st_size, "sha256": s} for n, s in sums.items()}}
    except (OSError, ValueError) as error:  # also of bytes that are not UTF-8
        raise UserError(f"{path / 'SHA256SUMS'} cannot be read, expected the checksums of files that exist") from error


def _saved_model(path):
    from tfgpt.cli.saved_model_inspection import describe_saved_model

    return {"kind": "SavedModel", "saved_models": {".": describe_saved_model(path)}, "files": _all_files(path)}


def _saved_models(path, pattern):
    from tfgpt.cli.saved_model_inspection import describe_saved_model

    found = (file.parent for file in sorted(path.glob(f"{pattern}/saved_model.pb")))
    return {str(model.relative_to(path)): describe_saved_model(model) for model in found}


def _onnx_files(path):
    from tfgpt.cli.onnx_inspection import describe_onnx

    return {file.name: describe_onnx(file) for file in sorted(path.glob("*.onnx"))}


def _all_files(path):
    return [file for file in sorted(path.rglob("*")) if file.is_file()]


def _file_entry(path, checksums):
    return {"bytes": path.stat().st_size, **({"sha256": sha256_of_file(path)} if checksums else {})}


# === Their parts ===


def _architecture(config):
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    sizes = {ours: config[key] for ours, keys in SIZES.items() for key in keys if config.get(key) is not None}
    return {"name": name, "model_type": config.get("model_type"), **sizes}


def _parameters(n_positions, vocab_size, n_layer, n_head, n_embd, n_inner):
    """How many GPT-2 of these sizes has; a release holds its weights several times, in several dtypes."""
    width, inner = n_embd, n_inner or 4 * n_embd
    attention = (width + 1) * 3 * width + (width + 1) * width
    feed_forward = (width + 1) * inner + (inner + 1) * width
    return (vocab_size + n_positions) * width + n_layer * (attention + feed_forward + 4 * width) + 2 * width


def _architecture_of_names(shapes):
    """What GPT-2's names and shapes say of a file that stands alone; heads leave no trace in them."""
    plain = {name.removeprefix("transformer."): shape for name, shape in shapes.items()}
    layers = {int(found[1]) for name in plain if (found := re.match(r"h\.(\d+)\.", name))}
    embedding, positions = plain.get("wte.weight", ()), plain.get("wpe.weight", ())
    if not layers or len(embedding) != 2 or len(positions) != 2:
        return {}
    sizes = {"num_layers": len(layers), "hidden_dim": embedding[1]}
    sizes |= {"max_sequence_length": positions[0], "vocabulary_size": embedding[0]}
    return {"architecture": {"name": None, "model_type": "gpt2", **sizes}}


def _weights(path, tied):
    if (path / INDEX).is_file():
        shards = read_json(path / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise UserError(f"{path / INDEX} has no weight_map from tensors to files, expected one")
        return _count_shards(path, shards, tied)
    if not (path / WEIGHTS).is_file():
        return {}
    with SafetensorsFile(path / WEIGHTS) as file:
        return _count(file, tied=tied)


def _count_shards(path, shards, tied):
    total, dtypes = 0, collections.defaultdict(collections.Counter)
    for shard in sorted(set(shards.values())):
        if pathlib.PurePath(shard).name != shard:
            raise UserError(f"{path / INDEX} names the file {shard!r}, expected one beside it")
        with SafetensorsFile(path / shard) as file:
            expected = {name for name, place in shards.items() if place == shard}
            if odd := sorted(expected ^ set(file.tensors)):
                raise UserError(f"{path / shard} and {path / INDEX} disagree on {', '.join(odd)}, expected one list")
            counted = _count(file, tied=tied)
        total += counted["parameters"]
        for dtype, counts in counted["dtypes"].items():
            dtypes[dtype].update(counts)
    return {"parameters": total, "dtypes": {dtype: dict(counts) for dtype, counts in dtypes.items()}}


def _count(file, tied=False):
    """Parameters and dtypes of a safetensors file: masks and integers are no parameters, nor is a tied copy."""
    dtypes, parameters = {}, 0
    for name, tensor in file.tensors.items():
        elements = math.prod(tensor.shape)
        counts = dtypes.setdefault(tensor.dtype, {"tensors": 0, "elements": 0})
        counts["tensors"] += 1
        counts["elements"] += elements
        copied = tied and name == "lm_head.weight"
        if tensor.dtype in FLOATS and not copied and not (CAUSAL_MASK.search(name) and len(tensor.shape) != 1):
            parameters += elements
    return {"parameters": parameters, "dtypes": dtypes}


def _tokenizer_of(path):
    from tfgpt.text import load_tokenizer

    there = any((path / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    return _tokenizer(load_tokenizer(path) if there else None)


def _tokenizer(tokenizer):
    if tokenizer is None:
        return {}
    return {
        "tokenizer": {
            "class": type(tokenizer).__name__,
            "vocabulary_size": tokenizer.vocabulary_size,
            "end_token_id": tokenizer.end_token_id,
            "sha256": tokenizer.fingerprint,
        }
    }


# === Checkpoints of other origins ===


def _other_origin(path):
    import_tensorflow()
    from tfgpt.weights.origins import read

    checkpoint, origin = read(path)
    dtypes = {}
    for tensor in checkpoint.tensors.values():
        counts = dtypes.setdefault(tensor.dtype.name, {"tensors": 0, "elements": 0})
        counts["tensors"] += 1
        counts["elements"] += tensor.size
    sizes = {name: checkpoint.config[name] for name in SIZES if name in checkpoint.config}
    described = {"kind": origin.NAME, "architecture": {"name": None, "model_type": "gpt2", **sizes}}
    described |= {"parameters": checkpoint.parameter_count, "dtypes": dtypes, **_tokenizer(checkpoint.tokenizer)}
    return described | {"files": [path] if path.is_file() else _all_files(path)}
