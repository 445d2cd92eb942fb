import hashlib
import json
import math
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import onnx
import pytest
import safetensors.numpy
import tensorflow as tf
from onnx import helper
from tensorflow.core.protobuf import saved_model_pb2

from tests.models import gpt2_numpy
from tfgpt.cli.inspection import describe
from tfgpt.cli.main import main
from tfgpt.export.release import write_manifest
from tfgpt.models import GPT2CausalLM
from tfgpt.text import BytePairTokenizer
from tfgpt.training.run_state import save_state


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def causal_lm():
    model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0)
    model.tokenizer = BytePairTokenizer.train(["the cat sat on the mat, the cat ate"], vocabulary_size=262)
    return model


@pytest.fixture
def model(causal_lm, tmp_path):
    causal_lm.save_to_preset(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    """Two signatures, three variables, of several dtypes and ranks."""

    class Module(tf.Module):
        def __init__(self):
            self.kernel = tf.Variable(tf.ones((3, 5)))
            self.half = tf.Variable(tf.ones((7,), tf.bfloat16))
            self.count = tf.Variable(4, dtype=tf.int64)

        @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32, name="x")])
        def product(self, x):
            return {"y": x @ self.kernel, "sum": tf.reduce_sum(tf.cast(self.half, tf.float32))}

        @tf.function(input_signature=[tf.TensorSpec(None, tf.string, name="text")])
        def length(self, text):
            return {"length": tf.strings.length(text), "count": self.count}

    path = tmp_path_factory.mktemp("saved") / "name" / "1"
    module = Module()
    tf.saved_model.save(module, path, signatures={"serving_default": module.product, "length": module.length})
    return path


@pytest.fixture
def onnx_file(tmp_path):
    """A graph with a branch, an operator of another domain, a weight within and two beside it."""
    weights = {"w": np.ones((4, 6), "float32"), "q": np.ones((8,), "int8"), "inner": np.ones((5,), "float32")}
    protos = {name: onnx.numpy_helper.from_array(weight, name) for name, weight in weights.items()}
    for name in ("w", "q"):
        place = {"offset": 0 if name == "w" else 96, "length": weights[name].nbytes}
        onnx.external_data_helper.set_external_data(protos[name], "data.bin", **place)
        protos[name].ClearField("raw_data")
    branch = helper.make_graph(
        [helper.make_node("Neg", ["z"], ["b"]), helper.make_node("Neg", ["b"], ["c"])],
        "branch",
        [],
        [helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, None)],
        [protos["inner"]],
    )
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["z"]),
            helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch),
            helper.make_node("Own", ["y"], ["o"], domain="com.example"),
        ],
        "graph",
        [
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4, None]),
            helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("o", onnx.TensorProto.FLOAT16, None)],
        [protos["w"], protos["q"]],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.example", 2)]
    proto = helper.make_model(graph, opset_imports=opsets, producer_name="test", ir_version=9)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "data.bin").write_bytes(bytes(96 + 8))
    return tmp_path / "model.onnx"


# === What is found ===


def test_model_directory(model, causal_lm):
    found = describe(model)
    assert found["kind"] == "model directory"
    assert found["architecture"] == {
        "name": "GPT2LMHeadModel",
        "model_type": "gpt2",
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 32,
        "intermediate_dim": 128,
        "max_sequence_length": 32,
        "vocabulary_size": 300,
        "activation": "gelu_new",
    }
    assert found["parameters"] == causal_lm.count_params()
    assert found["dtypes"] == {"F32": {"tensors": 28, "elements": causal_lm.count_params()}}
    tokenizer = causal_lm.tokenizer
    assert found["tokenizer"] == {
        "class": "BytePairTokenizer",
        "vocabulary_size": 262,
        "end_token_id": 261,
        "sha256": tokenizer.fingerprint,
    }
    assert found["files"] == {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in model.iterdir()
    }
    assert "sha256" not in describe(model, checksums=False)["files"]["config.json"]


