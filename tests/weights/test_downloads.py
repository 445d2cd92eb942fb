"""Addresses, with other people's downloaders and no network: they fail in one sentence, or find their caches."""

import os
import subprocess
import sys

import pytest

from tests.weights.checkpoints import same, weights, write_hugging_face
from tfgpt.errors import UserError
from tfgpt.weights import load
from tfgpt.weights.downloads import download
from tfgpt.weights.keras_hub import write as write_preset
from tfgpt.weights.origins import read

CODE = """
import sys
from tfgpt.cli import main
for address, out in zip(sys.argv[1::2], sys.argv[2::2]):
    print("code", main(["convert", address, out]))
"""
NOWHERE = "http://127.0.0.1:9"  # the discard port, where nobody listens


def convert_offline(folder, *arguments):
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    environment |= {"HTTPS_PROXY": NOWHERE, "HTTP_PROXY": NOWHERE, "HOME": str(folder), "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HOME": str(folder / "hf"), "KAGGLEHUB_CACHE": str(folder / "kaggle")}
    arguments = [sys.executable, "-c", CODE, *map(str, arguments)]
    process = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=300)
    return process.stdout.splitlines(), process.stderr.splitlines()


def test_offline(tmp_path):
    addresses = ["hf://openai-community/gpt2", "kaggle://keras/gpt2/keras/gpt2_base_en"]
    out, errors = convert_offline(tmp_path, addresses[0], tmp_path / "a", addresses[1], tmp_path / "b")
    assert out == ["code 2"] * 2
    for error, address in zip(errors, addresses, strict=True):
        assert error.startswith(f"tfgpt: {address} cannot be downloaded and is not in the cache: ")
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_caches(tmp_path):
    """Hugging Face's cache and kagglehub's, laid out as they lay them out."""
    repository = tmp_path / "hf/hub/models--user--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0123abcd" * 5)
    (repository / "snapshots").mkdir()
    write_hugging_face(repository / "snapshots" / ("0123abcd" * 5), weights())
    preset = tmp_path / "kaggle/models/user/gpt2/keras/tiny/1"
    preset.mkdir(parents=True)
    checkpoint, _ = read(repository / "snapshots" / ("0123abcd" * 5))
    write_preset(checkpoint, preset)
    (preset.parent / "1.complete").touch()
    arguments = ["hf://user/tiny", tmp_path / "a", "kaggle://user/gpt2/keras/tiny/1", tmp_path / "b"]
    out, errors = convert_offline(tmp_path, *arguments)
    assert [line for line in out if line.startswith("code")] == ["code 0"] * 2, errors
    for folder in ("a", "b"):
        same(read(tmp_path / folder)[0].tensors, weights())


@pytest.mark.parametrize(
    "address, expected",
    [
        ("s3://bucket/gpt2", "expected hf:// or kaggle://"),
        ("hf://a/b/c", "expected hf://user/model"),
        ("hf://../gpt2 x", "expected hf://user/model"),
        ("kaggle://keras/gpt2", "expected kaggle://owner/model/keras/variant"),
    ],
)
def test_malformed_addresses(address, expected):
    with pytest.raises(UserError, match=expected):
        load(address)


def test_paths_stay():
    assert download("some/directory") == "some/directory"
