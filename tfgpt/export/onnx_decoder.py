"""The Keras model as ONNX decoders with KV cache, their weights in external data.

Weights stay out of the graph while it is converted: a frozen graph with hundreds of megabytes of constants costs
tf2onnx minutes and tens of gigabytes. The step is traced with the weights as inputs, converted and rewritten, and these
inputs then become named initializers, each written once.
"""

from __future__ import annotations

import logging

import keras
import numpy as np
import onnx_ir as ir
import tensorflow as tf
from tf2onnx.optimizer import (
    BackToBackOptimizer,
    ConstFoldOptimizer,
    IdentityOptimizer,
    MergeDuplicatedNodesOptimizer,
    ReshapeOptimizer,
    optimize_graph,
)
from tf2onnx.tfonnx import process_tf_graph

from tfgpt.export.decoder import decoder_inputs, decoder_outputs, decoder_step
from tfgpt.export.onnx_file import ExternalData, save_decoder
from tfgpt.export.onnx_rules import apply_rules, portable_rules, tuned_rules
from tfgpt.models.gpt2.hugging_face import named_variables
from tfgpt.runtime.variants import data_path, onnx_path

OPSET = 18  # the newest that tf2onnx writes
HEAD_DIM_MULTIPLE = 8  # of GroupQueryAttention
OPTIMIZERS = {
    "fold_constants": ConstFoldOptimizer,
    "merge_duplication": MergeDuplicatedNodesOptimizer,
    "reshape_optimizer": ReshapeOptimizer,
    "remove_identity": IdentityOptimizer,
    "remove_back_to_back": BackToBackOptimizer,
}


def export_onnx(model, folder, source=""):
    """Writes the portable decoder, `model.onnx`, the one tuned for ONNX Runtime, and the weights that both share.

    A model whose heads ONNX Runtime's attention cannot take gets the portable one alone.

    Args:
        model: a `GPT2CausalLM` that computes in float32.
        folder: a `pathlib.Path`, made if need be.
        source: what the weights came from, kept in the models' metadata.
    """
    decoder = convert(model)
    folder.mkdir(parents=True, exist_ok=True)
    bind_weights(decoder, named_variables(model.backbone), folder / data_path("portable").name)
    save_decoder(decoder, folder / onnx_path("portable").name, source)
    if can_tune(model.backbone):
        tune(decoder, model.backbone)
        save_decoder(decoder, folder / onnx_path("float32").name, source)


def convert(model):
    """The decoder step as an `onnx_ir.Model` of standard operators whose weights are still inputs, after the others."""
    inputs, outputs = decoder_inputs(model.backbone), decoder_outputs(model.backbone)
    decoder = convert_step(
        lambda *tensors: decoder_step(model, *tensors), inputs, outputs, named_variables(model.backbone)
    )
    apply_rules(decoder, portable_rules(model.backbone.num_layers))
    return decoder


def convert_step(step, inputs, outputs, weights):
    """A function of tensors and a model's variables as an `onnx_ir.Model`, as tf2onnx writes it.

    Args:
        step: a function of tensors, one for each of `inputs`, that gives a list of one for each of `outputs`.
        inputs, outputs: lists of `TensorDescription`.
        weights: name → variable, those that the function uses; they become inputs, after the others.
    """

    def with_weights(*arguments):
        state = zip(weights.values(), arguments[len(inputs) :], strict=True)
        with keras.StatelessScope(state_mapping=list(state)):
            return step(*arguments[: len(inputs)])

    signature = [
        tf.TensorSpec([axis if isinstance(axis, int) else None for axis in tensor.axes], tensor.dtype, f"input_{i}")
        for i, tensor in enumerate(inputs)
    ]
    signature += [tf.TensorSpec(v.shape, v.dtype, f"weight_{i}") for i, v in enumerate(weights.values())]
    function = tf.function(with_weights, autograph=False, input_signature=signature).get_concrete_function()
    decoder = ir.from_proto(convert_function(function))
    for domain in set(decoder.opset_imports) - {node.domain for node in decoder.graph}:
        del decoder.opset_imports[domain]  # tf2onnx always declares ai.onnx.ml
    # Inputs and outputs come back in the order they went in; only their names and axes are to be restored.
    names = [*(tensor.name for tensor in inputs), *weights, *(tensor.name for tensor in outputs)]
    for value, name in zip([*decoder.graph.inputs, *decoder.graph.outputs], names, strict=True):
        value.name = name
    described = [*inputs, *outputs]
    for value, tensor in zip([*decoder.graph.inputs[: len(inputs)], *decoder.graph.outputs], described, strict=True):
        value.shape = ir.Shape(tensor.axes)
    return decoder


