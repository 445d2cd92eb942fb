import json
import subprocess
import sys

import pytest

from tfgpt.cli.main import build_parser, main

CONFIG = """\
preset: gpt2-test
tokenizer: character
steps: 20
batch_size: 4
warmup_steps: 2
sample_tokens: 4
learning_rate: 1e-3
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "text.txt").write_text("what is past is prologue; " * 200)
    (folder / "run.yaml").write_text(CONFIG)
    arguments = ["train", "--config", str(folder / "run.yaml"), "--data", str(folder / "text.txt")]
    assert main([*arguments, "--out", str(folder / "model"), "--json", str(folder / "train.json")]) == 0
    return folder / "model"


@pytest.fixture(scope="module")
def release(model):
    """In every format, one of them quantized."""
    path = model.parent / "release"
    options = ["--quantize", "int8", "--sensitivity", "--json", str(model.parent / "export.json")]
    assert main(["export", str(model), "--out", str(path), *options]) == 0
    return path


@pytest.fixture(scope="module")
def onnx_release(model):
    """A smaller one, quicker to check."""
    path = model.parent / "onnx_release"
    assert main(["export", str(model), "--out", str(path), "--formats", "onnx"]) == 0
    return path


def failure(capsys, *arguments):
    """The one line on standard error of a command that must exit with 2."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    return line


def test_train_writes_its_figures(model):
    figures = json.loads((model.parent / "train.json").read_text())
    assert figures["steps"] == 20 and figures["loss"] > 0


def test_options_and_config_files_have_the_same_names(tmp_path):
    (tmp_path / "run.yaml").write_text(CONFIG + "data: [a.txt]\nout: b\n")
    run = build_parser().parse_args(["train", "--config", str(tmp_path / "run.yaml"), "--steps", "30"]).train
    assert run.steps == 30 and run.batch_size == 4 and run.data == ["a.txt"] and run.learning_rate == 1e-3


RUNTIMES = {
    "keras": ["--runtime", "keras"],
    "saved_model": ["--runtime", "saved_model"],
    "onnx": ["--runtime", "onnx"],
    "portable": ["--runtime", "onnx", "--variant", "portable", "--threads", "1"],
}


def texts_of(model, release, folder, *options):
    """Runtime → the two texts that it makes of two prompts."""
    texts = {}
    for name, runtime in RUNTIMES.items():
        path = model if name == "keras" else release
        arguments = ["generate", str(path), "--prompt", "what is", "past", *runtime, *options]
        assert main([*arguments, "--json", str(folder / name)]) == 0
        texts[name] = json.loads((folder / name).read_text())["texts"]
    return texts


def test_generate_on_every_runtime_gives_one_text(model, release, capsys, tmp_path):
    texts = texts_of(model, release, tmp_path, "--max-new-tokens", "40")
    assert texts["keras"] == texts["saved_model"] == texts["onnx"] == texts["portable"]
    assert texts["keras"][0].startswith("what is") and len(texts["keras"][0]) == len("what is") + 40
    assert texts["onnx"][1] in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["--temperature", "1.0", "--top_k", "8", "--top_p", "0.9", "--repetition_penalty", "1.2", "--seed", "3"],
        ["--num_beams", "3", "--length_penalty", "0.5", "--stop_token_ids", "2", "7"],
    ],
)
def test_settings_give_one_text_on_every_runtime(model, release, tmp_path, options):
    texts = texts_of(model, release, tmp_path, "--max-new-tokens", "20", *options)
    assert texts["keras"] == texts["saved_model"] == texts["onnx"] == texts["portable"]
    assert texts["keras"] != texts_of(model, release, tmp_path, "--max-new-tokens", "20")["keras"]


def test_stop_tokens_of_a_release(release, tmp_path):
    """Several of them, behind one option."""
    command = ["generate", str(release), "--prompt", "what is", "--runtime", "onnx", "--max_new_tokens", "30"]
    texts = []
    for options in ([], ["--stop_token_ids", "299", *map(str, range(290))]):
        assert main([*command, *options, "--json", str(tmp_path / "texts.json")]) == 0
        written = json.loads((tmp_path / "texts.json").read_text())
        assert (written["runtime"], written["variant"]) == ("onnx", "float32")
        texts.append(written["texts"][0])
    assert texts[1] == "what is" != texts[0]


