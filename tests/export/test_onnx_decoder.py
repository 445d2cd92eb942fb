import json

import numpy as np
import onnx
import pytest
import safetensors.numpy

from tfgpt.version import __version__


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


def test_the_checker_accepts_the_file(path):
    onnx.checker.check_model(str(path), full_check=True)


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
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_external_data_is_aligned_and_named_relatively(proto):
    entries = [{e.key: e.value for e in tensor.external_data} for tensor in proto.graph.initializer]
    entries = [entry for entry in entries if entry]
    assert entries
    assert {entry["location"] for entry in entries} == {"model.onnx.data"}
    assert all(int(entry["offset"]) % 64 == 0 for entry in entries)


def test_metadata(proto):
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert metadata == {"source": "model", "tfgpt_version": __version__}
    assert (proto.producer_name, proto.producer_version) == ("tfgpt", __version__)
