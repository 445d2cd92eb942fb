"""Detection, and the command."""

import json
import pathlib
import runpy
import sys

import numpy as np
import pytest

import tfgpt
from tests.cli.test_main import failure
from tests.weights.checkpoints import (
    HEADS,
    TOKENIZER,
    VOCABULARY,
    WINDOW,
    openai_tensors,
    same,
    weights,
    write_hugging_face,
    write_openai,
)
from tfgpt.cli import main
from tfgpt.errors import UserError
from tfgpt.models import GPT2CausalLM
from tfgpt.weights import Checkpoint, convert, load
from tfgpt.weights.origins import ORIGINS, read

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "export"

IDS = np.random.default_rng(0).integers(0, VOCABULARY, (1, WINDOW))


@pytest.fixture
def openai(tmp_path):
    return write_openai(tmp_path / "openai", openai_tensors(weights("float16")), tokenizer=TOKENIZER)


def test_the_command_says_what_it_found(openai, tmp_path, capsys):
    out, figures = tmp_path / "model", tmp_path / "figures.json"
    assert main(["convert", str(openai), str(out), "--json", str(figures)]) == 0
    found, written = capsys.readouterr().out.splitlines()
    assert found == (
        f"{openai} is a TensorFlow checkpoint of OpenAI: 2 layers of 8, 4,288 parameters in float16, a tokenizer"
    )
    assert written.startswith(f"{out} is a Hugging Face model directory: 0.0 MB")
    same(read(out)[0].tensors, weights("float16"))
    expected = {"origin": "TensorFlow checkpoint of OpenAI", "parameters": 4288, "dtype": "float16", "notes": []}
    assert json.loads(figures.read_text()) == expected
    model = GPT2CausalLM.from_preset(out)
    np.testing.assert_array_equal(model(IDS), load(openai)(IDS))
    assert model.tokenizer.fingerprint == TOKENIZER.fingerprint


def test_the_command_goes_on_with_generate_and_a_preset(openai, tmp_path, capsys):
    preset = tmp_path / "preset"
    assert main(["convert", str(openai), str(preset), "--to", "keras_hub"]) == 0
    assert f"{preset} is a keras-hub preset" in capsys.readouterr().out
    assert main(["convert", str(preset), str(tmp_path / "model")]) == 0
    assert main(["generate", str(tmp_path / "model"), "--prompt", "the cat", "--max_new_tokens", "3"]) == 0


def test_notes_are_printed(tmp_path, capsys):
    source = write_hugging_face(tmp_path / "source", weights())
    contents = json.loads((source / "config.json").read_text()) | {"reorder_and_upcast_attn": True}
    (source / "config.json").write_text(json.dumps(contents))
    assert main(["convert", str(source), str(tmp_path / "out")]) == 0
    assert "note: its reorder_and_upcast_attn" in capsys.readouterr().out


def test_what_is_there_is_not_overwritten(openai, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").touch()
    assert "exists already and is not an empty directory" in failure(capsys, "convert", openai, tmp_path / "out")
    assert main(["convert", str(openai), str(tmp_path / "out"), "--overwrite"]) == 0
    assert not (tmp_path / "out/file").exists()
    # Onto itself: its tensors are mapped from what is replaced.
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "out"), "--overwrite"]) == 0
    same(read(tmp_path / "out")[0].tensors, weights("float16"))


def test_a_failure_leaves_nothing(openai, tmp_path, capsys):
    (openai / "model.ckpt.index").unlink()
    assert "is not a whole TensorFlow checkpoint" in failure(capsys, "convert", openai, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"openai"}


def test_a_tokenizer_of_another_place(openai, tmp_path, capsys):
    source = write_hugging_face(tmp_path / "source", weights())
    assert main(["convert", str(source), str(tmp_path / "out"), "--tokenizer", str(openai)]) == 0
    assert load(tmp_path / "out").tokenizer.fingerprint == TOKENIZER.fingerprint
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["eos_token_id"] == TOKENIZER.end_token_id
    line = failure(capsys, "convert", source, tmp_path / "again", "--tokenizer", source)
    assert "holds no tokenizer" in line


def test_unknown_origins(tmp_path, capsys):
    assert "does not exist, expected a model of tfgpt" in failure(capsys, "convert", tmp_path / "a", tmp_path / "b")
    (tmp_path / "a").mkdir()
    assert "is of no known origin, expected a directory with config.json" in failure(
        capsys, "convert", tmp_path / "a", tmp_path / "b"
    )
    (tmp_path / "file.gguf").touch()
    assert "is of no known origin" in failure(capsys, "convert", tmp_path / "file.gguf", tmp_path / "b")
    (tmp_path / "a/config.json").write_text("{")
    assert "config.json is not JSON" in failure(capsys, "convert", tmp_path / "a", tmp_path / "b")
    line = failure(capsys, "convert", tmp_path / "a", tmp_path / "b", "--to", "gguf")
    assert line == "tfgpt: --to is 'gguf', expected one of tfgpt, hugging_face, openai, keras_hub, nanogpt"


TO = ["tfgpt", "openai", "keras_hub", pytest.param("nanogpt", marks=pytest.mark.interop)]


@pytest.mark.parametrize("to", TO)
def test_scripts(to, openai, tmp_path, monkeypatch):
    script = SCRIPTS / f"to_{to}.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(openai), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(script), run_name="__main__")
    assert exit.value.code == 0
    checkpoint, origin = read(tmp_path / "out")
    assert origin is ORIGINS[to]
    same(checkpoint.tensors, weights("float16"))


def test_python(openai, tmp_path):
    model = tfgpt.load(openai)
    assert isinstance(model, GPT2CausalLM) and model.backbone.num_heads == HEADS
    assert {variable.dtype for variable in tfgpt.load(str(openai), dtype="bfloat16").weights} == {"bfloat16"}
    assert tfgpt.convert is convert
    same(Checkpoint.from_model(tfgpt.load(openai, dtype="float16")).tensors, weights("float16"))
    with pytest.raises(UserError, match="does not exist"):
        tfgpt.load(tmp_path / "nowhere")
