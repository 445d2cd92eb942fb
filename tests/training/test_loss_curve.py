import builtins

import numpy as np
import pytest

from tfgpt.cli.main import main
from tfgpt.errors import UserError
from tfgpt.training.loss_curve import plot_runs, read_losses

METRICS = """step,loss,validation_loss,learning_rate,tokens_per_second,seconds,loss_scale
5,{0},,0.001,100,1,32768
10,{1},,0.001,100,2,32768
10,,{2},,,3,
"""


def write_run(path, *losses):
    (path / "training").mkdir(parents=True)
    (path / "training" / "metrics.csv").write_text(METRICS.format(*losses))
    return path


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / "wide", 3.0, 2.0, 2.5), write_run(tmp_path / "deep", 4.0, 1.0, 1.5)]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, kept where they would be closed."""
    from matplotlib import pyplot

    kept = []
    monkeypatch.setattr(pyplot, "close", kept.append)
    return kept


def test_losses_are_read(runs):
    assert read_losses(runs[0]) == ([(5, 3.0), (10, 2.0)], [(10, 2.5)])


def test_each_run_has_its_curves_and_its_name(runs, figures, tmp_path, capsys):
    assert main(["plot", *map(str, runs), "--out", str(tmp_path / "curves.png")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/curves.png\n"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    lines = {line.get_label(): line.get_xydata() for line in figures[0].axes[0].lines}
    assert list(lines) == ["wide, training", "wide, validation", "deep, training", "deep, validation"]
    np.testing.assert_array_equal(lines["deep, training"], [(5, 4.0), (10, 1.0)])
    np.testing.assert_array_equal(lines["wide, validation"], [(10, 2.5)])
    assert [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()] == list(lines)


def test_runs_of_one_name_are_told_apart(tmp_path, figures):
    runs = [write_run(tmp_path / name / "model", 3, 2, 1) for name in "ab"]
    plot_runs(runs, tmp_path / "curves.png")
    assert f"{runs[0]}, training" in figures[0].axes[0].get_legend_handles_labels()[1]


@pytest.mark.parametrize(
    "contents, message",
    [
        (None, "metrics.csv is missing, expected a model directory that `tfgpt train` wrote"),
        ("step,loss,validation_loss\n", "has no rows"),
        ("step,loss\n1,2\n", "is no record of a run, expected the columns step, loss and validation_loss"),
        ("step,loss,validation_loss\n1,high,\n", "is no record of a run"),
        (b"\xff\xfe\x00", "is no record of a run"),
    ],
)
def test_a_directory_that_is_no_run(runs, tmp_path, contents, message, capsys):
    (tmp_path / "bad" / "training").mkdir(parents=True)
    if contents is not None:
        data = contents if isinstance(contents, bytes) else contents.encode()
        (tmp_path / "bad" / "training" / "metrics.csv").write_bytes(data)
    out = tmp_path / "curves.png"
    assert main(["plot", str(runs[0]), str(tmp_path / "bad"), "--out", str(out)]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert message in line and "bad" in line
    assert not out.exists()


def test_a_run_named_twice(runs, tmp_path):
    with pytest.raises(UserError, match="named twice"):
        plot_runs([runs[0], runs[0]], tmp_path / "curves.png")


def test_without_matplotlib(runs, tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"matplotlib is not installed, expected pip install 'tfgpt\[plots\]'"):
        plot_runs(runs, tmp_path / "curves.png")


def test_an_out_that_cannot_be_written(runs, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["plot", str(runs[0]), "--out", str(tmp_path / "file" / "curves.png")]) == 2
    assert "cannot write" in capsys.readouterr().err
