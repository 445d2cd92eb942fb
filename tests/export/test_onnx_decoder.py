import collections
import json
import re

import numpy as np
import onnx
import pytest
import safetensors.numpy

from tfgpt.export import onnx_decoder
from tfgpt.export.keras_runner import KerasRunner
from tfgpt.models import GPT2CausalLM
from tfgpt.models.gpt2 import hugging_face
from tfgpt.runtime.onnx_runtime import OnnxRunner, PortableOnnxRunner, open_session
from tfgpt.version import __version__

FILES = ["model.onnx", *(f"model_{variant}.onnx" for variant in ("float32", "float16", "int8", "int4"))]


@pytest.fixture(scope="module")
def path(exported):
    return exported.path / "onnx" / "model.onnx"


@pytest.fixture(scope="module")
def proto(path):
    return onnx.load(path, load_external_data=False)


def described(values):
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
    }
    types = {value.name: onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type) for value in values}
    return shapes, types


def cache(prefix, length):
    return {f"{prefix}.{i}.{part}": ["batch_size", 2, length, 16] for i in range(2) for part in ("key", "value")}


@pytest.mark.parametrize("name", FILES)
def test_the_checker_accepts_the_file(path, name):
    onnx.checker.check_model(str(path.parent / name), full_check=name == "model.onnx")


def test_inputs_and_outputs_are_hugging_faces(proto):
    shapes, types = described(proto.graph.input)
    assert shapes == {
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "total_sequence_length"],
        "position_ids": ["batch_size", "sequence_length"],
        **cache("past_key_values", "past_sequence_length"),
    }
    assert list(shapes)[:4] == ["input_ids", "attention_mask", "position_ids", "past_key_values.0.key"]
    assert {name: kind for name, kind in types.items() if kind != "FLOAT"} == {
        "input_ids": "INT64",
        "attention_mask": "INT64",
        "position_ids": "INT64",
    }
    shapes, types = described(proto.graph.output)
    vocabulary_size = shapes["logits"][2]
    assert shapes == {
        "logits": ["batch_size", "sequence_length", vocabulary_size],
        **cache("present", "total_sequence_length"),
    }
    assert next(iter(shapes)) == "logits"
    assert set(types.values()) == {"FLOAT"}


def test_the_vocabulary_is_the_models(proto, model_directory):
    config = json.loads((model_directory / "config.json").read_text())
    assert proto.graph.output[0].type.tensor_type.shape.dim[2].dim_value == config["vocab_size"]


def test_opset_18_and_standard_operators_only(proto):
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 18)]
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    assert {node.op_type for node in proto.graph.node} >= {"MatMul", "Softmax", "Gather"}


def test_weights_are_the_model_directorys_and_outside_of_the_graph(proto, path, model_directory, onnx_weights):
    expected = safetensors.numpy.load_file(model_directory / "model.safetensors")
    weights = onnx_weights(path)
    assert set(weights.entries) == set(expected)
    for name, array in expected.items():
        with weights.edit(name) as found:
            np.testing.assert_array_equal(found, array)
    inside = [tensor for tensor in proto.graph.initializer if tensor.name not in expected]
    inside += [attribute.t for node in proto.graph.node for attribute in node.attribute if attribute.HasField("t")]
    assert sum(tensor.ByteSize() for tensor in inside) < 8192
    assert not set(expected) & {value.name for value in proto.graph.input}


def test_each_weight_is_stored_once(proto, path, model_directory):
    """The tied embedding, too: it is the input's vectors and the output's projection."""
    expected = safetensors.numpy.load_file(model_directory / "model.safetensors")
    total = sum(array.nbytes for array in expected.values())
    assert total <= (path.parent / "model.onnx.data").stat().st_size <= 1.01 * total
    embedding = "transformer.wte.weight"
    assert [tensor.name for tensor in proto.graph.initializer].count(embedding) == 1
    assert len([node for node in proto.graph.node if embedding in node.input]) == 2
    names = {
        file.name
        for file in path.parent.iterdir()
        if not {"int8", "int4", "float16"} & set(re.split("[_.]", file.name))
    }
    assert names == {"model.onnx", "model.onnx.data", "model_float32.onnx"}


@pytest.mark.parametrize("name", ["model.onnx", "model_float32.onnx"])
def test_external_data_is_aligned_and_named_relatively(path, name):
    proto = onnx.load(path.parent / name, load_external_data=False)
    entries = [{e.key: e.value for e in tensor.external_data} for tensor in proto.graph.initializer]
    entries = [entry for entry in entries if entry]
    assert entries
    assert {entry["location"] for entry in entries} == {"model.onnx.data"}
    assert all(int(entry["offset"]) % 64 == 0 for entry in entries)


