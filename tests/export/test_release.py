import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from importlib import metadata

import onnx
import pytest

from tfgpt.cli.main import main
from tfgpt.errors import UserError
from tfgpt.export import ParityError, export_release, prove_release
from tfgpt.export.tolerances import TOLERANCES
from tfgpt.version import __version__

RUNTIMES = ["saved_model", "onnx", "onnx/float32", "onnx/float16", "onnx/int8", "onnx/int4"]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_a_release_directory_holds(exported, list_files):
    assert list_files(exported.path) == sorted(
        [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
            "merges.txt",
            "manifest.json",
            "onnx/model.onnx",
            "onnx/model.onnx.data",
            "onnx/model_float16.onnx",
            "onnx/model_float16.onnx.data",
            "onnx/model_float32.onnx",
            "onnx/model_int4.onnx",
            "onnx/model_int4.onnx.data",
            "onnx/model_int8.onnx",
            "onnx/model_int8.onnx.data",
            "parity.json",
            "parity.md",
            "parity.png",
            "saved_model/served/1/assets.extra/tf_serving_warmup_requests",
            "saved_model/served/1/fingerprint.pb",
            "saved_model/served/1/saved_model.pb",
            "saved_model/served/1/variables/variables.data-00000-of-00001",
            "saved_model/served/1/variables/variables.index",
        ]
    )
    assert [path.name for path in exported.path.parent.iterdir()] == ["release"]


def test_copied_files_are_the_model_directorys(exported, model_directory):
    for name in ("config.json", "generation_config.json", "tokenizer.json", "vocab.json", "merges.txt"):
        assert (exported.path / name).read_bytes() == (model_directory / name).read_bytes()


def test_the_manifest_tells_the_truth(exported, model_directory, list_files):
    manifest = json.loads((exported.path / "manifest.json").read_text())
    report = {"parity.json", "parity.md", "parity.png"}  # which `tfgpt parity` renews
    assert set(manifest["files"]) == set(list_files(exported.path)) - {"manifest.json"} - report
    for name, entry in manifest["files"].items():
        path = exported.path / name
        assert entry == {"bytes": path.stat().st_size, "sha256": sha256(path)}
    assert manifest["tfgpt_version"] == __version__
    source = {"model_directory": "model", "weights_sha256": sha256(model_directory / "model.safetensors")}
    assert manifest["source"] == source
    assert manifest["tolerances"] == {name: dataclasses.asdict(limits) for name, limits in TOLERANCES.items()}
    assert manifest["tolerances"]["float32"]["logit"] == 1e-4
    assert manifest["tolerances"]["int4"]["perplexity"] == 0.06
    for name in ("tensorflow", "keras", "tf2onnx", "onnxscript", "onnx", "onnxruntime"):
        assert manifest["versions"][name] == metadata.version(name)


def test_the_parity_report(exported):
    report = json.loads((exported.path / "parity.json").read_text())
    assert report["passed"] is True
    assert [runtime["runtime"] for runtime in report["runtimes"]] == RUNTIMES
    for runtime, measured in zip(report["runtimes"], exported.reports, strict=True):
        assert runtime["passed"] is True
        assert runtime["breaches"] == []
        assert runtime["max_logit_difference"] == measured.max_logit_difference > 0  # none were no comparison
        assert runtime["perplexity_increase"] == measured.perplexity_increase
        assert runtime["positions"] > 200
        assert (runtime["greedy_prompts"], runtime["greedy_tokens"]) == (20, 128)
        assert 1 < runtime["perplexity"] < 5
        precision = runtime["runtime"].removeprefix("onnx/")
        if precision in ("int8", "int4", "float16"):
            assert runtime["tolerance"] == dataclasses.asdict(TOLERANCES[precision])
            assert runtime["perplexity_increase"] <= runtime["tolerance"]["perplexity"]
            assert runtime["mean_kl_divergence"] > 1e-9
        else:
            assert runtime["tolerance"] == dataclasses.asdict(TOLERANCES["float32"])
            assert runtime["scaled_logit_difference"] < 1e-4
            assert abs(runtime["perplexity_increase"]) < 1e-5
            assert runtime["top1_agreement"] == 1.0
            assert runtime["identical_greedy_tokens"] == 128


