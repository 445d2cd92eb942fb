import json
import signal
import subprocess
import sys

import pytest

from tfgpt.cli.main import main


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepare")
    (folder / "text.txt").write_text("what is past is prologue; " * 200)
    arguments = ["--data", str(folder / "text.txt"), "--out", str(folder / "tokens"), "--tokenizer", "character"]
    assert main(["prepare", *arguments, "--workers", "1", "--json", str(folder / "figures.json")]) == 0
    return folder / "tokens"


def test_prepare_writes_its_figures(tokens):
    figures = json.loads((tokens.parent / "figures.json").read_text())
    assert figures["vocabulary_size"] == len(set("what is past is prologue; "))
    assert figures["splits"]["train"] == {"tokens": 5148, "bytes": 5148, "documents": 1, "shards": 1}
    assert figures["splits"]["validation"]["tokens"] == 52


def test_verify(tokens, tmp_path, capsys):
    assert main(["prepare", "--out", str(tokens), "--verify"]) == 0
    assert "are as they were written" in capsys.readouterr().out
    path = tokens / "validation-00000.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + b"\7\0")
    try:
        assert main(["prepare", "--out", str(tokens), "--verify"]) == 2
    finally:
        path.write_bytes(whole)
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "validation-00000.npy has changed: found SHA-256" in line


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], "data is missing, expected files, folders, globs or 'stdlib'"),
        (["--data", "no/such/file"], "no/such/file matches no file"),
        (["--data", "stdlib", "--tokenizer", "no/such"], "tokenizer is 'no/such', expected bpe, character or"),
        (["--data", "stdlib", "--tokenizer", "character", "--workers", "0"], "workers"),
    ],
)
def test_bad_input(capsys, tmp_path, arguments, expected):
    assert main(["prepare", "--out", str(tmp_path / "tokens"), *arguments]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert expected in line
    assert list(tmp_path.iterdir()) == []


def test_termination_leaves_nothing(tmp_path):
    (tmp_path / "out").mkdir()
    program = (
        "import sys; import tfgpt.text.shard_writing as writing\n"
        "from tfgpt.cli import main\n"
        "encode = writing.open_encoder\n"
        "writing.open_encoder = lambda *a: (print('writing', flush=True), encode(*a))[1]\n"
        "main(sys.argv[1:])"
    )
    out = tmp_path / "out" / "tokens"
    arguments = ["prepare", "--data", "stdlib", "--tokenizer", "character", "--out", str(out), "--workers", "2"]
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in errors
    assert list((tmp_path / "out").iterdir()) == []
