"""An encoder–decoder Transformer as ONNX, in Optimum's seq2seq layout: three graphs that share one file of weights."""

from __future__ import annotations

from tfgpt.export import onnx_rules
from tfgpt.export.encoder_decoder_steps import STEPS, DecoderStep, EncoderStep
from tfgpt.export.onnx_decoder import convert_step, initialize, write_weights
from tfgpt.export.onnx_file import save_decoder
from tfgpt.models.encoder_decoder.model_directory import named_variables

DATA = "model.onnx.data"


def export_encoder_decoder_onnx(model, folder, source=""):
    """Writes encoder_model.onnx, decoder_model.onnx, decoder_with_past_model.onnx, and the weights, each once.

    Args:
        model: an `EncoderDecoderTransformer` that computes in float32.
        folder: a `pathlib.Path`, made if need be.
        source: what the weights came from, kept in the models' metadata.
    """
    folder.mkdir(parents=True, exist_ok=True)
    graphs = {step.file: convert_part(step(model)) for step in STEPS}
    tensors = write_weights(named_variables(model.backbone), folder / DATA)
    for file, graph in graphs.items():
        initialize(graph, tensors)
        save_decoder(graph, folder / file, source)


def convert_part(step):
    """A step of `encoder_decoder_steps` as an `onnx_ir.Model` of standard operators whose weights are still inputs."""
    backbone = step.model.backbone
    weights = {name: variable for name, variable in named_variables(backbone).items() if step.reads(name)}
    graph = convert_step(step, step.inputs, step.outputs, weights)
    onnx_rules.apply_rules(graph, part_rules(step, backbone))
    return graph


def part_rules(step, backbone):
    """Rules that write standard operators, in order, for one of the three graphs."""
    if isinstance(step, EncoderStep):
        layers, sublayers, heads, tied = backbone.num_encoder_layers, 2, 1, 0
    else:
        layers, sublayers, heads, tied = backbone.num_decoder_layers, 3, 2, 1
    norms = {"pre": sublayers * layers + 1, "post": sublayers * layers, "none": 0}[backbone.normalization]
    # All layers' cross-attention reads the memory's rows, folded once: the rule leaves that be, but for a single layer.
    memory = 1 if isinstance(step, DecoderStep) and layers == 1 else 0
    return [
        onnx_rules.PlainGather(1),
        onnx_rules.LayerNormalization(norms),
        onnx_rules.DenseToHeads(heads * layers + memory),
        onnx_rules.DenseFromHeads(heads * layers),
        onnx_rules.UnfoldedRows(layers),
        onnx_rules.KeptRows(layers),
        onnx_rules.TiedHead(tied),
        onnx_rules.MaskedScores(heads * layers),
    ]
