"""What the quantization of each weight matrix costs, measured by quantizing it alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tfgpt.export.logit_statistics import logit_statistics
from tfgpt.export.parity import Cost
from tfgpt.export.quantization import quantize, weight_matrices
from tfgpt.runtime.onnx_runtime import OnnxRunner, open_session
from tfgpt.runtime.variants import onnx_path

POSITIONS = 512  # of text; the order of the costs settles long before their values do


class _InGraph:
    """Takes `ExternalData`'s place where a trial is not written to disk."""

    @staticmethod
    def add(name, array):
        return ir.tensor(array, name=name)


def measure_sensitivity(folder, variant, tokens, config, on_progress=None):
    """The cost of each weight matrix, the dearest first.

    Args:
        folder: a release's `onnx` folder, with the float32 variant in it.
        variant: "int8", "int8_weight_only" or "int4".
        tokens: token ids of held-out text.
        config: the contents of the release's config.json.
        on_progress: called with a line of text at each matrix.

    Returns:
        A list of `Cost`.
    """
    say = on_progress or (lambda line: None)
    path = folder / onnx_path("float32").name
    length = min(config["n_positions"], POSITIONS, len(tokens))
    rows = max(1, min(POSITIONS, len(tokens)) // length)
    text = np.asarray(tokens[: rows * length]).astype(np.int64).reshape(rows, length)
    expected = _logits(OnnxRunner(config, open_session(path), "float32"), text)
    shapes = weight_matrices(ir.load(path))
    costs = []
    for name, shape in shapes.items():
        say(f"onnx/{variant}: sensitivity to {name}")
        decoder = ir.load(path)
        quantize(decoder, variant, _InGraph, keep=set(shapes) - {name})
        session = open_session(ir.to_proto(decoder).SerializeToString(), folder=folder)
        found = _logits(OnnxRunner(config, session, variant), text)
        divergence = logit_statistics(expected, found, text.reshape(-1)).divergence
        costs.append(Cost(name, float(divergence.mean()), 4 * int(np.prod(shape))))
    return sorted(costs, key=lambda cost: -cost.kl_divergence)


def _logits(runner, text):
    return runner.logits(text, np.ones_like(text)).reshape(-1, runner.vocabulary_size)
