"""Attention weights of an ONNX decoder, on demand: what each head of each layer looks at from one token."""

from __future__ import annotations

import pathlib

import numpy as np

from tfgpt.runtime.onnx_runtime import Call, OnnxRunner, open_session
from tfgpt.runtime.slots import CHUNK
from tfgpt.runtime.variants import onnx_path

AFTER_SOFTMAX = 2  # of GroupQueryAttention's qk_output (contrib_ops/cpu/bert/attention_common.h)


def attention_weights(runner, release, config, token_ids, threads=0):
    """What the last of some tokens attends to, by the operators that generate.

    ONNX Runtime gives the weights of its GroupQueryAttention if the graph asks for them, and then always: so the graph
    that does is made here, opened for one call beside the one that generates, and closed.

    Args:
        runner: an `OnnxRunner`, which reads what comes before the last token.
        release: the directory of its files.
        config: the contents of the release's config.json.
        token_ids: at most as many as the window has.
        threads: of ONNX Runtime.

    Returns:
        (L, H, T) float32: for each layer and head the weights of the T tokens, which sum up to 1.
    """
    path = pathlib.Path(release) / onnx_path(runner.precision)
    shape = (1, runner.num_heads, runner.window, runner.head_dim)
    cache = {name: np.zeros(shape, runner.cache_dtype) for name in runner.cache_names}
    *before, last = token_ids
    for start in range(0, len(before), CHUNK):
        piece = before[start : start + CHUNK]
        call = Call(runner, cache, 1, len(piece), 1)
        call.arrays["input_ids"][0] = piece
        call.run(np.array([start], np.int32), len(piece))
    model, names = with_attention_weights(path)
    observer = OnnxRunner(config, open_session(model, threads, path.parent), runner.precision)
    feeds = {
        "input_ids": np.array([[last]], np.int64),
        "position_ids": np.array([[len(before)]], np.int64),
        "seqlens_k": np.array([len(before)], np.int32),
        "total_sequence_length": np.array(len(token_ids), np.int32),
        "logit_indices": np.zeros((1, 1), np.int64),
        **cache,
    }
    weights = observer.session.run(names, feeds)  # (1, H, 1, T) each
    return np.stack([layer[0, :, 0, : len(token_ids)] for layer in weights]).astype(np.float32)


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
