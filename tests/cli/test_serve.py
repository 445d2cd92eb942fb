import subprocess
import sys

import pytest

from tfgpt.cli.main import main


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "a model and a model_config_file are both given or both left out, expected one of them"),
        (("{}",), "has 0 models in saved_model/, expected one: a release exported with the format saved_model"),
        (("{}", "--model_base_path", "x"), "a release and model_base_path are both given, expected one of them"),
        (("--model_config_file", "{}/none"), "none cannot be read, expected a text file: no such file or directory"),
        (("--model_base_path", "{}", "--token_file", "{}/none"), "none cannot be read, expected a token"),
        (("--model_base_path", "{}", "--log_level", "loud"), "log_level is 'loud', expected one of debug"),
        (("--model_base_path", "{}", "--rest_port", "-1"), "rest_port is -1, expected 0 to 65535"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(tmp_path, capsys, arguments, message):
    assert main(["serve", *(argument.format(tmp_path) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("tfgpt: ") and message in err and err.count("\n") == 1


def test_without_the_extra_it_says_what_to_install(tmp_path):
    """An environment without starlette, in a process of its own."""
    command = f"main(['serve', '--model_base_path', {str(tmp_path)!r}])"
    code = f"import sys; sys.modules['starlette'] = None; from tfgpt.cli.main import main; sys.exit({command})"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 2 and "tfgpt[serving]" in process.stderr and process.stderr.count("\n") == 1
