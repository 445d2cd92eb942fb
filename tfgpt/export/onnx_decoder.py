"""The Keras model as an ONNX decoder with KV cache, its weights in external data.

Weights stay out of the graph while it is converted: a frozen graph with hundreds of megabytes of constants costs
tf2onnx minutes and tens of gigabytes. The step is traced with the weights as inputs, converted, and these inputs then
become named initializers, each written once.
"""

from __future__ import annotations

import logging

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

from tfgpt.export.decoder import decoder_inputs, decoder_outputs, decoder_step
from tfgpt.models.gpt2.hugging_face import named_variables
from tfgpt.version import __version__

OPSET = 18  # the newest that tf2onnx writes
ALIGNMENT = 64  # bytes; lets runtimes map tensors in place


def export_onnx(model, path, source=""):
    """Writes `model` as `path` and `path` + ".data".

    Args:
        model: a `GPT2CausalLM` that computes in float32.
        path: a `pathlib.Path` ending in `.onnx`.
        source: what the weights came from, kept in the model's metadata.
    """
    proto = convert(model)
    weights = named_variables(model.backbone)
    bind_weights(proto, weights, f"{path.name}.data")
    proto.producer_name, proto.producer_version = "tfgpt", __version__
    onnx.helper.set_model_props(proto, {"source": str(source), "tfgpt_version": __version__})
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f"{path.name}.data", "wb") as data:
        for variable in weights.values():
            data.write(b"\0" * (-data.tell() % ALIGNMENT))
            data.write(variable.numpy())
    path.write_bytes(proto.SerializeToString())
    onnx.checker.check_model(str(path))


def convert(model):
    """The decoder step as an ONNX model whose weights are still inputs, behind those of `decoder_inputs`."""
    inputs, outputs = decoder_inputs(model.backbone), decoder_outputs(model.backbone)
    weights = named_variables(model.backbone)

    def step(*arguments):
        state = zip(weights.values(), arguments[len(inputs) :], strict=True)
        with keras.StatelessScope(state_mapping=list(state)):
            return decoder_step(model, *arguments[: len(inputs)])

    signature = [
        tf.TensorSpec([axis if isinstance(axis, int) else None for axis in tensor.axes], tensor.dtype, f"input_{i}")
        for i, tensor in enumerate(inputs)
    ]
    signature += [tf.TensorSpec(v.shape, v.dtype, f"weight_{i}") for i, v in enumerate(weights.values())]
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    function = tf.function(step, autograph=False, input_signature=signature)
    proto, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=OPSET)
    used = {node.domain for node in proto.graph.node}
    for opset in [opset for opset in proto.opset_import if opset.domain not in used]:
        proto.opset_import.remove(opset)  # tf2onnx always declares ai.onnx.ml

    # Inputs and outputs come back in the order they went in; only their names and axes are to be restored.
    described = [*inputs, *outputs]
    values = [*proto.graph.input[: len(inputs)], *proto.graph.output]
    names = {value.name: tensor.name for value, tensor in zip(values, described, strict=True)}
    names |= dict(zip((v.name for v in proto.graph.input[len(inputs) :]), weights, strict=True))
    _rename(proto.graph, names)
    for value, tensor in zip(values, described, strict=True):
        _name_axes(value, tensor.axes)
    return proto


def bind_weights(proto, weights, location):
    """Turns weight inputs into initializers whose bytes follow each other in the file `location`."""
    graph = proto.graph
    inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)
    offset = 0
    for name, variable in weights.items():
        dtype = np.dtype(variable.dtype)
        length = dtype.itemsize * int(np.prod(variable.shape))
        offset += -offset % ALIGNMENT
        tensor = graph.initializer.add(name=name, dims=variable.shape)
        tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        offset += length


def _rename(graph, names):
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)


def _name_axes(value, axes):
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for axis in axes:
        shape.dim.add(**{"dim_value" if isinstance(axis, int) else "dim_param": axis})
