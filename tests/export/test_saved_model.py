import subprocess
import sys

import numpy as np
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


def test_no_keras_object_is_in_the_saved_model(served):
    proto = saved_model_pb2.SavedModel.FromString((served.path / "saved_model.pb").read_bytes())
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
