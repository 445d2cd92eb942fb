"""`tfgpt inspect` of other people's checkpoints."""

import importlib.util

import pytest

from tests.models import gpt2_numpy
from tests.weights.checkpoints import HEADS, LAYERS, VOCABULARY, WIDTH, WINDOW, weights, write_hugging_face
from tfgpt.cli.inspection import describe
from tfgpt.cli.main import main
from tfgpt.weights import convert

WITH_TORCH = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch")


@pytest.mark.parametrize(
    "to, kind",
    [
        ("openai", "TensorFlow checkpoint of OpenAI"),
        ("keras_hub", "keras-hub preset"),
        pytest.param("nanogpt", "nanoGPT checkpoint", marks=[pytest.mark.interop, WITH_TORCH]),
    ],
)
def test_checkpoints_of_other_origins(tmp_path, capsys, to, kind):
    source = write_hugging_face(tmp_path / "source", weights())
    convert(source, tmp_path / "there", to)
    found = describe(tmp_path / "there")
    assert found["kind"] == kind
    shapes = gpt2_numpy.shapes(LAYERS, WIDTH, VOCABULARY, WINDOW)
    count = sum(tensor.size for tensor in weights().values())
    assert found["dtypes"] == {"float32": {"tensors": len(shapes), "elements": count}}
    assert found["parameters"] == count
    sizes = {"num_layers": LAYERS, "num_heads": HEADS, "hidden_dim": WIDTH, "vocabulary_size": VOCABULARY}
    assert found["architecture"].items() >= sizes.items()
    assert set(found["files"]) == {
        str(path.relative_to(tmp_path / "there")) for path in (tmp_path / "there").rglob("*") if path.is_file()
    }
    assert main(["inspect", str(tmp_path / "there")]) == 0
    out = capsys.readouterr().out
    assert f"{kind}\n" in out and f"{count:,}" in out


def test_damaged_ones_are_refused_in_one_sentence(tmp_path, capsys):
    for name, message in (("hparams.json", "hparams.json is not JSON"), ("ckpt.pt", "ckpt.pt")):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("{")
        assert main(["inspect", str(tmp_path / name)]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