@pytest.mark.parametrize("name", FILES)
def test_metadata(path, name):
    proto = onnx.load(path.parent / name, load_external_data=False)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert metadata == {"source": "model", "tfgpt_version": __version__}
    assert (proto.producer_name, proto.producer_version) == ("tfgpt", __version__)


def test_the_shapes_of_all_portable_values_are_inferred(proto):
    """By which other runtimes plan their memory."""
    known = {value.name: described([value])[0][value.name] for value in proto.graph.value_info}
    outputs = {name for node in proto.graph.node for name in node.output if name}
    assert outputs <= {*known, *(value.name for value in proto.graph.output)}
    axes = [known[node.output[0]] for node in proto.graph.node if node.op_type == "LayerNormalization"]
    assert len(axes) == 5
    assert all(len(shape) == 3 and shape[2] == 32 for shape in axes)


# === The tuned decoder ===


@pytest.fixture(scope="module")
def tuned(path):
    return onnx.load(path.parent / "model_float32.onnx", load_external_data=False)


def test_the_tuned_decoders_inputs_and_outputs(tuned):
    shapes, types = described(tuned.graph.input)
    assert shapes == {
        "input_ids": ["batch_size", "sequence_length"],
        "position_ids": ["batch_size", "sequence_length"],
        "seqlens_k": ["batch_size"],
        "total_sequence_length": [],
        "logit_indices": ["batch_size", "num_logits"],
        **cache("past_key_values", "max_sequence_length"),
    }
    assert {name: kind for name, kind in types.items() if kind != "FLOAT"} == {
        "input_ids": "INT64",
        "position_ids": "INT64",
        "seqlens_k": "INT32",
        "total_sequence_length": "INT32",
        "logit_indices": "INT64",
    }
    shapes, types = described(tuned.graph.output)
    vocabulary_size = shapes["logits"][2]
    assert shapes == {
        "logits": ["batch_size", "num_logits", vocabulary_size],
        **cache("present", "max_sequence_length"),
        "last_hidden_state": ["batch_size", "num_logits", shapes["last_hidden_state"][2]],
    }
    assert set(types.values()) == {"FLOAT"}


def test_the_tuned_decoder_shares_the_portable_ones_weights(proto, tuned):
    def tensors(model):
        fields = [{e.key: e.value for e in tensor.external_data} for tensor in model.graph.initializer]
        named = {tensor.name: entry for tensor, entry in zip(model.graph.initializer, fields, strict=True) if entry}
        return {name: (entry["location"], entry["offset"], entry["length"]) for name, entry in named.items()}

    assert tensors(tuned) == tensors(proto)
    assert len(tensors(proto)) == 28


@pytest.mark.parametrize(
    "settings", [{"activation": "relu"}, {"num_layers": 1, "num_heads": 1}, {"num_layers": 3, "num_heads": 4}]
)
def test_other_architectures(tmp_path, settings):
    """All weights far from 0 or 1, or a bias left out would make no difference."""
    model = random_model(**settings)
    onnx_decoder.export_onnx(model, tmp_path)
    tuned = onnx.load(tmp_path / "model_float32.onnx", load_external_data=False)
    operators = collections.Counter(node.op_type for node in tuned.graph.node)
    layers = settings.get("num_layers", 2)
    assert operators["GroupQueryAttention"] == layers
    assert operators["FastGelu"] == (0 if "activation" in settings else layers)
    rng = np.random.default_rng(0)
    token_ids, mask = rng.integers(0, 300, (3, 20)), np.ones((3, 20), int)
    mask[0, :9] = mask[2, :3] = 0
    expected = KerasRunner(model).logits(token_ids, mask)
    config = hugging_face.to_config(model.backbone)
    for runner in (
        PortableOnnxRunner(config, open_session(tmp_path / "model.onnx")),
        OnnxRunner(config, open_session(tmp_path / "model_float32.onnx"), "float32"),
    ):
        for found in (runner.logits(token_ids, mask), runner.cached_logits(token_ids, mask, 12)):
            real = mask.astype(bool)
            np.testing.assert_allclose(found[real], expected[real], atol=1e-4, rtol=0)
    assert np.abs(expected).max() > 3


def random_model(**settings):
    model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0, **settings)
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(variable + rng.normal(0, 0.3, variable.shape))
    return model


def test_conversion_does_not_take_the_weights_with_it():
    """Whatever their size: the graph that tf2onnx sees has inputs in their place."""
    model = random_model()
    decoder = onnx_decoder.convert(model)
    weights = hugging_face.named_variables(model.backbone)
    names = [value.name for value in decoder.graph.inputs]
    assert names[-len(weights) :] == list(weights)
    constants = [*decoder.graph.initializers.values()]
    assert sum(value.const_value.nbytes for value in constants) < 1024
