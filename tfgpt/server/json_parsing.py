"""JSON as TensorFlow Serving's parser takes it, which is not quite as Python's does.

It takes NaN, Infinity and Inf; bytes in a string that are no UTF-8; the first of two equal keys. It refuses surrogates
without their partner and numbers beyond a double's range. An integer that fits no 64 bits is a floating-point number.
"""

from __future__ import annotations

import json
import math
import re

from tfgpt.server.status import invalid

SHORT_INFINITY = re.compile(r'"(?:[^"\\]|\\.)*"|(?<![\w.])(-?)Inf(?![\w])', re.DOTALL)
ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)


class JsonObject(dict):
    """An object; of equal keys the first counts. `pairs` has all members, in order."""

    def __init__(self, pairs):
        super().__init__(reversed(pairs))
        self.pairs = pairs


def parse(body):
    """The JSON object in a request's body; what is no UTF-8 is in its strings as lone surrogates ("surrogateescape").

    Args:
        body: bytes.

    Raises:
        RequestError: INVALID_ARGUMENT, for anything else.
    """
    text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    if not text.strip(" \t\r\n"):
        raise invalid("JSON Parse error: The document is empty")
    if "\\" in text:
        _check_surrogates(text)
    if "Inf" in text:
        text = SHORT_INFINITY.sub(lambda found: found[0] if found[1] is None else f"{found[1]}Infinity", text)
    try:
        value = json.loads(text, object_pairs_hook=JsonObject, parse_float=_number, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: {error.msg} at offset: {error.pos}") from error
    except RecursionError as error:
        raise invalid("JSON Parse error: nested too deep") from error
    if not isinstance(value, JsonObject):
        raise invalid(f"JSON Value: {shown(value)} Is not object")
    return value


def shown(value):
    """A value for an error message, cut to a sensible length."""
    text = json.dumps(value, ensure_ascii=False)
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text if len(text) <= 500 else f"{text[:500]}…"


def kind(value):
    """The name of a value's type in error messages."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return str(value)
    names = {dict: "Object", list: "Array", str: "String"}
    return next((name for cls, name in names.items() if isinstance(value, cls)), "Number")


def _integer(digits):
    if len(digits) > 310:  # also more than Python would convert
        raise invalid("JSON Parse error: Number too big to be stored in double")
    value = int(digits)
    return value if -(2**63) <= value < 2**64 else _number(digits)


def _number(digits):
    value = float(digits)
    if math.isinf(value):
        raise invalid("JSON Parse error: Number too big to be stored in double")
    return value


def _check_surrogates(text):
    high = False  # whether the escape before was the first half of a pair
    end = 0
    for found in ESCAPE.finditer(text):
        code = int(found[1], 16) if found[1] else 0
        low = 0xDC00 <= code < 0xE000
        if low != (high and found.start() == end):
            break
        high, end = 0xD800 <= code < 0xDC00, found.end()
        if high and text[end : end + 2] != "\\u":
            break
    else:
        return
    raise invalid(f"JSON Parse error: The surrogate pair in string is invalid at offset: {found.start()}")
