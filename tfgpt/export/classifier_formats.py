"""A classifier as a SavedModel, and as one ONNX file."""

from __future__ import annotations

import pathlib

import keras
import onnx_ir as ir
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.saved_model import fingerprinting_utils

from tfgpt.errors import UserError
from tfgpt.export.classifier_signatures import CLASSIFY, CLASSIFY_METHOD, ClassifierSignatures
from tfgpt.export.decoder import TensorDescription
from tfgpt.export.onnx_decoder import convert_function, describe_graph, without_unused_domains
from tfgpt.export.onnx_file import save_decoder
from tfgpt.export.saved_model import example_text, os_error
from tfgpt.export.warm_up import write_warm_up
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
    path = pathlib.Path(path)
    module = tf.Module()
    # The variables and nothing else of Keras: the artifact does not depend on Keras' classes.
    module.weights = [variable.value for variable in model.variables]
    module.tokenizer = None if model.tokenizer is None else in_graph_tokenizer(model.tokenizer)
    functions = ClassifierSignatures(model, module.tokenizer).functions()
    signatures = {name: function.get_concrete_function() for name, function in functions.items()}
    try:
        tf.saved_model.save(module, str(path), signatures=signatures)
        if CLASSIFY in signatures:
            _name_method(path, CLASSIFY, CLASSIFY_METHOD)
        write_warm_up(path, signatures, example_text(model.tokenizer))
    except tf.errors.OpError as error:
        raise os_error(error) from error


def _name_method(path, signature, method):
    """Says in saved_model.pb which of TensorFlow Serving's methods a signature is for, where `save` writes Predict."""
    file = path / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    saved.meta_graphs[0].signature_def[signature].method_name = method
    file.write_bytes(saved.SerializeToString(deterministic=True))
    fingerprinting_utils.write_fingerprint(str(path))  # of what is there now


def classifier_inputs():
    """The inputs of the ONNX model under Hugging Face's names, in order."""
    axes = ("batch_size", "sequence_length")
    return [TensorDescription(name, "int64", axes) for name in ("input_ids", "attention_mask")]


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
    weights = named_variables(model)
    size = sum(variable.value.dtype.size * variable.value.shape.num_elements() for variable in weights.values())
    if size >= ONNX_BYTES:
        raise UserError(f"the model has {size / 1e9:.1f} GB of weights, expected less than 2.1 GB for one ONNX file")
    classifier = convert(model, weights)
    folder.mkdir(parents=True, exist_ok=True)
    save_decoder(classifier, folder / onnx_path("portable").name, source)


def convert(model, weights):
    """The classifier as an `onnx_ir.Model` with its weights as initializers."""
    inputs = classifier_inputs()
    output = TensorDescription("logits", "float32", ("batch_size", len(model.labels)))

    def step(token_ids, padding_mask, *values):
        with keras.StatelessScope(state_mapping=list(zip(weights.values(), values, strict=True))):
            return model({"token_ids": token_ids, "padding_mask": padding_mask}, training=False)

    signature = [tf.TensorSpec([None, None], tensor.dtype, f"input_{i}") for i, tensor in enumerate(inputs)]
    signature += [tf.TensorSpec(v.shape, v.dtype, f"weight_{i}") for i, v in enumerate(weights.values())]
    function = tf.function(step, autograph=False, input_signature=signature).get_concrete_function()
    classifier = without_unused_domains(ir.from_proto(convert_function(function)))
    describe_graph(classifier.graph, inputs, weights, [output])
    values = {value.name: value for value in classifier.graph.inputs}
    classifier.graph.inputs[:] = [values[tensor.name] for tensor in inputs]
    for name, variable in weights.items():
        values[name].const_value = ir.tensor(variable.numpy(), name=name)
        classifier.graph.register_initializer(values[name])
    return classifier
