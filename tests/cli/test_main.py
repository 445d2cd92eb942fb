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
    path = model.parent / "release"
    assert main(["export", str(model), "--out", str(path), "--json", str(model.parent / "export.json")]) == 0
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


def test_generate_on_every_runtime_gives_one_text(model, release, capsys, tmp_path):
    texts = {}
    for runtime, path in (("keras", model), ("saved_model", release), ("onnx", release)):
        arguments = ["generate", str(path), "--prompt", "what is", "past", "--runtime", runtime]
        assert main([*arguments, "--max-new-tokens", "40", "--json", str(tmp_path / runtime)]) == 0
        texts[runtime] = json.loads((tmp_path / runtime).read_text())["texts"]
    assert texts["keras"] == texts["saved_model"] == texts["onnx"]
    assert texts["keras"][0].startswith("what is") and len(texts["keras"][0]) == len("what is") + 40
    assert texts["onnx"][1] in capsys.readouterr().out


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
    assert figures["passed"] and [r["runtime"] for r in figures["runtimes"]] == ["saved_model", "onnx"]
    assert "same model" in capsys.readouterr().out


def test_parity_of_another_model_fails_with_exit_code_1(release, model, tmp_path, capsys):
    from tfgpt.models import GPT2CausalLM

    other = GPT2CausalLM.from_preset(model)
    kernel = other.backbone.blocks[0].feed_forward.sublayer.output_dense.kernel
    kernel.assign(kernel * 1.5)
    other.save_to_preset(tmp_path / "other")
    text = str(model.parent / "text.txt")
    assert main(["parity", str(release), "--model", str(tmp_path / "other"), "--data", text]) == 1
    assert "parity failed: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["train", "--data", "a", "--out", "b", "--lerning_rate", "1"], "did you mean 'learning_rate'?"),
        (["train", "--data", "a", "--out", "b", "--steps", "many"], "steps"),
        (["train", "--out", "b"], "data"),
        (["trian"], "trian"),
        (["train", "--data", "no/such/file.txt", "--out", "build/none"], "no/such/file.txt"),
        (["generate", "no/such/model", "--prompt", "a"], "no/such/model/config.json is missing"),
        (["generate", "gpt2", "--prompt", "a"], "preset 'gpt2' is a size without weights"),
        (["evaluate", "no/such/model", "--data", "README.md"], "no/such/model"),
        (["export", "no/such/model", "--out", "build/none", "--formats", "coreml"], "formats are coreml"),
        (["parity", "no/such/release", "--model", "no/such/model"], "no/such/release"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, expected):
    assert expected in failure(capsys, *arguments)


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


def test_a_release_without_the_runtime(model, tmp_path, capsys):
    assert main(["export", str(model), "--out", str(tmp_path / "release"), "--formats", "onnx"]) == 0
    capsys.readouterr()
    line = failure(capsys, "generate", tmp_path / "release", "--prompt", "what", "--runtime", "saved_model")
    assert "holds no NAME/VERSION, expected a release exported with the format saved_model" in line


def test_sampling_on_a_release_is_refused(release, capsys):
    arguments = ("generate", release, "--prompt", "a", "--runtime", "onnx", "--temperature", "1.0")
    assert "decodes greedily" in failure(capsys, *arguments)


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


def test_a_failed_parity_check_still_writes_its_figures(release, model, tmp_path, capsys):
    from tfgpt.models import GPT2CausalLM

    other = GPT2CausalLM.from_preset(model)
    other.backbone.final_norm.gamma.assign(other.backbone.final_norm.gamma * float("nan"))
    other.save_to_preset(tmp_path / "other")
    arguments = ["parity", str(release), "--model", str(tmp_path / "other"), "--json", str(tmp_path / "p.json")]
    assert main([*arguments, "--data", str(model.parent / "text.txt")]) == 1
    figures = json.loads((tmp_path / "p.json").read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity
    assert not figures["passed"] and figures["runtimes"][0]["breaches"]


def test_a_tokenizer_that_was_exchanged_fails_parity(release, model, tmp_path, capsys):
    import shutil

    changed = tmp_path / "release"
    shutil.copytree(release, changed)
    vocabulary = changed / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace('"a"', '"\\u0001"', 1))
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


def test_several_formats_in_either_spelling(model, tmp_path):
    for i, formats in enumerate((["onnx,saved_model"], ["onnx", "saved_model"])):
        out = tmp_path / str(i)
        assert main(["export", str(model), "--out", str(out), "--formats", *formats]) == 0
        assert (out / "onnx").is_dir() and (out / "saved_model").is_dir()
