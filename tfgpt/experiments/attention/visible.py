"""Tokens as text that can be seen."""

import unicodedata

SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥"}


def visible(token):
    """A token's text with nothing in it that is invisible, or that acts on the text around it.

    White space has signs; control and format characters, such as those that turn the direction of writing, and others
    without a shape are escaped as in Python; an accent without its letter stands on a dotted circle.

    Example:

    >>> [visible(token) for token in (" the", "\\n\\n", "\\u202e", "\\u0301", "中", "")]
    ['␣the', '⏎⏎', '\\\\u202e', '◌́', '中', '∅']
    """
    if not token:
        return "∅"
    circle = "◌" if unicodedata.category(token[0]).startswith("M") else ""
    return circle + "".join(SIGNS.get(character) or _escaped(character) for character in token)


def shortened(text, length):
    """The beginning of a text that is longer than so many characters, with an ellipsis.

    Example:

    >>> shortened("attention", 6), shortened("head", 6)
    ('atten…', 'head')
    """
    return text if len(text) <= length else text[: length - 1] + "…"


def _escaped(character):
    shapeless = unicodedata.category(character)[0] in "CZ"
    return ascii(character)[1:-1] if shapeless else character
