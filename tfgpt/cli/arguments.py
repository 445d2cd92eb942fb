"""A function's signature and docstring as command line options."""

from __future__ import annotations

import inspect
import typing

import docstring_parser
import jsonargparse

from tfgpt.errors import UserError


def add_arguments(parser, function, positional=()):
    """Adds an option for each named parameter of a function or dataclass.

    Args:
        parser: a `jsonargparse.ArgumentParser`.
        function: whose type hints and docstring describe the options.
        positional: names of the parameters that go without a dash.
    """
    hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    # A dataclass describes its own fields, and its base class those that it inherits.
    documented = reversed(function.__mro__[:-1]) if inspect.isclass(function) else [function]
    helps = {
        p.arg_name: p.description
        for one in documented
        for p in docstring_parser.parse(one.__doc__, docstring_parser.Style.GOOGLE).params
    }
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        required = parameter.default is parameter.empty
        options = {"help": " ".join(helps[name].split())}
        if not required:
            default = parameter.default
            options["default"] = list(default) if isinstance(default, tuple) else default
        if name in positional:
            items = _items(hints[name])
            kind = {"type": items, "nargs": "+"} if items else {"type": hints[name]}
            if not required:
                kind["nargs"] = "?"
            parser.add_argument(name, **kind, **options)
            continue
        if required:
            options["required"] = True
        flags = [f"--{name}"] if "_" not in name else [f"--{name}", f"--{name.replace('_', '-')}"]
        if hints[name] is bool:
            parser.add_argument(*flags[:1], action=jsonargparse.ActionYesNo, **options)
        elif items := _items(hints[name]):
            parser.add_argument(*flags, nargs="+", type=items, **options)
        else:
            parser.add_argument(*flags, type=hints[name], **options)


def _items(hint):
    """The type of the items of `list[...]` or `list[...] | None`; None for other hints."""
    lists = [one for one in (hint, *typing.get_args(hint)) if typing.get_origin(one) is list]
    return typing.get_args(lists[0])[0] if lists else None


def expect_defaults(function, what, **given):
    """Refuses options that would be ignored.

    Args:
        function: the command.
        what: the command was given, for which they mean nothing.
        **given: the options' values.

    Raises:
        UserError: if one of them is not the command's default.
    """
    parameters = inspect.signature(function).parameters
    for name, value in given.items():
        if value != parameters[name].default:
            raise UserError(f"--{name} is {value!r}, expected it to be left out for {what}, where it means nothing")
