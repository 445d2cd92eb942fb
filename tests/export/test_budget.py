"""Weights stay float32 until a quantized variant is within its budget, as few as it takes."""

import json
import math
import re
import types

import onnx
import pytest

from tfgpt.export import budget, export_release, prove_release
from tfgpt.export.budget import is_over_budget, within_budget
from tfgpt.export.parity import Breach, RunnerReport
from tfgpt.export.release import load_for_export
from tfgpt.export.sensitivity import Cost
from tfgpt.export.tolerances import TOLERANCES

ATTENTION = tuple(f"transformer.h.{layer}.attn.c_attn.weight" for layer in range(2))


# === The search ===


@pytest.fixture
def search(monkeypatch, tmp_path):
    """A function `(weights, enough)`: the report of a variant that passes once so many of its weights are kept."""

    def run(count, enough):
        written, lines = [], []
        costs = [Cost(f"weight {i}", float(count - i), 4) for i in range(count)]

        def report(kept):
            breaches = [Breach("onnx/int4", "perplexity", 0, 0, "over budget", 2.0)] if kept < enough else []
            return RunnerReport("onnx/int4", "int4", breaches=breaches)

        monkeypatch.setattr(budget, "measure_sensitivity", lambda *_: costs)
        monkeypatch.setattr(budget, "read_release_config", lambda release: {})
        monkeypatch.setattr(budget, "write_variant", lambda folder, variant, keep: written.append(keep))
        monkeypatch.setattr(budget, "open_runner", lambda *_, **__: None)
        monkeypatch.setattr(budget, "check_runner", lambda *_: report(len(written[-1])))
        expected = types.SimpleNamespace(tokens=[])
        found = within_budget(tmp_path, report(0), expected, lines.append)
        return types.SimpleNamespace(report=found, costs=costs, written=written, lines=lines)

    return run


@pytest.mark.parametrize("count, enough", [(n, k) for n in (2, 3, 9, 49) for k in (1, 2, 3, 5, 8, 30, 48) if k < n])
def test_as_few_weights_are_kept_as_it_takes(search, count, enough):
    found = search(count, enough)
    dearest = [cost.weight for cost in found.costs[:enough]]
    assert found.report.passed
    assert found.report.kept_in_float32 == dearest
    assert found.report.sensitivity == found.costs
    assert found.written[-1] == set(dearest)  # what is in the file at the end
    assert len(found.written) <= 2 * math.log2(count) + 3
    assert found.lines == [f"onnx/int4: {len(keep)} of {count} weights stay float32" for keep in found.written]


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_variant_of_which_nothing_is_quantized_is_none(search, count):
    report = search(count, count).report
    assert [str(breach) for breach in report.breaches] == [
        "onnx/int4, perplexity, prompt 0, position 0: no weight can be quantized within the budget, expected one at "
        "least"
    ]


def test_a_variant_that_does_not_pass_even_so(search):
    found = search(9, 10)
    assert not found.report.passed
    assert [len(keep) for keep in found.written] == [1, 2, 4, 8, 9]


def test_a_variant_within_its_budget_is_measured_only(search):
    found = search(9, 0)
    assert found.report.passed
    assert (found.report.sensitivity, found.report.kept_in_float32, found.written) == (found.costs, [], [])


@pytest.mark.parametrize(
    "excesses, expected", [([], False), ([1.5], True), ([3.0, 1.01], True), ([1.5, math.inf], False)]
)
def test_what_can_be_mended(excesses, expected):
    breaches = [Breach("onnx/int8", "perplexity", 0, 0, "", excess) for excess in excesses]
    assert is_over_budget(RunnerReport("onnx/int8", "int8", breaches=breaches)) == expected


# === A trained model whose budget is broken ===


@pytest.fixture(scope="module")
def stretched(model_directory, stretch, tmp_path_factory):
    """The trained model with outliers in the attention that finds the fourth token back: the same function."""
    directory = tmp_path_factory.mktemp("stretched") / "model"
    model = load_for_export(model_directory)
    for block in model.backbone.blocks:
        stretch(block.attention.norm, block.attention.sublayer.query_key_value, channel=5)
    model.save_to_preset(directory)
    return directory


@pytest.fixture(scope="module")
def rescued(stretched, text_file, tmp_path_factory):
    release, lines = tmp_path_factory.mktemp("rescued") / "release", []
    options = {"text": text_file, "quantize": ("int8", "int4"), "on_progress": lines.append}
    return types.SimpleNamespace(path=release, reports=export_release(stretched, release, ["onnx"], **options))


def test_the_dearest_weights_are_kept_in_float32(rescued):
    portable, tuned, *quantized = rescued.reports
    assert [report.kept_in_float32 for report in (portable, tuned)] == [[], []]
    for report in quantized:
        assert report.passed
        assert report.perplexity_increase <= TOLERANCES[report.precision].perplexity
        kept, costs = report.kept_in_float32, report.sensitivity
        assert kept == [cost.weight for cost in costs[: len(kept)]]
        assert 1 <= len(kept) <= 4
        assert set(kept) & set(ATTENTION)
        assert len(costs) == 9


def test_the_file_is_what_the_report_says(rescued):
    for report in rescued.reports[2:]:
        model = onnx.load(rescued.path / "onnx" / f"model_{report.precision}.onnx", load_external_data=False)
        tensors = {tensor.name for tensor in model.graph.initializer}
        assert set(report.kept_in_float32) <= tensors
        scales = {name.removesuffix("_scales") for name in tensors if name.endswith("_scales")}
        assert scales == {cost.weight for cost in report.sensitivity} - set(report.kept_in_float32)


def test_what_was_kept_is_told(rescued):
    manifest = json.loads((rescued.path / "manifest.json").read_text())["quantization"]
    assert set(manifest) == {"onnx/int8", "onnx/int4"}
    entries = {entry["runtime"]: entry for entry in json.loads((rescued.path / "parity.json").read_text())["runtimes"]}
    text = (rescued.path / "parity.md").read_text()
    for report in rescued.reports[2:]:
        costs = [cost.weight for cost in report.sensitivity]
        for entry in (entries[report.runtime], manifest[report.runtime]):
            assert entry["kept_in_float32"] == report.kept_in_float32
            assert [cost["weight"] for cost in entry["sensitivity"]] == costs
        _, _, section = text.partition(f"## Sensitivity of {report.runtime}\n")
        rows = re.findall(r"^\| (transformer\S+) \| [\d.e+-]+ \| [\d.]+ MB \| (\w+) \|$", section, re.MULTILINE)[:9]
        assert [name for name, _ in rows] == costs
        assert [name for name, kind in rows if kind == "float32"] == report.kept_in_float32
        assert {kind for name, kind in rows if name not in report.kept_in_float32} == {report.precision}
        assert f"| within budget, {len(report.kept_in_float32)} of 9 weights float32 |" in text


def test_a_rescued_release_passes_parity_again(rescued, stretched, text_file):
    """And the new report still tells what was kept, which only the export measured."""
    reports = prove_release(rescued.path, stretched, text=text_file)
    assert all(report.passed for report in reports)
    for report, before in zip(reports, rescued.reports, strict=True):
        assert report.kept_in_float32 == before.kept_in_float32
        assert report.sensitivity == before.sensitivity
