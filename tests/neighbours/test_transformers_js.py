"""Transformers.js in Node opens a release as it is."""

import json
import pathlib
import shutil
import subprocess

import pytest

pytestmark = pytest.mark.interop

HERE = pathlib.Path(__file__).resolve().parent


def continued_by_node(release):
    node = shutil.which("node")
    if node is None:
        pytest.fail("node is not on the PATH, expected Node 20 or newer, in which Transformers.js runs")
    if not (HERE / "node_modules").is_dir():
        pytest.fail("tests/neighbours/node_modules is missing, expected the packages that `make test-interop` installs")
    question = {"prompts": [row["prompt"] for row in release.rows], "max_new_tokens": release.max_new_tokens}
    done = subprocess.run(
        [node, str(HERE / "generate.mjs"), str(release.path)],
        input=json.dumps(question),
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_greedy_text(release):
    for found, expected in zip(continued_by_node(release), release.rows, strict=True):
        assert found == {key: expected[key] for key in found}
