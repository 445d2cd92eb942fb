"""The releases that the neighbours open: made by tfgpt in its own environment, read here without it.

`make test-interop` runs these tests in .venv-neighbours, whose Python has no tfgpt and no TensorFlow.
"""

import importlib.util
import json
import pathlib
import subprocess
import types

import numpy as np
import pytest

HERE = pathlib.Path(__file__).resolve().parent
TFGPT_PYTHON = HERE.parent.parent / ".venv" / "bin" / "python"
TOLERANCE = 1e-3  # of a logit; what every runtime of float32 keeps with two digits to spare

collect_ignore = ["make_release.py"]  # pytest would import it for its doctests


@pytest.fixture(scope="session", autouse=True)
def _neighbours():
    """Skips in environments that are not the neighbours'; in theirs, whatever is missing is a failure."""
    if importlib.util.find_spec("optimum") is None:
        pytest.skip("needs the neighbours' environment, which `make test-interop` makes and uses")


@pytest.fixture(scope="session")
def releases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("releases")
    command = [str(TFGPT_PYTHON), str(HERE / "make_release.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent.parent)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session", params=["byte_pairs", "characters"])
def release(releases, request):
    """A release directory (`path`), and what its Keras model says.

    `rows` are the prompts with their `token_ids`, greedy `new_token_ids` and `text`; `token_ids`, `padding_mask` and
    `logits` are those rows, prompt and continuation, as one batch that is padded on the left.
    """
    folder = releases / request.param
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    with np.load(folder / "expected.npz") as arrays:
        expected |= arrays
    return types.SimpleNamespace(path=folder / "release", **expected)


@pytest.fixture(scope="session")
def assert_logits(release):
    """Asserts that logits of the whole batch are the Keras model's, wherever there is a token."""

    def check(logits):
        assert logits.shape == release.logits.shape
        real = release.padding_mask == 1
        np.testing.assert_allclose(logits[real], release.logits[real], rtol=0, atol=TOLERANCE)

    return check
