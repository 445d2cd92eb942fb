"""PyTorch's files, of which nothing is executed; PyTorch is the extra `torch`."""

from __future__ import annotations

import re
import warnings
import zipfile

import ml_dtypes
import numpy as np

from tfgpt.errors import UserError


def load_torch_file(path):
    """What a file of `torch.save` holds: tensors, mapped where its format allows, containers, numbers and texts.

    Raises:
        UserError: if PyTorch is not installed, or the file is damaged or holds anything else, which is not loaded.
    """
    torch = import_torch(f"to read {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says of pickles that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing, expected a file of PyTorch") from error
    except Exception as error:  # a damaged pickle can raise anything
        said = str(error)
        if found := re.search(r"GLOBAL (\S+) (?:was not|whose module)", said):
            raise UserError(
                f"{path} is a pickle that names {found[1]}, which could execute code, expected tensors, numbers and "
                "text alone; nothing of it was loaded"
            ) from error
        said = " ".join(said.rpartition("error: ")[2].partition("Check the documentation")[0].split())[:200]
        raise UserError(
            f"{path} is not a whole file of PyTorch's tensors, and nothing of it was loaded: "
            f"{said or type(error).__name__}"
        ) from error


def import_torch(purpose):
    """PyTorch, if it is there.

    Raises:
        UserError: if it is not.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(f"PyTorch is not installed, expected it {purpose}: pip install 'tfgpt[torch]'") from error
    return torch


def to_numpy(tensors, source):
    """A state dictionary's tensors as NumPy arrays of the same dtype and memory.

    Raises:
        UserError: if an entry is no plain tensor.
    """
    import torch

    arrays = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise UserError(f"{source} has {name} of {type(tensor).__name__}, expected dense tensors alone")
        tensor = tensor.detach()
        if tensor.dtype == torch.bfloat16:  # which NumPy knows under another's name
            arrays[name] = tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        else:
            arrays[name] = tensor.numpy()
    return arrays


def to_torch(array):
    """A tensor of an array's dtype, with its own memory."""
    import torch

    array = np.array(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
