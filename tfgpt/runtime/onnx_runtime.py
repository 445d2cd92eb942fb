"""A release's ONNX decoder on ONNX Runtime."""

from __future__ import annotations

import pathlib

import numpy as np
import onnxruntime

from tfgpt.errors import UserError
from tfgpt.runtime.runner import Runner, read_release_config


class OnnxRunner(Runner):
    """Runs `onnx/model.onnx` of a release directory.

    Args:
        release: the release directory.
        threads: of the session; 0 lets ONNX Runtime choose.

    Raises:
        UserError: if the file is missing or ONNX Runtime cannot load it.
    """

    name = "onnx"

    def __init__(self, release, threads=0):
        super().__init__(read_release_config(release))
        path = pathlib.Path(release) / "onnx" / "model.onnx"
        if not path.is_file():
            raise UserError(f"{path} is missing, expected a release exported with the format onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise UserError(f"{path} cannot be loaded by ONNX Runtime: {_first_line(error)}") from error
        self.cache_names = [i.name for i in self.session.get_inputs() if i.name.startswith("past_key_values.")]

    def step(self, token_ids, padding_mask, position_ids, cache):
        feeds = {
            "input_ids": np.asarray(token_ids, np.int64),
            "attention_mask": np.asarray(padding_mask, np.int64),
            "position_ids": np.asarray(position_ids, np.int64),
            **dict(zip(self.cache_names, cache, strict=True)),
        }
        logits, *cache = self.session.run(None, feeds)
        return logits, cache


def _first_line(error):
    return str(error).strip().splitlines()[0]
