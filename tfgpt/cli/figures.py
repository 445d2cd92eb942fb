"""Figures as JSON, for other programs."""

import json

from tfgpt.atomic import write_text


def print_json(figures):
    """Prints them."""
    print(_text(figures))


def write_json(path, figures):
    """Writes them to a file, if there is to be one."""
    if path is not None:
        write_text(path, _text(figures) + "\n")


def _text(figures):
    return json.dumps(figures, indent=2)
