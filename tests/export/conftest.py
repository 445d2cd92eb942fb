import contextlib
import io
import os
import pathlib
import random
import re
import shutil
import types

import numpy as np
import onnx
import pytest

from tfgpt.cli.main import main
from tfgpt.export import export_release
from tfgpt.export.keras_runner import KerasRunner
from tfgpt.export.parity import check_parity
from tfgpt.export.release import held_out_tokens, load_for_export
from tfgpt.runtime import open_runner
from tfgpt.training.run_config import RunConfig
from tfgpt.training.trainer import train

WORDS = ["the", "small", "old", "red", "tall", "quick", "model", "river", "lamp", "cat", "dog", "king", "tree", "sees"]


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """Sentences of random words."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(" ".join(rng.choices(WORDS, k=rng.randint(4, 12))) + ".\n" for _ in range(600)))
    return path


def run_config(text_file, out, **fields):
    """A run of a few seconds."""
    defaults = {
        "preset": "gpt2-test",
        "steps": 150,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 10,
        "evaluate_every": 150,
        "sample_tokens": 0,
        "tensorboard": False,
        "jit_compile": False,
    }
    return RunConfig(data=[str(text_file)], out=str(out), **{**defaults, **fields})


@pytest.fixture(scope="session")
def make_run_config(text_file):
    return lambda out, **fields: run_config(text_file, out, **fields)


@pytest.fixture(scope="session")
def model_directory(text_file, tmp_path_factory):
    """A trained model with its tokenizer and token shards."""
    directory = tmp_path_factory.mktemp("trained") / "model"
    train(run_config(text_file, directory))
    return directory


@pytest.fixture(scope="session")
def exported(model_directory, tmp_path_factory):
    """A release in every format, and what the parity check measured."""
    release = tmp_path_factory.mktemp("exported") / "release"
    return types.SimpleNamespace(path=release, reports=export_release(model_directory, release, name="served"))


@pytest.fixture
def release_with(exported, tmp_path):
    """Copies the release with one of its formats, to be damaged."""

    def copy(format):
        others = {"onnx", "saved_model"} - {format}
        return shutil.copytree(exported.path, tmp_path / "copy", ignore=shutil.ignore_patterns(*others))

    return copy


@pytest.fixture
def prove(model_directory):
    """Runs `tfgpt parity` and returns the exit code and standard error."""

    def run(release):
        stderr = io.StringIO()
        with contextlib.redirect_stderr(stderr):
            code = main(["parity", str(release), "--model", str(model_directory)])
        return code, stderr.getvalue()

    return run


@pytest.fixture(scope="session")
def reference(model_directory, exported):
    """The Keras model, as a runner too, and held-out text; traced, so that the tests that follow are quick."""
    model = load_for_export(model_directory)
    reference = types.SimpleNamespace(
        model=model, runner=KerasRunner(model), tokens=held_out_tokens(model_directory, model.tokenizer)
    )
    [report] = check_parity(reference.runner, [open_runner(exported.path, "onnx")], reference.tokens)
    assert report.passed
    return reference


@pytest.fixture
def assert_breach(reference):
    """Asserts that an artifact fails parity and that the worst breach says where."""

    def check(release, artifact, checks, message):
        [report] = check_parity(reference.runner, [open_runner(release, artifact)], reference.tokens)
        assert not report.passed
        worst = max(report.breaches, key=lambda breach: breach.excess)
        where = rf"{artifact}, ({'|'.join(checks)}), prompt \d+, position \d+"
        assert re.fullmatch(f"{where}: {message}", str(worst))

    return check


class OnnxWeights:
    """The weights in an ONNX model's external data, for reading and writing in place."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        model = onnx.load(path, load_external_data=False)
        self.entries = {}
        for tensor in model.graph.initializer:
            fields = {entry.key: entry.value for entry in tensor.external_data}
            if fields:
                self.entries[tensor.name] = (tuple(tensor.dims), int(fields["offset"]), int(fields["length"]))

    @contextlib.contextmanager
    def edit(self, name):
        """Yields a weight as an array whose changes are written."""
        shape, offset, _ = self.entries[name]
        array = np.memmap(f"{self.path}.data", np.float32, "r+", offset, shape)
        yield array
        array.flush()


@pytest.fixture(scope="session")
def onnx_weights():
    return OnnxWeights


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in pathlib.Path(folder).rglob("*") if path.is_file())


@pytest.fixture(scope="session")
def list_files():
    return files_below


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    monkeypatch.setitem(os.environ, "COLUMNS", "200")
