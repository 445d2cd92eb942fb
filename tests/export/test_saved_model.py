import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfgpt.export.keras_runner import KerasRunner
from tfgpt.export.release import load_for_export

BLOCK_KERAS = """
import sys
sys.modules["keras"] = sys.modules["tf_keras"] = None  # as if they were not installed
"""

RUN = """
import numpy as np
from tfgpt.runtime import open_runner
runner = open_runner(sys.argv[1], "saved_model")
token_ids = np.array([[0, 0, 1, 2, 3], [9, 8, 7, 6, 5]])
mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
np.savez(
    sys.argv[2],
    logits=runner.logits(token_ids, mask),
    cached=runner.cached_logits(token_ids, mask, 3),
    greedy=runner.greedy([[1, 2, 3], [9]], 40),
)
assert sys.modules["keras"] is None
"""


@pytest.fixture(scope="module")
def path(exported):
    return exported.path / "saved_model" / "served" / "1"


@pytest.fixture(scope="module")
def signatures(path):
    return tf.saved_model.load(str(path)).signatures


def inputs(signature):
    return {
        name: (spec.dtype.name, spec.shape.as_list()) for name, spec in signature.structured_input_signature[1].items()
    }


def outputs(signature):
    return {name: (spec.dtype.name, spec.shape.as_list()) for name, spec in signature.structured_outputs.items()}


def test_names_of_signatures(signatures):
    assert set(signatures) == {"serving_default", "logits", "generate", "decode_step"}


@pytest.mark.parametrize("name", ["serving_default", "logits"])
def test_logits(signatures, name):
    assert inputs(signatures[name]) == {
        "token_ids": ("int32", [None, None]),
        "padding_mask": ("int32", [None, None]),
    }
    (logits,) = outputs(signatures[name]).items()
    assert logits[0] == "logits"
    assert logits[1][0] == "float32"
    assert logits[1][1][:2] == [None, None]


def test_generate(signatures):
    assert inputs(signatures["generate"]) == {
        "token_ids": ("int32", [None, None]),
        "padding_mask": ("int32", [None, None]),
        "max_new_tokens": ("int32", [None]),
        "temperature": ("float32", [None]),
        "top_k": ("int32", [None]),
        "top_p": ("float32", [None]),
        "repetition_penalty": ("float32", [None]),
        "seed": ("int64", [None]),
        "first_index": ("int32", [None]),
        "stop_token_ids": ("int32", [None, None]),
    }
    assert {name: dtype for name, (dtype, _) in outputs(signatures["generate"]).items()} == {
        "token_ids": "int32",
        "num_new_tokens": "int32",
    }


def test_decode_step_has_the_onnx_decoders_names(signatures):
    parts = [f"{i}_{part}" for i in range(2) for part in ("key", "value")]
    assert inputs(signatures["decode_step"]) == {
        **{name: ("int64", [None, None]) for name in ("input_ids", "attention_mask", "position_ids")},
        **{f"past_key_values_{part}": ("float32", [None, 2, None, 16]) for part in parts},
    }
    assert {name: dtype for name, (dtype, _) in outputs(signatures["decode_step"]).items()} == {
        "logits": "float32",
        **{f"present_{part}": "float32" for part in parts},
    }


def test_each_variable_is_stored_once(path, model_directory):
    model = load_for_export(model_directory)
    weights = sum(variable.numpy().nbytes for variable in model.trainable_variables)
    data = (path / "variables" / "variables.data-00000-of-00001").stat().st_size
    assert weights <= data <= weights + 8192  # the rest is TensorFlow's object graph
    stored = tf.train.list_variables(str(path / "variables" / "variables"))
    sizes = sorted(int(np.prod(shape)) for _, shape in stored if shape)
    expected = sorted(int(np.prod(v.shape)) for v in model.variables if v.shape)
    assert sizes == expected
    assert (path / "saved_model.pb").stat().st_size < 2_000_000  # graphs hold no weights


def test_no_keras_object_is_in_the_saved_model(path):
    proto = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    nodes = proto.meta_graphs[0].object_graph_def.nodes
    assert nodes
    identifiers = {node.user_object.identifier for node in nodes if node.HasField("user_object")}
    assert not [identifier for identifier in identifiers if "keras" in identifier]


def test_it_runs_where_there_is_no_keras(exported, model_directory, tmp_path):
    command = [sys.executable, "-c", BLOCK_KERAS + RUN, str(exported.path), str(tmp_path / "outputs.npz")]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    found = np.load(tmp_path / "outputs.npz")
    keras_runner = KerasRunner(load_for_export(model_directory))
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    expected = keras_runner.logits(np.array([[0, 0, 1, 2, 3], [9, 8, 7, 6, 5]]), mask)
    for name in ("logits", "cached"):
        np.testing.assert_allclose(found[name][mask == 1], expected[mask == 1], atol=1e-4)
    assert found["greedy"].tolist() == keras_runner.greedy([[1, 2, 3], [9]], 40)