def convert_function(function):
    """A concrete TensorFlow function without variables as an ONNX model, inputs and outputs in their order.

    This is `tf2onnx.convert.from_function` without its first step, TensorFlow's own optimizer, which makes up a value
    for every input and so holds all weights once more; and without those of its rewrites that find nothing to do in
    a decoder, each of which copies the graph: together more than half of the time.
    """
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(function.graph.as_graph_def(add_shapes=True), name="")
        converted = process_tf_graph(
            graph,
            opset=OPSET,
            input_names=[tensor.name for tensor in function.inputs],
            output_names=[tensor.name for tensor in function.outputs],
            custom_op_handlers={"Erfc": (_one_less_erf, [])},
        )
    converted = optimize_graph(converted, catch_errors=False, optimizers=OPTIMIZERS)
    return converted.make_model("tfgpt decoder")


def _one_less_erf(context, node, name, arguments):
    """Keras' exact GELU has TensorFlow's Erfc, which neither tf2onnx nor ONNX has: 1 - Erf."""
    node.type = "Erf"
    [output] = node.output
    users = context.find_output_consumers(output)
    one = context.make_const(f"{name}/one", np.float32(1))
    difference = context.make_node("Sub", [one.output[0], output], name=f"{name}/complement")
    for user in users:
        context.replace_input(user, output, difference.output[0])


def can_tune(backbone):
    """Whether ONNX Runtime's attention takes heads of this width."""
    return backbone.hidden_dim // backbone.num_heads % HEAD_DIM_MULTIPLE == 0


def tune(decoder, backbone):
    """Rewrites a portable decoder, in place, to ONNX Runtime's fused operators.

    In place of the mask it takes each row's length, so padding stands on the right; and it gives logits of chosen
    positions only, and their `last_hidden_state` (B, M, D). Inputs: `input_ids` and `position_ids` (B, T), `seqlens_k`
    (B,), the number of each row's keys less one, `total_sequence_length`, the largest number of keys, `logit_indices`
    (B, M), and the cache, which past and present may share, (B, H, S, K) with S at least that largest number.
    """
    graph = decoder.graph
    lengths = [_input("seqlens_k", ir.DataType.INT32, ["batch_size"])]
    lengths += [_input("total_sequence_length", ir.DataType.INT32, [])]
    logit_indices = _input("logit_indices", ir.DataType.INT64, ["batch_size", "num_logits"])
    tokens, mask, positions, *cache = graph.inputs
    has_fast_gelu = backbone.activation == "gelu_tanh"
    graph.inputs.extend([*lengths, logit_indices])
    apply_rules(decoder, tuned_rules(backbone.num_layers, has_fast_gelu, lengths, logit_indices))
    graph.inputs[:] = [tokens, positions, *lengths, logit_indices, *cache]
    if mask.uses():
        raise AssertionError("the tuned decoder still reads the mask")
    for value in [*cache, *graph.outputs[1:]]:
        value.shape = ir.Shape([*value.shape[:2], "max_sequence_length", value.shape[3]])
    logits = graph.outputs[0]
    logits.shape = ir.Shape(["batch_size", "num_logits", backbone.vocabulary_size])
    flat = logits.producer().inputs[0].producer().inputs[0]  # (B · M, D), what the output head multiplies
    hidden = flat.producer().inputs[0]
    hidden.name, hidden.dtype = "last_hidden_state", ir.DataType.FLOAT
    hidden.shape = ir.Shape(["batch_size", "num_logits", backbone.hidden_dim])
    graph.outputs.append(hidden)


def bind_weights(decoder, weights, path):
    """Writes variables to `path`, and turns the inputs of their names into initializers that are there."""
    initialize(decoder, write_weights(weights, path))


def write_weights(weights, path):
    """Writes variables to a file: name → `onnx_ir.ExternalTensor`."""
    with ExternalData(path) as data:
        return {name: data.add(name, variable.numpy()) for name, variable in weights.items()}


def initialize(decoder, tensors):
    """Turns a graph's inputs of these names into initializers."""
    graph = decoder.graph
    weights = [value for value in graph.inputs if value.name in tensors]
    graph.inputs[:] = [value for value in graph.inputs if value.name not in tensors]
    for value in weights:
        value.const_value = tensors[value.name]
        graph.register_initializer(value)


def _input(name, dtype, axes):
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(axes))