def test_a_quantized_variant_generates(release, capsys):
    arguments = ["generate", str(release), "--prompt", "what is", "--runtime", "onnx", "--variant", "int8"]
    outputs = []
    for options in ([], ["--stream"]):
        assert main([*arguments, "--max_new_tokens", "40", *options]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == len("what is") + 40 + 1


def test_export_writes_its_figures(model, release, capsys):
    figures = json.loads((model.parent / "export.json").read_text())
    assert figures["passed"]
    assert [r["runtime"] for r in figures["runtimes"]] == ["saved_model", "onnx", "onnx/float32", "onnx/int8"]
    sensitivity = figures["runtimes"][-1]["sensitivity"]
    assert len(sensitivity) == 9 and figures["runtimes"][0]["sensitivity"] == []  # it was asked for
    costs = [cost["kl_divergence"] for cost in sensitivity]
    assert costs == sorted(costs, reverse=True)
    assert "## Sensitivity of onnx/int8" in (release / "parity.md").read_text()
    kept = figures["runtimes"][-1]["kept_in_float32"]
    recorded = json.loads((release / "manifest.json").read_text())["quantization"]
    assert recorded == {"onnx/int8": {"kept_in_float32": kept, "sensitivity": sensitivity}}


def test_evaluate_prints_and_writes_its_figures(model, capsys, tmp_path):
    text = model.parent / "text.txt"
    assert main(["evaluate", str(model), "--data", str(text), "--json", str(tmp_path / "e.json")]) == 0
    figures = json.loads((tmp_path / "e.json").read_text())
    assert {"loss", "perplexity", "bits_per_byte", "tokens", "accuracy"} <= figures.keys()
    assert figures["tokens"] == len(text.read_text()) - 1
    assert f"{figures['loss']:.4f}" in capsys.readouterr().out


def test_parity_passes(model, release, tmp_path, capsys):
    assert main(["parity", str(release), "--model", str(model), "--json", str(tmp_path / "p.json")]) == 0
    figures = json.loads((tmp_path / "p.json").read_text())
    expected = ["saved_model", "onnx", "onnx/float32", "onnx/int8"]
    assert figures["passed"] and [r["runtime"] for r in figures["runtimes"]] == expected
    out = capsys.readouterr().out
    assert out.count("same model") == 3 and out.count("within budget") == 1


def test_parity_of_another_model_fails_with_exit_code_1(onnx_release, model, tmp_path, capsys):
    from tfgpt.models import GPT2CausalLM

    other = GPT2CausalLM.from_preset(model)
    kernel = other.backbone.blocks[0].feed_forward.sublayer.output_dense.kernel
    kernel.assign(kernel * 1.5)
    other.save_to_preset(tmp_path / "other")
    text = str(model.parent / "text.txt")
    assert main(["parity", str(onnx_release), "--model", str(tmp_path / "other"), "--data", text]) == 1
    assert "parity failed: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["train", "--data", "a", "--out", "b", "--lerning_rate", "1"], "did you mean 'learning_rate'?"),
        (["train", "--task", "knitting", "--out", "b"], "task is 'knitting', expected one of language_modeling"),
        (["train", "--task=knitting", "--out", "b"], "task is 'knitting', expected one of language_modeling"),
        (["train", "--data", "a", "--out", "b", "--steps", "many"], "steps"),
        (["train", "--out", "b"], "data"),
        (["trian"], "trian"),
        (["train", "--data", "no/such/file.txt", "--out", "build/none"], "no/such/file.txt"),
        (["generate", "no/such/model", "--prompt", "a"], "no/such/model/config.json is missing"),
        (["generate", "gpt2", "--prompt", "a"], "preset 'gpt2' is a size without weights"),
        (["evaluate", "no/such/model", "--data", "README.md"], "no/such/model"),
        (["export", "no/such/model", "--out", "build/none", "--formats", "coreml"], "formats are coreml"),
        (["export", "no/such/model", "--out", "build/none", "--quantize", "int3"], "quantized variants are int3"),
        (["generate", "no/such/release", "--prompt", "a", "--runtime", "onnx"], "no/such/release/config.json"),
        (["parity", "no/such/release", "--model", "no/such/model"], "no/such/release"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, expected):
    assert expected in failure(capsys, *arguments)


def test_the_task_of_a_config_file_is_heeded(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("task: knitting\n")
    line = failure(capsys, "train", "--config", tmp_path / "run.yaml", "--out", "b")
    assert "task is 'knitting', expected one of language_modeling" in line


def test_a_typo_in_a_config_file_names_the_nearest_option(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text(CONFIG + "bach_size: 4\n")
    line = failure(capsys, "train", "--config", tmp_path / "run.yaml", "--data", "a", "--out", "b")
    assert "unknown option 'bach_size'; did you mean 'batch_size'?" in line


def test_a_config_file_that_is_missing_is_named(capsys):
    assert "nowhere.yaml" in failure(capsys, "train", "--config", "nowhere.yaml", "--data", "a", "--out", "b")


def test_a_character_outside_the_vocabulary_is_named(model, capsys):
    assert "'é'" in failure(capsys, "generate", model, "--prompt", "é")


def test_a_truncated_weights_file_is_named(model, tmp_path, capsys):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in failure(capsys, "generate", broken, "--prompt", "what")


def test_a_release_without_the_runtime(onnx_release, capsys):
    line = failure(capsys, "generate", onnx_release, "--prompt", "what", "--runtime", "saved_model")
    assert "holds no NAME/VERSION, expected a release exported with the format saved_model" in line


def test_a_release_without_the_variant(onnx_release, capsys):
    arguments = ("generate", onnx_release, "--prompt", "what", "--runtime", "onnx", "--variant", "int8")
    expected = "has no ONNX variant 'int8', expected one of those it has: portable, float32"
    assert expected in failure(capsys, *arguments)


def test_help_imports_no_framework():
    program = (
        "import sys; from tfgpt.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('tensorflow', 'keras', 'numpy', 'onnxruntime', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert "train" in done.stdout


def test_a_failed_parity_check_still_writes_its_figures(onnx_release, model, tmp_path, capsys):
    from tfgpt.models import GPT2CausalLM

    other = GPT2CausalLM.from_preset(model)
    other.backbone.final_norm.gamma.assign(other.backbone.final_norm.gamma * float("nan"))
    other.save_to_preset(tmp_path / "other")
    arguments = ["parity", str(onnx_release), "--model", str(tmp_path / "other"), "--json", str(tmp_path / "p.json")]
    assert main([*arguments, "--data", str(model.parent / "text.txt")]) == 1
    figures = json.loads((tmp_path / "p.json").read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity
    assert not figures["passed"] and figures["runtimes"][0]["breaches"]


def test_a_tokenizer_that_was_exchanged_fails_parity(onnx_release, model, tmp_path, capsys):
    import shutil

    changed = tmp_path / "release"
    shutil.copytree(onnx_release, changed)
    vocabulary = changed / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace('"a"', '"#"', 1))
    assert main(["parity", str(changed), "--model", str(model)]) == 1
    assert "tokenizer.json: the file has sha256" in capsys.readouterr().err
    assert json.loads((changed / "parity.json").read_text())["passed"] is False


def test_bad_input_leaves_the_model_that_was_to_be_overwritten(model, capsys):
    before = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    arguments = ["train", "--data", str(model.parent / "text.txt"), "--out", str(model), "--overwrite"]
    assert "unknown preset" in failure(capsys, *arguments, "--preset", "gpt2-meduim")
    assert "expected at least" in failure(capsys, *arguments, "--max_sequence_length", "100000")
    assert before == {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    assert not list(model.parent.glob(".*partial"))


@pytest.mark.parametrize(
    "options",
    [
        ["--formats", "onnx,saved_model", "--quantize", "int8,int4"],
        ["--formats", "onnx", "saved_model", "--quantize", "int8", "int4"],
    ],
)
def test_several_formats_in_either_spelling(monkeypatch, tmp_path, options):
    calls = []

    def export_release(model, out, formats, name, text, overwrite, quantize, sensitivity, on_progress):
        calls.append((formats, quantize, sensitivity))
        return []

    monkeypatch.setattr("tfgpt.export.export_release", export_release)
    assert main(["export", "model", "--out", str(tmp_path / "release"), *options]) == 0
    assert calls == [(["onnx", "saved_model"], ["int8", "int4"], False)]


def test_a_release_without_a_runtime(tmp_path, capsys):
    (tmp_path / "manifest.json").write_text("{}")
    assert main(["generate", str(tmp_path), "--prompt", "hi"]) == 2
    expected = "is a release directory, expected --runtime saved_model or onnx with it"
    assert expected in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["generate", "MODEL", "--prompt", "a", "--deadline", "3"], "--deadline is 3.0"),
        (["generate", "MODEL", "--prompt", "a", "--token_file", "t"], "--token_file is 't'"),
        (["generate", "MODEL", "--prompt", "a", "--threads", "2"], "--threads is 2"),
        (["generate", "http://127.0.0.1:1/v1/models/m", "--prompt", "a", "--variant", "int8"], "--variant is 'int8'"),
        (["evaluate", "MODEL", "--data", "stdlib", "--text_column", "x"], "--text_column is 'x'"),
    ],
)
def test_options_without_a_meaning_are_refused(model, capsys, arguments, expected):
    assert main([str(model) if argument == "MODEL" else argument for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tfgpt: {expected}, expected it to be left out for ") and error.count("\n") == 1
