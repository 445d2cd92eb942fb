import json
import shlex
import subprocess

import pytest

from tfgpt.checksum import sha256_of_file
from tfgpt.cli.main import main


@pytest.fixture
def release(tmp_path):
    file = tmp_path / "a release" / "saved_model" / "demo" / "1" / "saved_model.pb"
    file.parent.mkdir(parents=True)
    file.write_text("graph")
    entry = {"bytes": 5, "sha256": sha256_of_file(file)}
    manifest = {"files": {"saved_model/demo/1/saved_model.pb": entry}}
    (tmp_path / "a release" / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path / "a release"


@pytest.fixture
def models(tmp_path):
    return tmp_path / "my models"


def failure(capsys, *arguments):
    """The one line on standard error of a command that must exit with 2."""
    assert main([str(argument) for argument in arguments]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    return line


def test_publish_says_what_was_done(release, models, capsys):
    for _ in range(2):
        assert main(["publish", str(release), str(models)]) == 0
    capsys.readouterr()
    assert main(["publish", str(release), str(models), "--keep", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"published {release}/saved_model/demo/1 as {models}/demo/3",
        "pruned version 1",
    ]
    assert main(["publish", str(release), str(models), "--keep", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "pruned versions 2, 3"


def test_rollback_says_how_to_bring_it_back(release, models, capsys):
    for _ in range(3):
        assert main(["publish", str(release), str(models)]) == 0
    capsys.readouterr()
    assert main(["rollback", str(models / "demo"), "--to", "1"]) == 0
    first, *commands = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{models}/demo is back at version 1;")
    for command in commands:
        subprocess.run(shlex.split(command), check=True)
    assert sorted(path.name for path in (models / "demo").iterdir() if path.is_dir()) == ["1", "2", "3"]


def test_what_a_user_can_get_wrong_is_one_sentence(release, models, capsys):
    assert failure(capsys, "publish", release, models, "--keep", "0").startswith(
        "tfgpt: keep is 0, expected at least 1"
    )
    assert "does not exist, expected a release directory" in failure(capsys, "publish", models, models)
    assert "has no versions, expected a base path" in failure(capsys, "rollback", models)
    assert main(["publish", str(release), str(models)]) == 0
    assert "has version 1 alone" in failure(capsys, "rollback", models / "demo")
    assert "has no version 7" in failure(capsys, "rollback", models / "demo", "--to", "7")
    (release / "saved_model" / "demo" / "1" / "saved_model.pb").write_text("Graph")
    assert "the file has sha256" in failure(capsys, "publish", release, models)


def test_both_paths_are_needed(release, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["publish", str(release)])
    assert exit.value.code == 2 and "models" in capsys.readouterr().err
