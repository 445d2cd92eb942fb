"""TensorFlow's import, in a process of its own."""

import os
import subprocess
import sys

# Without what commands that ran in this process have set.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TF_ONEDNN")}


def output(code):
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert finished.stderr == ""
    return finished.stdout


def test_it_says_nothing_and_leaves_matplotlib_to_whoever_wants_it():
    code = """
import sys
from tfgpt.cli.quiet import import_tensorflow
import_tensorflow()
print("tensorflow" in sys.modules, "matplotlib" in sys.modules)
import matplotlib.pyplot
print(matplotlib.pyplot.plot.__name__)
"""
    assert output(code) == "True False\nplot\n"


def test_memory_that_is_freed_goes_back_if_asked_for():
    code = """
import pathlib
from tfgpt.cli.quiet import import_tensorflow
import_tensorflow(return_memory={})
import tensorflow as tf
def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096
tf.zeros([1000]) + 1
before, kept = resident(), tf.ones([2**26])
del kept
print(resident() - before > 2**27)
"""
    assert [output(code.format(asked)) for asked in (True, False)] == ["False\n", "True\n"]
