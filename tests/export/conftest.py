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

from tests.export import served_model
from tfgpt.cli.main import main
from tfgpt.export import export_release
from tfgpt.export.keras_runner import KerasRunner
from tfgpt.export.parity import Expectation, check_runner
from tfgpt.export.release import held_out_tokens, load_for_export
from tfgpt.generation_settings import GenerationSettings
from tfgpt.runtime import open_runner
from tfgpt.text import BytePairTokenizer, CharacterTokenizer
from tfgpt.training.run_config import RunConfig
from tfgpt.training.trainer import train

WORDS = ["ox", "at", "in", "up", "we", "go", "he", "my", "by", "no"]  # each becomes one token
LAG = 4


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """Words each of which is, nearly always, the fourth before it again.

    A model must look exactly four tokens back: perplexity more than doubles where a cache or positions are off by one.
    """
    rng = random.Random(0)
    words = rng.choices(WORDS, k=LAG)
    for _ in range(16_000):
        words.append(words[-LAG] if rng.random() < 0.95 else rng.choice(WORDS))
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f" {word}" for word in words) + "\n")
    return path


def run_config(text_file, out, **fields):
    """A run of a few seconds."""
    defaults = {
        "preset": "gpt2-test",
        "steps": 400,
        "batch_size": 16,
        "learning_rate": 5e-3,
        "initializer_range": 0.2,
        "warmup_steps": 20,
        "evaluate_every": 400,
        "sample_tokens": 0,
        "tensorboard": False,
        "compile": "none",
        "seed": 1,
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
    reports = export_release(model_directory, release, name="served", quantize=("int8", "int4", "float16"))
    return types.SimpleNamespace(path=release, reports=reports)


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
def reference(model_directory):
    """The Keras model, as a runner too, held-out text, and what the model gives for it."""
    model = load_for_export(model_directory)
    runner, tokens = KerasRunner(model), held_out_tokens(model_directory, model.tokenizer)
    return types.SimpleNamespace(model=model, runner=runner, tokens=tokens, expected=Expectation(runner, tokens))


def open_artifact(release, artifact):
    """The runner of a name as reports have it, whatever the manifest says of its files."""
    runtime, _, variant = artifact.partition("/")
    return open_runner(release, runtime, variant or "portable", verify=False)


@pytest.fixture
def measure(reference):
    """A function `(release, artifact)` that gives an artifact's `RunnerReport`."""
    return lambda release, artifact: check_runner(reference.expected, open_artifact(release, artifact))


@pytest.fixture
def assert_breach(measure):
    """Asserts that an artifact fails parity and that the worst breach says where."""

    def check(release, artifact, checks, message):
        report = measure(release, artifact)
        assert not report.passed
        worst = max(report.breaches, key=lambda breach: breach.excess)
        where = rf"{artifact}, ({'|'.join(checks)}), prompt \d+, position \d+"
        assert re.fullmatch(f"{where}: {message}", str(worst))

    return check


class OnnxWeights:
    """The tensors in an ONNX model's external data, for reading and writing in place."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        model = onnx.load(path, load_external_data=False)
        self.entries = {}
        for tensor in model.graph.initializer:
            fields = {entry.key: entry.value for entry in tensor.external_data}
            if fields:
                dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
                self.entries[tensor.name] = (fields["location"], dtype, int(fields["offset"]), tuple(tensor.dims))

    @contextlib.contextmanager
    def edit(self, name):
        """Yields a tensor as an array whose changes are written."""
        location, dtype, offset, shape = self.entries[name]
        array = np.memmap(self.path.parent / location, dtype, "r+", offset, shape)
        yield array
        array.flush()


@pytest.fixture(scope="session")
def onnx_weights():
    return OnnxWeights


def stretch_channel(norm, dense, channel, factor=1000):
    """Makes one input channel of a kernel large, and what comes in there as much smaller: the same function.

    A scale that is to hold this channel leaves nothing of the others.
    """
    rows = np.ones(dense.kernel.shape[0], np.float32)
    rows[channel] = factor
    dense.kernel.assign(dense.kernel * rows[:, None])
    norm.gamma.assign(norm.gamma / rows)
    norm.beta.assign(norm.beta / rows)


@pytest.fixture(scope="session")
def stretch():
    return stretch_channel


# === SavedModels without a release around them: random models, whose text varies more than a trained one's ===

CHARACTERS = "abcdef"


@pytest.fixture(scope="session")
def texts():
    return served_model.stdlib_text()


@pytest.fixture(scope="session")
def bpe_model(texts):
    """A model of 400 byte pairs with a window of 64."""
    tokenizer = BytePairTokenizer.train([texts], vocabulary_size=400)
    return served_model.random_model(tokenizer, vocabulary_size=400, hidden_dim=32, max_sequence_length=64)


@pytest.fixture(scope="session")
def served(bpe_model, tmp_path_factory):
    """Its SavedModel, loaded."""
    return served_model.serve(bpe_model, tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="session")
def character_model():
    """A model of six characters and no end token: few enough to count what is sampled."""
    tokenizer = CharacterTokenizer.train([CHARACTERS])
    return served_model.random_model(tokenizer, vocabulary_size=6, hidden_dim=8, max_sequence_length=16)


@pytest.fixture(scope="session")
def character_settings():
    """What its `serving_default` is exported with."""
    return GenerationSettings(
        max_new_tokens=5,
        temperature=1.5,
        top_k=5,
        top_p=0.8,
        repetition_penalty=1.2,
        seed=2**40 + 5,
        stop_token_ids=(1, 3),
    )


@pytest.fixture(scope="session")
def served_characters(character_model, character_settings, tmp_path_factory):
    return served_model.serve(character_model, tmp_path_factory.mktemp("characters"), character_settings)


@pytest.fixture(scope="session")
def token_model():
    """A model without a tokenizer."""
    return served_model.random_model(vocabulary_size=30, hidden_dim=8, max_sequence_length=16)


@pytest.fixture(scope="session")
def served_tokens(token_model, tmp_path_factory):
    return served_model.serve(token_model, tmp_path_factory.mktemp("tokens"), GenerationSettings(stop_token_ids=(7,)))


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in pathlib.Path(folder).rglob("*") if path.is_file())


@pytest.fixture(scope="session")
def list_files():
    return files_below


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    monkeypatch.setitem(os.environ, "COLUMNS", "200")