def test_the_parity_report_for_people(exported):
    text = (exported.path / "parity.md").read_text()
    assert text.startswith("# Parity\n")
    assert text.count("| same model |") == 3
    assert text.count("| within budget |") == 3
    for precision in ("float32", "float16", "int8", "int4"):
        assert f"- {precision}: {TOLERANCES[precision]}; {TOLERANCES[precision].reason}." in text
    assert "- int8_weight_only" not in text
    assert (exported.path / "parity.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_proving_a_release_touches_nothing(exported, model_directory, list_files):
    before = {name: sha256(exported.path / name) for name in list_files(exported.path)}
    reports = prove_release(exported.path, model_directory)
    assert [report.runtime for report in reports] == RUNTIMES
    assert all(report.passed for report in reports)
    assert {name: sha256(exported.path / name) for name in list_files(exported.path)} == before


def test_one_format_a_text_file_and_an_overwrite(model_directory, text_file, tmp_path):
    out = tmp_path / "release"
    out.mkdir()
    (out / "earlier").write_text("")
    lines = []
    reports = export_release(model_directory, out, ["onnx"], text=text_file, overwrite=True, on_progress=lines.append)
    assert [report.runtime for report in reports] == ["onnx", "onnx/float32"]
    assert not (out / "earlier").exists()
    assert not (out / "saved_model").exists()
    assert (out / "onnx" / "model.onnx").is_file()
    assert "exporting ONNX" in lines
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_files_that_are_not_those_of_the_manifest_are_breaches(exported, model_directory, tmp_path):
    """Even where no number tells."""
    release = shutil.copytree(exported.path, tmp_path / "copy", ignore=shutil.ignore_patterns("saved_model"))
    data = release / "onnx" / "model_int4.onnx.data"
    with open(data, "ab") as file:
        file.write(b"\0")
    graph = onnx.load(release / "onnx" / "model_float32.onnx", load_external_data=False)
    graph.doc_string = "another"
    (release / "onnx" / "model_float32.onnx").write_bytes(graph.SerializeToString())
    (release / "merges.txt").unlink()
    with pytest.raises(ParityError) as error:
        prove_release(release, model_directory, report=tmp_path / "report")
    sentences = {str(breach) for breach in error.value.breaches if not breach.artifact.startswith("saved_model/")}
    size = data.stat().st_size
    [graph_sentence] = [sentence for sentence in sentences if sentence.startswith("onnx/model_float32.onnx: ")]
    assert sentences - {graph_sentence} == {
        f"onnx/model_int4.onnx.data: the file has {size} bytes, expected {size - 1} as in manifest.json",
        "merges.txt: the file is missing, expected one as in manifest.json",
    }
    assert "bytes, expected" in graph_sentence
    report = json.loads((tmp_path / "report" / "parity.json").read_text())
    assert report["passed"] is False


# === Bad input ===


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"formats": ["onnx", "tflite"]}, "formats are tflite, expected some of saved_model, onnx"),
        ({"formats": []}, "formats are none, expected some of saved_model, onnx"),
        (
            {"quantize": ["int8", "int3"]},
            "quantized variants are int3, expected some of int8, int8_weight_only, int4, float16",
        ),
        (
            {"quantize": ["float32"]},
            "quantized variants are float32, expected some of int8, int8_weight_only, int4, float16",
        ),
        (
            {"formats": ["saved_model"], "quantize": ["int8"]},
            "quantized variants are ONNX files, expected the format onnx, found saved_model",
        ),
        ({"name": "../up"}, "the model's name is '../up', expected letters, digits, '.', '_' and '-'"),
        ({"name": ".hidden"}, "the model's name is '.hidden', expected letters, digits, '.', '_' and '-'"),
    ],
)
def test_arguments_that_are_not_known(model_directory, tmp_path, arguments, message):
    with pytest.raises(UserError) as error:
        export_release(model_directory, tmp_path / "release", **arguments)
    assert str(error.value) == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing", "a/missing"])
def test_a_missing_model_directory(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="missing.*, expected a model directory"):
        export_release(name, "release")
    with pytest.raises(UserError, match="missing.*, expected a model directory"):
        export_release(tmp_path / name, tmp_path / "release")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_text(model_directory, tmp_path):
    with pytest.raises(UserError, match=r"missing\.txt"):
        export_release(model_directory, tmp_path / "release", text=tmp_path / "missing.txt")
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_is_too_short(model_directory, tmp_path):
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(UserError, match=r"text\.txt has 1 tokens, expected at least 2 for the parity check"):
        export_release(model_directory, tmp_path / "out" / "release", text=tmp_path / "text.txt")
    assert not (tmp_path / "out" / "release").exists()


def test_a_release_directory_that_is_none(model_directory, tmp_path):
    with pytest.raises(UserError, match="holds none of saved_model, onnx, expected a release directory"):
        prove_release(tmp_path, model_directory)
    with pytest.raises(UserError, match="holds none of saved_model, onnx, expected a release directory"):
        prove_release(tmp_path / "missing", model_directory)


def test_a_release_that_exists_is_left_alone(model_directory, tmp_path, capsys, list_files):
    out = tmp_path / "release"
    out.mkdir()
    (out / "mine").write_text("mine")
    assert main(["export", "--out", str(out), str(model_directory)]) == 2
    assert capsys.readouterr().err == f"tfgpt: {out} exists already and is not an empty directory; expected a new one\n"
    assert list_files(tmp_path) == ["release/mine"]
    assert (out / "mine").read_text() == "mine"


def test_a_place_where_nothing_can_be_written(model_directory, tmp_path, capsys, list_files):
    (tmp_path / "file").write_text("")
    assert main(["export", "--out", str(tmp_path / "file" / "release"), str(model_directory)]) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"tfgpt: cannot write {tmp_path}/file/release: ")
    assert stderr.count("\n") == 1
    assert list_files(tmp_path) == ["file"]


def test_a_disk_that_is_full_leaves_nothing(model_directory, tmp_path):
    """No file may grow past 100 kB, as on a disk that has no more: the weights have 144 kB."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from tfgpt.cli.main import main;"
        "sys.exit(' '.join(str(main([*sys.argv[1:], '--formats', f])) for f in ('saved_model', 'onnx')))"
    )
    out = tmp_path / "release"
    command = [sys.executable, "-c", code, "export", str(model_directory), "--out", str(out)]
    process = subprocess.run(command, capture_output=True, text=True)
    sentence = f"tfgpt: cannot write {out}: file too large"
    assert process.stderr.splitlines() == [sentence, sentence, "2 2"]
    assert list(tmp_path.iterdir()) == []
