"""A classifier as a SavedModel, and as one ONNX file."""

from __future__ import annotations

import onnx_ir as ir

from tfgpt.errors import UserError
from tfgpt.export.classifier_signatures import CLASSIFY, CLASSIFY_METHOD, ClassifierSignatures
from tfgpt.export.decoder import TensorDescription
from tfgpt.export.onnx_decoder import convert_step
from tfgpt.export.onnx_file import save_decoder
from tfgpt.export.saved_model import example_text, write_saved_model
from tfgpt.models.classifier.hugging_face import named_variables
from tfgpt.runtime.variants import onnx_path
from tfgpt.text.in_graph_tokenizer import in_graph_tokenizer

ONNX_BYTES = 2**31  # what a protobuf holds less than


def export_classifier_saved_model(model, path):
    """Writes `model` with the signatures of `tfgpt.export.classifier_signatures`, and warm-up requests.

    Args:
        model: a `SequenceClassifier` that computes in float32; without a tokenizer it gets the signature of tokens.
        path: the directory of one version, such as `saved_model/NAME/1`.

    Raises:
        UserError: for a tokenizer that is neither byte-level BPE nor of characters.
        OSError: if it cannot be written.
    """
    tokenizer, methods = None, {}
    if model.tokenizer is not None:
        tokenizer, methods = in_graph_tokenizer(model.tokenizer), {CLASSIFY: CLASSIFY_METHOD}
    served = ClassifierSignatures(model, tokenizer)
    write_saved_model(path, model, tokenizer, served, example_text(model.tokenizer), methods=methods)


def export_classifier_onnx(model, folder, source=""):
    """Writes `model.onnx`, weights and all, in the layout of Optimum's `ORTModelForSequenceClassification`.

    Inputs `input_ids` and `attention_mask` (B, T) int64, padded on either side; output `logits` (B, C) float32.

    Args:
        model: a `SequenceClassifier` that computes in float32.
        folder: a `pathlib.Path`, made if need be.
        source: what the weights came from, kept in the model's metadata.

    Raises:
        UserError: for a model that is too large for one file.
    """
    size = sum(variable.numpy().nbytes for variable in named_variables(model).values())
    if size >= ONNX_BYTES:
        raise UserError(f"the model has {size / 1e9:.1f} GB of weights, expected less than 2.1 GB for one ONNX file")
    classifier = convert(model)
    folder.mkdir(parents=True, exist_ok=True)
    save_decoder(classifier, folder / onnx_path("portable").name, source)


def convert(model):
    """The classifier as an `onnx_ir.Model` with its weights as initializers."""
    axes = ("batch_size", "sequence_length")
    inputs = [TensorDescription(name, "int64", axes) for name in ("input_ids", "attention_mask")]
    output = TensorDescription("logits", "float32", ("batch_size", len(model.labels)))
    weights = named_variables(model)

    def step(token_ids, padding_mask):
        return [model({"token_ids": token_ids, "padding_mask": padding_mask}, training=False)]

    classifier = convert_step(step, inputs, [output], weights)
    values = {value.name: value for value in classifier.graph.inputs}
    classifier.graph.inputs[:] = [values[tensor.name] for tensor in inputs]
    for name, variable in weights.items():
        values[name].const_value = ir.tensor(variable.numpy(), name=name)
        classifier.graph.register_initializer(values[name])
    return classifier
