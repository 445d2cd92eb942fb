"""Checkpoints behind hf:// and kaggle:// addresses, through their owners' downloaders and caches."""

from __future__ import annotations

import pathlib
import re

from tfgpt.errors import UserError

# Of a repository, the files that a reader here knows; others (ONNX, Flax, Rust) stay where they are.
FILES = [
    *(
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model-*.safetensors",
        "model.safetensors.index.json",
    ),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json"),
    *("metadata.json", "task.json", "preprocessor.json", "assets/*", "model.weights.h5", "model_*.weights.h5"),
    *("model.weights.json", "checkpoint", "model.ckpt*", "hparams.json", "encoder.json", "vocab.bpe", "ckpt.pt"),
]
OLD_FILES = ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"]


def download(path_or_uri):
    """The local path of an address, downloaded unless its owner's cache has it; other paths as they are.

    Raises:
        UserError: if the address is malformed, or if it is neither reached nor in the cache.
    """
    scheme, found, name = path_or_uri.partition("://")
    if not found:
        return path_or_uri
    if scheme not in ADDRESSES:
        raise UserError(f"{path_or_uri} has the scheme {scheme}://, expected hf:// or kaggle://")
    pattern, expected, downloader = ADDRESSES[scheme]
    if not re.fullmatch(pattern, name):
        raise UserError(f"{path_or_uri} is no model's address, expected {expected}")
    try:
        return downloader(name)
    except ImportError as error:
        raise UserError(f"{error.name} is not installed, expected it to read {path_or_uri}") from error
    except Exception as error:  # their own errors, those of HTTP and the system's have no class in common
        said = str(error).strip().partition("\n")[0][:300]
        raise UserError(f"{path_or_uri} cannot be downloaded and is not in the cache: {said}") from error


def _from_hugging_face(name):
    import huggingface_hub

    folder = huggingface_hub.snapshot_download(name, allow_patterns=FILES)
    if not any(any(pathlib.Path(folder).glob(pattern)) for pattern in ("model*", "ckpt.pt")):
        folder = huggingface_hub.snapshot_download(name, allow_patterns=OLD_FILES)
    return folder


def _from_kaggle(name):
    import kagglehub  # keras-hub's downloader

    return kagglehub.model_download(name)


WORD = r"[\w.-]+"
ADDRESSES = {
    "hf": (f"{WORD}(/{WORD})?", "hf://user/model", _from_hugging_face),
    "kaggle": (f"{WORD}/{WORD}/keras/{WORD}(/[0-9]+)?", "kaggle://owner/model/keras/variant", _from_kaggle),
}
