"""JSON files that others wrote."""

import json
import pathlib

from tfgpt.errors import UserError


def read_json(path):
    """A JSON object read from a file.

    Raises:
        UserError: if the file is missing or holds anything else.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing, expected a model directory with a {path.name}")
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, RecursionError) as error:  # also of bytes that are not UTF-8
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(contents, dict):
        raise UserError(f"{path} holds a JSON {type(contents).__name__}, expected an object")
    return contents
