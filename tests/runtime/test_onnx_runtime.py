import shutil

import numpy as np
import pytest

from tfgpt.errors import UserError
from tfgpt.runtime.onnx_runtime import OnnxRunner


@pytest.fixture
def release(exported, tmp_path):
    return shutil.copytree(exported.release, tmp_path / "release", ignore=shutil.ignore_patterns("saved_model"))


def test_a_file_that_is_no_model(release):
    (release / "onnx" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="model.onnx cannot be loaded by ONNX Runtime: ") as error:
        OnnxRunner(release)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_weights_that_are_not_whole(release, damage):
    data = release / "onnx" / "model.onnx.data"
    if damage == "truncated":
        data.write_bytes(data.read_bytes()[:-1000])
    else:
        data.unlink()
    with pytest.raises(UserError, match="model.onnx cannot be loaded by ONNX Runtime: ") as error:
        OnnxRunner(release)
    assert "\n" not in str(error.value)


def test_the_number_of_threads_changes_no_token(release, exported):
    runner = OnnxRunner(release, threads=1)
    assert runner.session.get_session_options().intra_op_num_threads == 1
    token_ids = np.arange(20)[None]
    np.testing.assert_allclose(
        runner.logits(token_ids, np.ones_like(token_ids)),
        exported.keras.logits(token_ids, np.ones_like(token_ids)),
        atol=1e-4,
    )
