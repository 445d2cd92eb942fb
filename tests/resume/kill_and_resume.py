"""`make test-resume`: kills a run 20 times at seeded random points; every resume must be bit for bit the unbroken run.

One run is never broken. Another is killed with SIGKILL, given again, killed again, ...: at every other time on a timer,
anywhere in its steps, validations and samples; else from inside, at a random one of its operations on files, most of
which belong to checkpoints. Every checkpoint that it leaves is compared with the unbroken run's of the same step, and
at the end everything else is: metrics.csv, samples.txt, the best weights, the last ones, the figures.
"""

import csv
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile

STEPS, KILLS = 400, 20
TEXT = "the quick brown fox jumps over the lazy dog and the dog sleeps on. " * 120
OPTIONS = "--preset gpt2-test --tokenizer character --batch_size 4 --dropout 0.1 --learning_rate 1e-2 --warmup_steps 5"
OPTIONS += f" --steps {STEPS} --evaluate_every 20 --log_every 5 --steps_per_execution 5 --checkpoint_every 5"
OPTIONS += " --validation_batches 2 --sample_tokens 8 --initializer_range 0.1 --keep_checkpoints 1000"
OPTIONS += " --no_tensorboard --compile none"  # XLA compiles longer than such a run takes
ENVIRONMENT = os.environ | {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}

# Runs the command line, and kills itself: after so many seconds of training, or before so many operations on files.
VICTIM = """
import os, shutil, signal, sys, threading
seconds, operations = float(sys.argv[1]), int(sys.argv[2])
from tfgpt.cli.main import main
from tfgpt.cli.quiet import import_tensorflow
import_tensorflow()
from tfgpt.training import callbacks

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def counted(module, name):
    function = getattr(module, name)
    def wrapper(*arguments, **options):
        global operations
        operations -= 1
        if not operations:
            kill()
        return function(*arguments, **options)
    setattr(module, name, wrapper)

armed = False
first_row = callbacks.Records.on_train_batch_end
def on_train_batch_end(self, batch, logs=None):
    global armed
    if not armed:
        armed = True
        if operations:
            import safetensors.numpy
            for module, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (shutil, "rmtree"), (os, "open")):
                counted(module, name)
            counted(safetensors.numpy, "save_file")
        elif seconds:
            threading.Timer(seconds, kill).start()
    first_row(self, batch, logs)
callbacks.Records.on_train_batch_end = on_train_batch_end
sys.exit(main(sys.argv[3:]))
"""


def run(folder, name, seconds=0.0, operations=0):
    """The exit code of one process of a run, and what it said."""
    arguments = [*OPTIONS.split(), "--data", str(folder / "text.txt"), "--out", str(folder / name)]
    command = [sys.executable, "-c", VICTIM, str(seconds), str(operations), "train", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    return done.returncode, done.stderr


def checkpoints(folder, name):
    """Paths by step."""
    found = {path.name: path for path in (folder / name / "training" / "checkpoints").glob("*")}
    return {step: path for step, path in found.items() if step.isdecimal()}


def state(path):
    """What a checkpoint holds, but for the time that the run took."""
    extra = json.loads((path / "state.json").read_text())
    extra["records"].pop("seconds")
    return extra, *((path / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer"))


def outcome(directory):
    """What a finished run left, but for the time it took."""
    with open(directory / "training" / "metrics.csv", encoding="utf-8") as file:
        rows = [
            {key: value for key, value in row.items() if key not in ("seconds", "tokens_per_second")}
            for row in csv.DictReader(file)
        ]
    summary = json.loads((directory / "training" / "summary.json").read_text())
    for name in ("directory", "tokens_per_second"):
        summary.pop(name)
    files = ("model.safetensors", "training/last/model.safetensors", "training/samples.txt")
    return rows, summary, *((directory / name).read_bytes() for name in files)


def main(seed=0):
    """Prints a line a kill; fails at the first difference."""
    draw = random.Random(seed)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tfgpt-resume-"))
    (folder / "text.txt").write_text(TEXT)
    code, said = run(folder, "unbroken")
    assert code == 0, said
    whole = {step: state(path) for step, path in checkpoints(folder, "unbroken").items()}
    assert len(whole) == STEPS // 5 + 1, sorted(whole)
    compared, newest, kill = set(), 0, 0
    while kill < KILLS:
        seconds = round(draw.uniform(0.0, 0.4), 3)
        operations = 0 if kill % 2 == 0 else draw.randrange(1, 100)
        code, said = run(folder, "killed", seconds, operations)
        if code == 0:  # it got through: the remaining kills are another run's
            assert outcome(folder / "killed") == outcome(folder / "unbroken")
            shutil.rmtree(folder / "killed")
            compared, newest = set(), 0
            continue
        assert code == -signal.SIGKILL, said
        kill += 1
        left = checkpoints(folder, "killed")
        for step in sorted(left.keys() - compared):
            assert state(left[step]) == whole[step], f"{left[step]} differs from the unbroken run's"
        where = f"after {seconds} s" if not operations else f"at file operation {operations}"
        print(f"kill {kill:2}: {where:22} steps {newest:3} to {max(map(int, left)):3}: bit-exact", flush=True)
        compared, newest = compared | left.keys(), max(map(int, left))
    code, said = run(folder, "killed")
    assert code == 0, said
    assert outcome(folder / "killed") == outcome(folder / "unbroken")
    assert {step: state(path) for step, path in checkpoints(folder, "killed").items()} == whole
    print(f"{KILLS} kills, every resume bit-exact: {STEPS} steps, metrics, samples, best and last weights")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
