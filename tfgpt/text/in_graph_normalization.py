"""What is done to text before it is tokenized, in a TensorFlow graph: lower-casing as the `tokenizers` library does it,
stripping as Python does.

TensorFlow's own `tf.strings.lower` knows another version of Unicode than the library (75 letters differ), and maps each
character to one.
"""

import functools
import re

import numpy as np
import tensorflow as tf
from tokenizers import normalizers

from tfgpt.text.in_graph_split import CODE_POINTS, SURROGATES, CodePointTable

# What `str.isspace` holds for, and `str.strip` therefore removes.
WHITE_SPACE = "".join(chr(i) for i in range(CODE_POINTS) if chr(i).isspace())


@functools.cache
def lower_case():
    """The lower case of every character that has one, as the installed `tokenizers` library has it: dict of str."""
    characters = [chr(i) for i in range(CODE_POINTS) if i not in SURROGATES and chr(i) != "\n"]
    lowered = normalizers.Lowercase().normalize_str("\n".join(characters)).split("\n")
    return {c: lower for c, lower in zip(characters, lowered, strict=True) if c != lower}


class Lowercase(tf.Module):
    """The `tokenizers` library's normalizer of that name.

    Example:

    >>> [text.decode() for text in Lowercase()(tf.constant(["Die KATZE", "ΌΣΟΣ", "İ"])).numpy()]
    ['die katze', 'όσοσ', 'i̇']
    """

    def __init__(self):
        super().__init__()
        # Differences, since pages of them are nearly all alike: nothing changes.
        differences = np.zeros(CODE_POINTS, np.int32)
        self._expanding = {}  # one character in today's Unicode
        for character, lower in lower_case().items():
            if len(lower) == 1:
                differences[ord(character)] = ord(lower) - ord(character)
            else:
                self._expanding[character] = lower
        self._differences = CodePointTable(differences)

    def __call__(self, texts):
        """The lower case of texts, a string tensor [B] of valid UTF-8."""
        for character, lower in self._expanding.items():
            texts = tf.strings.regex_replace(texts, re.escape(character), lower)
        code_points = tf.strings.unicode_decode(texts, "UTF-8")
        flat = code_points.flat_values
        return tf.strings.unicode_encode(code_points.with_flat_values(flat + self._differences(flat)), "UTF-8")


def strip(texts):
    """Texts without white space around them, as Python's `str.strip` gives it.

    Args:
        texts: string tensor of any shape, of valid UTF-8.

    Example:

    >>> strip(tf.constant(["  a b\\n", "\\u3000"])).numpy().tolist()
    [b'a b', b'']
    """
    return tf.strings.regex_replace(texts, rf"\A[{WHITE_SPACE}]+|[{WHITE_SPACE}]+\z", "")
