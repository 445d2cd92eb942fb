"""Attention weights of an ONNX decoder, on demand: what each head of each layer looks at from one token."""

from __future__ import annotations

import pathlib

import numpy as np

from tfgpt.errors import UserError
from tfgpt.runtime.onnx_runtime import OnnxDecoding, open_session
from tfgpt.runtime.resident_memory import give_back_freed
from tfgpt.runtime.variants import data_path, onnx_path

AFTER_SOFTMAX = 2  # of GroupQueryAttention's qk_output, which ONNX Runtime 1.22 does not have


class AttentionObserver:
    """Shows what a runner's model attends to, by the operators that generate.

    ONNX Runtime gives the weights of its GroupQueryAttention if the graph asks for them, and then always. So the graph
    that does is opened beside the one that generates for one call, with its own copy of the weights, and closed.

    Args:
        runner: an `OnnxRunner`, which reads what comes before the last token.
        release: the directory of its files, which must stay as they are.
        threads: of ONNX Runtime.
    """

    def __init__(self, runner, release, threads=0):
        self._runner, self._threads = runner, threads
        self._paths = [pathlib.Path(release) / of(runner.precision) for of in (onnx_path, data_path)]
        self._state = self._states()

    def __call__(self, token_ids):
        """What the last of some tokens attends to.

        Args:
            token_ids: 1 to as many as the window has.

        Returns:
            (L, H, T) float32: for each layer and head the weights of the T tokens, which sum up to 1.

        Raises:
            UserError: if the files have changed since the runner was opened, or ONNX Runtime is too old.
        """
        if self._states() != self._state:
            raise UserError(f"{self._paths[0]} has changed since it was loaded, expected it as it was")
        *before, last = token_ids
        shape = (1, self._runner.num_heads, len(token_ids), self._runner.head_dim)
        cache = {name: np.zeros(shape, self._runner.cache_dtype) for name in self._runner.cache_names}
        if before:
            cache = OnnxDecoding(self._runner, [before], len(token_ids)).cache
        feeds = {
            "input_ids": np.array([[last]], np.int64),
            "position_ids": np.array([[len(before)]], np.int64),
            "seqlens_k": np.array([len(before)], np.int32),
            "total_sequence_length": np.array(len(token_ids), np.int32),
            "logit_indices": np.zeros((1, 1), np.int64),
            **cache,
        }
        model, names = with_attention_weights(self._paths[0])
        weights = open_session(model, self._threads, self._paths[0].parent).run(names, feeds)  # (1, H, 1, T) each
        give_back_freed()  # the session's weights
        return np.stack([layer[0, :, 0, : len(token_ids)] for layer in weights]).astype(np.float32)

    def _states(self):
        try:
            return [(path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns) for path in self._paths]
        except OSError:
            return None


def with_attention_weights(path):
    """The graph of an ONNX file with one more output a layer, the weights of its attention.

    Returns:
        The model's bytes, whose external data stays where it is, and the outputs' names.
    """
    import onnx  # which takes a while, and which nothing else here needs

    model = onnx.load(str(path), load_external_data=False)
    names = []
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            names.append(f"attention_weights.{len(names)}")
            node.output.append(names[-1])
            node.attribute.append(onnx.helper.make_attribute("qk_output", AFTER_SOFTMAX))
            element = next(o.type.tensor_type.elem_type for o in model.graph.output if o.name == node.output[1])
            model.graph.output.append(onnx.helper.make_tensor_value_info(names[-1], element, None))
    return model.SerializeToString(), names
