"""Weights of every origin at full size: one model, and each origin's own code computes its logits."""

import shutil

import numpy as np
import pytest

from tests.models import gpt2_numpy
from tests.weights.checkpoints import openai_tensors, write_hugging_face, write_openai
from tfgpt.models import PRESETS
from tfgpt.weights import convert, load

pytestmark = [pytest.mark.interop, pytest.mark.slow]

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
keras_hub = pytest.importorskip("keras_hub")

GPT2 = PRESETS["gpt2"]
CONFIG = {
    "model_type": "gpt2",
    "vocab_size": GPT2["vocabulary_size"],
    "n_layer": GPT2["num_layers"],
    "n_head": GPT2["num_heads"],
    "n_embd": GPT2["hidden_dim"],
    "n_positions": GPT2["max_sequence_length"],
}
IDS = np.random.default_rng(0).integers(0, 50257, (1, 1024))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Half a gigabyte a directory, which pytest would keep."""
    path = tmp_path_factory.mktemp("weights")
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def tensors():
    return gpt2_numpy.random_weights(12, 768, 50257, 1024)


@pytest.fixture(scope="module")
def source(folder, tensors):
    return write_hugging_face(folder / "source", tensors, config=CONFIG)


@pytest.fixture(scope="module")
def ours(source):
    return np.asarray(load(source)(IDS))


def test_numpy(ours, tensors):
    """OpenAI's arithmetic."""
    assert gpt2_numpy.relative_error(ours, gpt2_numpy.forward(tensors, IDS, GPT2["num_heads"])) < 1e-4


def test_openai_checkpoint(ours, tensors, folder):
    hparams = {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}
    model = load(write_openai(folder / "openai", openai_tensors(tensors), hparams))
    np.testing.assert_array_equal(np.asarray(model(IDS)), ours)


def test_transformers(ours, source):
    theirs = transformers.GPT2LMHeadModel.from_pretrained(source, local_files_only=True).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS)).logits.numpy()
    assert gpt2_numpy.relative_error(ours, expected) < 1e-4


def test_keras_hub(ours, source, folder):
    convert(source, folder / "preset", to="keras_hub")
    theirs = keras_hub.models.GPT2CausalLM.from_preset(str(folder / "preset"))
    expected = theirs({"token_ids": IDS, "padding_mask": np.ones_like(IDS)})
    assert gpt2_numpy.relative_error(ours, np.asarray(expected)) < 1e-4
    convert(folder / "preset", folder / "back")
    found, written = ((path / "model.safetensors").read_bytes() for path in (folder / "back", source))
    assert len(found) > 4 * 124_439_808 and found[-(4 * 124_439_808) :] == written[-(4 * 124_439_808) :]


def test_greedy_generation(source):
    prompt = np.random.default_rng(1).integers(0, 50257, 16).tolist()
    theirs = transformers.GPT2LMHeadModel.from_pretrained(source, local_files_only=True).eval()
    options = {"do_sample": False, "max_new_tokens": 256, "min_new_tokens": 256, "pad_token_id": 0}
    expected = theirs.generate(torch.tensor([prompt]), **options)[0].tolist()
    [found] = load(source).generate([prompt], max_new_tokens=256)
    assert len(found) == 16 + 256
    assert list(found) == expected
