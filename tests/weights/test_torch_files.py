"""PyTorch's files: pickles that would execute code are never loaded."""

import contextlib
import io
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest

from tests.weights.checkpoints import CONFIG, DTYPES, WIDTH, same, weights, write_hugging_face
from tfgpt.errors import UserError
from tfgpt.weights.nanogpt import read as read_nanogpt
from tfgpt.weights.origins import read
from tfgpt.weights.torch_files import load_torch_file, to_numpy, to_torch


class Payload:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def malicious_files(folder):
    """Two plain pickles, and one in a zip file as torch.save makes it, each with the path that its payload leaves."""
    plain, modern, packed = folder / "plain.pt", folder / "modern.pt", folder / "packed.pt"
    plain.write_bytes(pickle.dumps({"model": Payload(folder / "plain.left"), "model_args": {}}, protocol=2))
    modern.write_bytes(pickle.dumps({"model": Payload(folder / "modern.left"), "model_args": {}}, protocol=4))
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": Payload(folder / "packed.left")}, protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return {plain: folder / "plain.left", modern: folder / "modern.left", packed: folder / "packed.left"}


def test_the_payload_works(tmp_path):
    """Else the tests below would prove nothing."""
    for path, left in malicious_files(tmp_path).items():
        data = path.read_bytes()
        if zipfile.is_zipfile(path):
            data = zipfile.ZipFile(io.BytesIO(data)).read("archive/data.pkl")
        pickle.loads(data)
        assert left.exists()


@pytest.mark.interop
@pytest.mark.parametrize("name", ["plain.pt", "modern.pt", "packed.pt"])
@pytest.mark.parametrize("where", ["ckpt.pt", "pytorch_model.bin"])
def test_a_pickle_that_would_execute_code(name, where, tmp_path):
    left = malicious_files(tmp_path)[tmp_path / name]
    directory = write_hugging_face(tmp_path / "model", weights())
    (directory / "model.safetensors").unlink()
    (tmp_path / name).rename(directory / where)
    found = "is not a whole file of PyTorch" if name == "modern.pt" else r"names \S*mkdir, which could execute code"
    with pytest.raises(UserError, match=f"{found}.*nothing of it was loaded"):
        read(directory)
    assert not left.exists()


def test_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for path, left in malicious_files(tmp_path).items():
        with pytest.raises(UserError, match=r"PyTorch is not installed.*pip install 'tfgpt\[torch\]'"):
            read(path)
        assert not left.exists()


@pytest.mark.interop
def test_damaged_files(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "ckpt.pt"
    torch.save({"model": {"a": torch.zeros(1000)}, "model_args": {}}, path)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"is not a whole file of PyTorch|would|could execute"):
            load_torch_file(path)
    for _ in range(300):
        damaged = bytearray(whole)
        for position in random.integers(0, 800, 3):  # the pickle stands at the beginning
            damaged[position] = random.integers(0, 256)
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):  # and nothing else
            read_nanogpt(path)


@pytest.mark.interop
def test_dtypes():
    for dtype in DTYPES.values():
        array = np.arange(6).reshape(2, 3).astype(dtype)
        same(to_numpy({"a": to_torch(array), "b": to_torch(array.T)}, "file"), {"a": array, "b": array.T})


@pytest.mark.interop
def test_entries_that_are_no_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    directory = write_hugging_face(tmp_path / "model", weights())
    (directory / "model.safetensors").unlink()
    for wrong in ("text", torch.zeros(3, WIDTH).to_sparse(), torch.zeros(CONFIG["vocab_size"], WIDTH).double()):
        state = {name: to_torch(tensor) for name, tensor in weights().items()}
        torch.save(state | {"transformer.wte.weight": wrong}, directory / "pytorch_model.bin")
        with pytest.raises(UserError, match=r"transformer.wte.weight (of|in) (str|Tensor|float64), expected"):
            read(directory)
