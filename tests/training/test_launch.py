import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from tfgpt.errors import UserError
from tfgpt.training import launch
from tfgpt.training.launch import cluster_environments, launch_workers

PYTHON = sys.executable

# In the place of Python: runs the file that follows `-m tfgpt.cli`, with the worker's number.
STAND_IN = """#!{python}
import json, os, runpy, sys
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
sys.argv = [sys.argv[3], *sys.argv[4:]]
runpy.run_path(sys.argv[0], {{"index": index}})
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Writes a program for the workers to run, and returns the command."""
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(launch.sys, "executable", str(python))

    def write(text):
        (tmp_path / "program.py").write_text(text)
        return [str(tmp_path / "program.py"), str(tmp_path)]

    return write


def alive(path):
    with open(f"/proc/{path.read_text()}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] not in "ZX"


def test_ports_differ():
    found = [environment["TF_CONFIG"] for environment in cluster_environments(8)]
    addresses = {part for part in found[0].split('"') if part.startswith("127.0.0.1:")}
    assert len(set(found)) == 8 and len(addresses) == 8


def test_the_chiefs_output_is_the_runs(script, capfd):
    assert launch_workers(script("print('I am', index)"), 3) == 0
    assert capfd.readouterr().out == "I am 0\n"


def test_one_failure_ends_all_and_gives_the_exit_code(script, capfd, tmp_path):
    command = script(
        "import os, pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1], f'pid{index}').write_text(str(os.getpid()))\n"
        "if index == 1: time.sleep(1); print('no more'); raise SystemExit(7)\n"
        "time.sleep(600)"
    )
    assert launch_workers(command, 3) == 7
    assert "[worker 1] no more" in capfd.readouterr().err
    for index in range(3):
        path = tmp_path / f"pid{index}"
        assert not os.path.exists(f"/proc/{path.read_text()}") or not alive(path)


def test_whoever_heeds_no_sigterm_is_killed(script):
    command = script(
        "import signal, time\nif index == 0: signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)\n"
        "time.sleep(1); raise SystemExit(3)"
    )
    assert launch_workers(command, 2, grace_seconds=1) == 3


def test_a_lost_worker_restarts_all(script, capfd, tmp_path):
    command = script(
        "import os, pathlib, signal, sys, time\n"
        "lives = pathlib.Path(sys.argv[1], f'lives{index}')\n"
        "lives.write_text(lives.read_text() + 'x' if lives.exists() else 'x')\n"
        "if index == 1 and lives.read_text() == 'x': time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)\n"
        "if lives.read_text() == 'x': time.sleep(600)\n"
    )
    assert launch_workers(command, 2, restarts=2) == 0
    assert "worker 1 was lost (signal 9); restart 1 of 2" in capfd.readouterr().err
    assert [(tmp_path / f"lives{index}").read_text() for index in (0, 1)] == ["xx", "xx"]


def test_restarts_end(script, capfd):
    assert launch_workers(script("raise SystemExit(5 if index == 0 else 0)"), 1, restarts=2) == 5
    assert capfd.readouterr().err.count("restart ") == 2


def test_bad_input_is_told_once_and_restarts_nothing(script, capfd):
    command = script("import sys; print('tfgpt: x is 1, expected 2', file=sys.stderr); raise SystemExit(2)")
    assert launch_workers(command, 3, restarts=5) == 2
    assert capfd.readouterr().err == "tfgpt: x is 1, expected 2\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_every_worker(script, tmp_path, number):
    command = script(
        "import pathlib, signal, sys, time\n"
        "def end(number, frame): raise SystemExit(128 + number)\n"
        "for one in (signal.SIGINT, signal.SIGTERM): signal.signal(one, end)\n"
        "pathlib.Path(sys.argv[1], f'ready{index}').touch()\n"
        "time.sleep(600)"
    )
    code = (
        "import sys; from tfgpt.training import launch; launch.sys.executable = sys.argv[1]; "
        "sys.exit(launch.launch_workers(sys.argv[2:], 2, restarts=3))"
    )
    launcher = subprocess.Popen([PYTHON, "-c", code, launch.sys.executable, *command])
    while not all((tmp_path / f"ready{index}").exists() for index in (0, 1)):
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.send_signal(number)
    assert launcher.wait(timeout=60) == 128 + number


@pytest.mark.parametrize("command, workers, restarts", [([], 2, 0), (["train"], 0, 0), (["train"], 1, -1)])
def test_bad_arguments(command, workers, restarts):
    with pytest.raises(UserError, match="expected"):
        launch_workers(command, workers, restarts)


def test_the_command_line_hands_on_what_follows_two_dashes(monkeypatch):
    from tfgpt.cli.main import main

    seen = []
    monkeypatch.setattr(launch, "launch_workers", lambda *arguments: seen.append(arguments) or 9)
    assert main(["launch", "--workers", "2", "--restarts", "1", "--", "train", "--workers", "x"]) == 9
    assert seen == [(["train", "--workers", "x"], 2, 1)]
