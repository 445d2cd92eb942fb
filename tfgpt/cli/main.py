"""Parses the command line, calls one function, prints."""

from __future__ import annotations

import difflib
import pathlib
import re
import sys

import jsonargparse
import yaml

from tfgpt.cli import (
    classification,
    commands,
    experiment_commands,
    release_commands,
    serve_command,
    translation,
)
from tfgpt.cli.arguments import add_arguments
from tfgpt.errors import Terminated, UserError, WorkerLostError
from tfgpt.server.config import ServerConfig
from tfgpt.training.tasks import TASKS
from tfgpt.version import __version__

DEFAULT_TASK = next(iter(TASKS))

# Each command and the arguments that go without a dash.
COMMANDS = {
    commands.prepare: (),
    commands.train: (),
    commands.launch: (),
    commands.generate: ("model",),
    translation.translate: ("model",),
    commands.evaluate: ("model",),
    classification.classify: ("model",),
    commands.plot: ("runs",),
    experiment_commands.ablate: (),
    experiment_commands.attention: ("model",),
    release_commands.export: ("model",),
    release_commands.parity: ("release",),
    release_commands.inspect: ("path",),
    release_commands.publish: ("release", "models"),
    release_commands.rollback: ("base_path",),
    release_commands.convert: ("source", "destination"),
    serve_command.serve: ("release",),
    commands.demo: (),
}


def main(arguments=None):
    """Runs `tfgpt`; returns the exit code: 0, 1 for a failed parity check or a lost worker, 2 for bad input, 130 for
    Ctrl-C, 143 for SIGTERM while training."""
    arguments, launched = _split_launched(sys.argv[1:] if arguments is None else arguments)
    try:
        parser = build_parser(_task(arguments))
    except UserError as error:
        print(f"tfgpt: {error}", file=sys.stderr)
        return 2
    chosen = parser.parse_args(arguments)
    function = next(command for command in COMMANDS if command.__name__ == chosen.command)
    options = chosen[chosen.command].as_dict()
    options.pop("config", None)
    if launched is not None:
        options["command"] = launched
    try:
        return function(**options) or 0
    except UserError as error:
        print(f"tfgpt: {error}", file=sys.stderr)
        return 2
    except WorkerLostError as error:
        print(f"tfgpt: {error}", file=sys.stderr)
        return 1
    except Terminated as error:
        print(f"tfgpt: {error}", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("tfgpt: interrupted", file=sys.stderr)
        return 130


def _split_launched(arguments):
    """The arguments before --, and the command after it, which `launch` hands on as it is."""
    arguments = list(arguments)
    if arguments[:1] != ["launch"] or "--" not in arguments:
        return arguments, None
    end = arguments.index("--")
    return arguments[:end], arguments[end + 1 :]


def _task(arguments):
    """The task that `tfgpt train` is to have, whose options the parser then has: of --task, or of the --config file."""
    task = DEFAULT_TASK
    if arguments[:1] == ["train"]:
        named = {}
        for option, value in zip(arguments, [*arguments[1:], None]):
            name, equals, rest = option.partition("=")
            if name in ("--task", "--config"):
                named[name] = rest if equals else value
        task = named.get("--task") or _task_of_file(named.get("--config")) or task
        if not isinstance(task, str) or task not in TASKS:
            raise UserError(f"task is {task!r}, expected one of {', '.join(TASKS)}")
    return task


def _task_of_file(path):
    """The task in a YAML file; None without one, and where the parser is going to object to the file."""
    try:
        settings = yaml.safe_load(pathlib.Path(path or "").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return settings.get("task") if isinstance(settings, dict) else None


def build_parser(task=DEFAULT_TASK):
    """The parser: a subcommand for each function of `COMMANDS`, whose signature is its command line.

    Args:
        task: whose configuration the options of `train` are.
    """
    parser = _Parser(
        prog="tfgpt",
        description="Transformer language models in Keras: train, export, prove the export is the model, generate.",
        version=__version__,
    )
    subcommands = parser.add_subcommands(dest="command")
    for function, positional in COMMANDS.items():
        summary = function.__doc__.strip().splitlines()[0]
        subparser = _Parser(description=summary)
        subparser.add_argument("--config", action="config", help="a YAML file with any of these options")
        if function is commands.train:
            add_arguments(subparser, TASKS[task])
        if function is serve_command.serve:
            add_arguments(subparser, ServerConfig)
        add_arguments(subparser, function, positional)
        parser.subparsers.append(subparser)
        subcommands.add_subcommand(function.__name__, subparser, help=summary)
    return parser


class _Parser(jsonargparse.ArgumentParser):
    """Says what is wrong in one sentence, with the nearest known name, and exits with code 2."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.subparsers = []

    def error(self, message, ex=None):
        print(f"tfgpt: {self._sentence(str(message))}", file=sys.stderr)
        sys.exit(2)

    def _sentence(self, message):
        unknown = re.search(r"(?:[Uu]nrecognized arguments: -*|does not accept option ')([\w.-]+)", message)
        if unknown:
            name = unknown.group(1).rpartition(".")[2]
            # A key of a subcommand's configuration file is found missing by the parser above it.
            names = [action.dest for parser in self.subparsers or [self] for action in parser._actions]
            near = difflib.get_close_matches(name.replace("-", "_"), names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; --help lists those there are"
            return f"unknown option {name!r}{hint}"
        if "does not support item assignment" in message:  # jsonargparse on a scalar where a list belongs
            return "an option that takes several values was given one, expected a list, such as data: [text.txt]"
        sentence = " ".join(line.strip().lstrip("- ") for line in message.splitlines() if line.strip())
        sentence = re.sub(r'Parser key "([^"]+)":', r"option \1:", sentence)  # jsonargparse's words for an option
        return re.sub(r"Expected a <class '(\w+)'>", r"expected \1", sentence).replace(" Got value:", " found")