def test_shards_masks_and_tied_copies(model):
    """A directory as others write it: parameters are counted once, and masks are none."""
    tensors = safetensors.numpy.load_file(model / "model.safetensors")
    count = sum(tensor.size for tensor in tensors.values())
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
    for i in range(2):
        tensors[f"transformer.h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 32, 32), "float32"))
        tensors[f"transformer.h.{i}.attn.masked_bias"] = np.array(-1e4, "float32")
    (model / "model.safetensors").unlink()
    shards = {"a.safetensors": sorted(tensors)[::2], "b.safetensors": sorted(tensors)[1::2]}
    for i, (shard, names) in enumerate(shards.items()):
        dtype = (np.float16, ml_dtypes.bfloat16)[i]
        safetensors.numpy.save_file({name: tensors[name].astype(dtype) for name in names}, model / shard)
    places = {name: shard for shard, names in shards.items() for name in names}
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    found = describe(model)
    assert found["parameters"] == count
    assert {dtype: counts["tensors"] for dtype, counts in found["dtypes"].items()} == {
        "F16": len(shards["a.safetensors"]),
        "BF16": len(shards["b.safetensors"]),
    }
    assert sum(counts["elements"] for counts in found["dtypes"].values()) == sum(t.size for t in tensors.values())


def test_a_safetensors_file_alone(tmp_path):
    weights = gpt2_numpy.random_weights(3, 8, 20, 6)
    safetensors.numpy.save_file(weights, tmp_path / "any.safetensors")
    found = describe(tmp_path / "any.safetensors")
    sizes = {"num_layers": 3, "hidden_dim": 8, "max_sequence_length": 6, "vocabulary_size": 20}
    assert found["architecture"] == {"name": None, "model_type": "gpt2", **sizes}
    assert found["parameters"] == sum(weight.size for weight in weights.values())
    assert found["files"]["any.safetensors"]["sha256"] == sha256(tmp_path / "any.safetensors")


def test_checkpoint_of_a_run(causal_lm, tmp_path):
    causal_lm.compile(optimizer="adam", loss="mse")
    causal_lm.optimizer.build(causal_lm.trainable_variables)
    save_state(tmp_path / "000007", causal_lm, {"step": 7})
    found = describe(tmp_path / "000007")
    assert (found["kind"], found["step"]) == ("checkpoint of a run", 7)
    assert found["parameters"] == causal_lm.count_params()
    assert found["optimizer"]["parameters"] == sum(  # two moments, and the learning rate
        math.prod(v.shape) for v in causal_lm.optimizer.variables if v.dtype == "float32"
    )
    names = ("model.safetensors", "optimizer.safetensors", "state.json")
    assert {name: entry["sha256"] for name, entry in found["files"].items()} == {
        name: sha256(tmp_path / "000007" / name) for name in names
    }


def test_saved_model_is_read_as_tensorflow_reads_it(saved_model):
    proto = saved_model_pb2.SavedModel.FromString((saved_model / "saved_model.pb").read_bytes())
    graph = proto.meta_graphs[0]

    def tensors(entries):
        shapes = {name: tf.TensorShape(info.tensor_shape) for name, info in entries.items()}
        dtypes = {name: tf.dtypes.as_dtype(info.dtype).name for name, info in entries.items()}
        lists = {name: None if shape.rank is None else shape.as_list() for name, shape in shapes.items()}
        return {name: {"dtype": dtypes[name], "shape": lists[name]} for name in entries}

    found = describe(saved_model)["saved_models"]["."]
    assert set(found["signatures"]) == {"serving_default", "length"}
    for name, signature in found["signatures"].items():
        expected = graph.signature_def[name]
        assert signature["method_name"] == expected.method_name
        assert signature["inputs"] == tensors(expected.inputs)
        assert signature["outputs"] == tensors(expected.outputs)
    assert found["signatures"]["serving_default"]["inputs"] == {"x": {"dtype": "float32", "shape": [None, 3]}}
    assert found["signatures"]["length"]["inputs"] == {"text": {"dtype": "string", "shape": None}}
    assert found["weights"] == {
        "bfloat16": {"tensors": 1, "elements": 7},
        "float32": {"tensors": 1, "elements": 15},
        "int64": {"tensors": 1, "elements": 1},
    }
    assert found["tensorflow_version"] == tf.__version__
    assert describe(saved_model / "saved_model.pb")["saved_models"]["."] == found
    assert describe(saved_model.parent)["saved_models"] == {"1": found}


def test_onnx_file(onnx_file):
    found = describe(onnx_file)["onnx"]["model.onnx"]
    assert found == {
        "producer": "test",
        "ir_version": 9,
        "opsets": {"ai.onnx": 18, "com.example": 2},
        "inputs": {
            "x": {"dtype": "float", "shape": ["batch", 4, None]},
            "flag": {"dtype": "bool", "shape": []},
        },
        "outputs": {"o": {"dtype": "float16", "shape": None}},
        "operators": {"Neg": 4, "If": 1, "MatMul": 1, "com.example::Own": 1},
        "weights": {"float": {"tensors": 3, "elements": 34}, "int8": {"tensors": 1, "elements": 8}},
        "external_data": {"data.bin": 104},
    }
    assert set(describe(onnx_file)["files"]) == {"model.onnx", "data.bin"}


@pytest.fixture
def release(model, saved_model, onnx_file, tmp_path):
    release = tmp_path / "release"
    shutil.copytree(model, release)
    (release / "model.safetensors").unlink()
    shutil.copytree(saved_model, release / "saved_model" / "name" / "1")
    (release / "onnx").mkdir()
    for path in (onnx_file, onnx_file.with_name("data.bin")):
        shutil.copy(path, release / "onnx")
    write_manifest(release, model)
    return release


def test_release_directory(release, causal_lm):
    found = describe(release)
    assert found["kind"] == "release directory"
    assert found["parameters"] == causal_lm.count_params()
    assert set(found["onnx"]) == {"onnx/model.onnx"}
    assert set(found["saved_models"]) == {"saved_model/name/1"}
    assert found["files"] == json.loads((release / "manifest.json").read_text())["files"]
    assert found["tokenizer"]["vocabulary_size"] == 262


# === What is printed ===


def test_what_is_printed(release, capsys):
    assert main(["inspect", str(release)]) == 0
    out = capsys.readouterr().out
    for line in (
        "GPT2LMHeadModel: 2 layers, 2 heads, 32 wide, feed-forward 128, window 32, vocabulary 300, gelu_new",
        "BytePairTokenizer of 262 tokens, end of text 261",
        "7: 4 Neg, 1 If, 1 MatMul, 1 com.example::Own",
        "104 bytes in data.bin",
        "x: float32 [?, 3]",
        "text: string of any shape",
        sha256(release / "tokenizer.json"),
    ):
        assert line in out
    assert main(["inspect", str(release), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == describe(release)


def test_layers_are_told_together(tmp_path, capsys):
    values = [helper.make_tensor_value_info(f"past.{i}.key", onnx.TensorProto.FLOAT, ["b", 2]) for i in range(12)]
    graph = helper.make_graph([], "graph", values, values[:1])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    assert main(["inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "past.{i}.key: float [b, 2] × 12" in out
    assert "past.0.key: float [b, 2]\n" in out


def test_no_tensorflow_is_imported(release, model):
    script = f"""
import sys
from tfgpt.cli.main import main
assert main(["inspect", {str(release)!r}]) == main(["inspect", {str(model)!r}]) == 0
assert not {{"tensorflow", "keras", "torch"}} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# === What is refused, in one sentence ===


def refusal(capsys, path):
    assert main(["inspect", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_what_is_none_of_these(tmp_path, capsys):
    assert "none does not exist, expected a directory or file to inspect" in refusal(capsys, tmp_path / "none")
    assert "is of no known kind, expected config.json" in refusal(capsys, tmp_path)
    (tmp_path / "model.txt").write_text("weights")
    assert "model.txt is of no known kind, expected .safetensors, .onnx" in refusal(capsys, tmp_path / "model.txt")
    (tmp_path / "config.json").write_text("{")
    assert "config.json is not JSON" in refusal(capsys, tmp_path)


def test_damaged_weights(model, capsys):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert "is not a whole safetensors file" in refusal(capsys, model)


@pytest.mark.parametrize(
    "weight_map, message",
    [
        (None, "has no weight_map"),
        ({"a": "../model.safetensors"}, "names the file '../model.safetensors', expected one beside it"),
        ({"a": "none.safetensors"}, "none.safetensors is missing, expected a safetensors file"),
        ({"a": "model.safetensors"}, "disagree on a, transformer.h.0.attn.c_attn.bias, "),
    ],
)
def test_index_that_is_not_true(model, capsys, weight_map, message):
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert message in refusal(capsys, model)


@pytest.mark.parametrize("contents", [b"", b"\x0a", b"not protobuf at all", b"\x08\x01"])
def test_graphs_that_are_none(tmp_path, capsys, contents):
    (tmp_path / "model.onnx").write_bytes(contents)
    assert "is not an ONNX model, or not all of one" in refusal(capsys, tmp_path / "model.onnx")
    (tmp_path / "saved_model.pb").write_bytes(contents)
    assert "is not a SavedModel, or not all of one" in refusal(capsys, tmp_path)


def test_saved_model_without_variables(saved_model, tmp_path, capsys):
    (tmp_path / "saved_model.pb").write_bytes((saved_model / "saved_model.pb").read_bytes())
    assert "variables.index is missing, expected the SavedModel's weights" in refusal(capsys, tmp_path)


def test_external_data_that_are_missing_or_short(onnx_file, capsys):
    data = onnx_file.with_name("data.bin")
    data.write_bytes(bytes(103))
    assert "data.bin has 103 bytes, expected at least 104 bytes of model.onnx's weights" in refusal(capsys, onnx_file)
    data.unlink()
    assert "data.bin is missing, expected at least 104 bytes" in refusal(capsys, onnx_file)
    proto = onnx.load(onnx_file, load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = "/etc/passwd"
    onnx_file.write_bytes(proto.SerializeToString())
    assert "has w in the file '/etc/passwd', expected one beside it" in refusal(capsys, onnx_file)


def test_release_whose_files_are_not_the_manifests(release, capsys):
    (release / "vocab.json").write_text("{}")
    assert "vocab.json has 2 bytes, expected" in refusal(capsys, release)
    (release / "vocab.json").unlink()
    assert "vocab.json is missing, expected" in refusal(capsys, release)
    (release / "manifest.json").write_text("[]")
    assert "manifest.json cannot be read, expected a release with its manifest" in refusal(capsys, release)


def test_checkpoint_without_its_checksums(causal_lm, tmp_path, capsys):
    causal_lm.compile(optimizer="sgd", loss="mse")
    causal_lm.optimizer.build(causal_lm.trainable_variables)
    save_state(tmp_path / "000007", causal_lm, {"step": 7})
    (tmp_path / "000007" / "SHA256SUMS").write_bytes(b"\xff")
    assert "SHA256SUMS cannot be read, expected the checksums" in refusal(capsys, tmp_path / "000007")
