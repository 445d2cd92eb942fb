"""GPT-2's pre-tokenizer in a TensorFlow graph: texts to words, in core operators and without regular expressions.

The pattern is that of Radford et al. 2019 (`encoder.py` of their code):

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

TensorFlow's regular expressions (RE2) know no look-ahead, so that they cannot split as it does. But every one of its
words is a run of characters of one class, up to three exceptions that depend on a few neighbours: a space before a
run belongs to it, the last white space before a run is a word of its own, and contractions. So the words' starts are
computed for all characters of a batch at once.
"""

import functools

import numpy as np
import tensorflow as tf
from tokenizers import pre_tokenizers

LETTER, NUMBER, OTHER, SPACE, END, SPECIAL = range(6)  # a character's class; END lies between texts

CODE_POINTS = 0x110000
SURROGATES = range(0xD800, 0xE000)  # no characters, and absent from valid UTF-8
# What joins a batch's texts: a byte that valid UTF-8 does not hold, and the code point that stands for it.
_SEPARATOR, _SEPARATOR_CODE_POINT = b"\xff", CODE_POINTS


# === Characters ===


@functools.cache
def code_point_classes():
    """The class of every code point, as the installed `tokenizers` library has it, so that no Unicode version differs.

    Returns:
        uint8 array [0x110000] of LETTER, NUMBER, OTHER and SPACE.
    """
    classes = np.full(CODE_POINTS, OTHER, np.uint8)
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    # Planes 4 to 13 were never assigned, 15 and 16 are for private use: leaving them out saves most of the time.
    asked = [i for i in [*range(0x40000), *range(0xE0000, 0xF0000)] if i not in SURROGATES and chr(i) not in "' "]
    # A space or an apostrophe could be in one word with its neighbours; without them each word is of one class.
    for _, (start, stop) in split.pre_tokenize_str("".join(map(chr, asked))):
        first = chr(asked[start])
        joins = [len(split.pre_tokenize_str(other + first)) == 1 for other in "a1!"]
        classes[asked[start:stop]] = joins.index(True) if any(joins) else SPACE
    classes[ord(" ")] = SPACE
    return classes


class CodePointTable(tf.Module):
    """A value for each code point, in pages of which equal ones are kept once: tens of kB in place of megabytes.

    Args:
        values: array [N] of the values of code points 0 to N - 1, N a multiple of 256.
    """

    def __init__(self, values):
        super().__init__()
        pages = [page.tobytes() for page in values.reshape(-1, 256)]
        starts = {page: 256 * i for i, page in enumerate(dict.fromkeys(pages))}
        self._pages = tf.constant(np.frombuffer(b"".join(starts), values.dtype))
        self._page_starts = tf.constant([starts[page] for page in pages])

    def __call__(self, code_points):
        """The values of code points, an int32 tensor of any shape."""
        pages = tf.gather(self._page_starts, tf.bitwise.right_shift(code_points, 8))
        return tf.gather(self._pages, pages + (code_points & 255))


def _characters(data):
    """Where characters start in valid UTF-8 with separators, uint8 [N], and their code points; both int32 [C]."""
    starts = tf.cast(tf.where(data & 0xC0 != 0x80)[:, 0], tf.int32)
    code_points = tf.cast(tf.gather(data, starts), tf.int32)
    code_points = tf.where(code_points == 0xFF, _SEPARATOR_CODE_POINT, code_points)
    long = tf.where((code_points >= 0x80) & (code_points < _SEPARATOR_CODE_POINT))  # few, in most texts
    long_starts = tf.gather(starts, long[:, 0])
    first, *rest = (tf.cast(tf.gather(data, long_starts + i), tf.int32) for i in range(4))
    second, third, fourth = (byte & 0x3F for byte in rest)
    two = (first & 0x1F) * 2**6 + second
    three = (first & 0x0F) * 2**12 + second * 2**6 + third
    four = (first & 0x07) * 2**18 + second * 2**12 + third * 2**6 + fourth
    decoded = tf.where(first < 0xE0, two, tf.where(first < 0xF0, three, four))
    return starts, tf.tensor_scatter_nd_update(code_points, long, decoded)


# === Words ===


class WordSplitter(tf.Module):
    """Splits texts into GPT-2's words, and special tokens off them as the `tokenizers` library does.

    Args:
        special_tokens: an iterable of bytes, matched in the texts from left to right, the longest first.

    Example:

    >>> words, row_splits = WordSplitter([b"<end>"])(tf.constant(["it's  42!", "", "so<end>"]))
    >>> words.numpy().tolist()
    [b'it', b"'s", b' ', b' 42', b'!', b'so', b'<end>']
    >>> row_splits.numpy().tolist()
    [0, 5, 5, 7]
    """

    def __init__(self, special_tokens=()):
        super().__init__()
        self._special_tokens = sorted(set(special_tokens), key=len, reverse=True)
        classes = np.concatenate([code_point_classes(), np.full(256, END, np.uint8)])
        self._classes = CodePointTable(classes)
        # Looking a few bytes past a character, or a special token's length, then never leaves the data.
        self._end = _SEPARATOR * max(4, *map(len, self._special_tokens), 0)

    def __call__(self, texts):
        """The words of all texts.

        Args:
            texts: string tensor [B] of valid UTF-8.

        Returns:
            The words, string [M], and int32 [B + 1]: row b's words are those from row_splits[b] to row_splits[b + 1].
        """
        joined = tf.strings.reduce_join(texts, separator=_SEPARATOR) + self._end
        data = tf.io.decode_raw(joined, tf.uint8)
        starts, code_points = _characters(data)
        classes = self._classes(code_points)
        forced = None
        if self._special_tokens:
            classes, forced = self._mark_special_tokens(data, starts, classes)
        begins = _word_begins(code_points, classes)
        if forced is not None:
            begins = tf.tensor_scatter_nd_update(begins, forced, tf.ones_like(forced[:, 0], tf.bool))
        first = tf.where(begins)[:, 0]
        word_starts = tf.gather(starts, first)
        lengths = tf.concat([word_starts[1:], [tf.size(data)]], 0) - word_starts
        is_word = tf.gather(classes, first) != END
        word_starts, lengths = tf.boolean_mask(word_starts, is_word), tf.boolean_mask(lengths, is_word)
        row_starts = tf.cumsum(tf.concat([[0], tf.strings.length(texts) + 1], 0))
        return tf.strings.substr(joined, word_starts, lengths), tf.searchsorted(word_starts, row_starts)

    def _mark_special_tokens(self, data, starts, classes):
        """The characters' classes with those of special tokens as SPECIAL, and which begin one, int64 [S, 1]."""
        found, lengths = self._find_special_tokens(data)
        chosen = _without_overlap(found, lengths)
        found, lengths = tf.boolean_mask(found, chosen), tf.boolean_mask(lengths, chosen)
        first, end = tf.searchsorted(starts, found), tf.searchsorted(starts, found + lengths)
        inside = tf.ragged.range(first, end).flat_values
        marks = tf.fill([tf.size(inside)], tf.constant(SPECIAL, tf.uint8))
        return tf.tensor_scatter_nd_update(classes, inside[:, None], marks), tf.cast(first, tf.int64)[:, None]

    def _find_special_tokens(self, data):
        """The first bytes of all special tokens in the data, ascending, and their lengths: the longest at each."""
        found, lengths = [], []
        searched = data[: tf.size(data) - len(self._end)]
        for token in self._special_tokens:
            at = tf.cast(tf.where(searched == token[0])[:, 0], tf.int32)
            around = tf.gather(data, at[:, None] + tf.range(len(token)))
            at = tf.boolean_mask(at, tf.reduce_all(around == tf.constant(list(token), tf.uint8), axis=1))
            found.append(at)
            lengths.append(tf.fill([tf.size(at)], len(token)))
        found, lengths = tf.concat(found, 0), tf.concat(lengths, 0)
        order = tf.argsort(found, stable=True)  # longer tokens come first
        found, lengths = tf.gather(found, order), tf.gather(lengths, order)
        longest = tf.concat([tf.ones_like(found[:1], tf.bool), found[1:] != found[:-1]], 0)
        return tf.boolean_mask(found, longest), tf.boolean_mask(lengths, longest)


def _word_begins(code_points, classes):
    """Whether a word begins at a character, bool [C], by the code points and classes of all, int32 and uint8 [C]."""
    end = tf.constant([END], tf.uint8)
    previous, following = tf.concat([end, classes[:-1]], 0), tf.concat([classes[1:], end], 0)
    plain_space = (code_points == ord(" ")) & (classes == SPACE)
    after_plain_space = tf.concat([[False], plain_space[:-1]], 0)
    visible = classes <= OTHER
    # A run begins where the class changes, or at the plain space before; that, or any other last white space before
    # a visible character, is left by the white space before it: \s+(?!\S).
    begins = (classes != previous) & ~(visible & after_plain_space)
    begins |= (classes == SPACE) & (following <= OTHER)
    # A contraction is one only where a word begins at its apostrophe: not after a space or among other symbols.
    apostrophe = (code_points == ord("'")) & (classes == OTHER)  # none that is a special token
    apostrophes = tf.where(apostrophe & begins & (following == LETTER))[:, 0]
    first, second = (tf.gather(code_points, apostrophes + i) for i in (1, 2))  # past the end there are separators
    second = tf.where(tf.gather(classes, apostrophes + 2) == LETTER, second, 0)
    short = functools.reduce(tf.logical_or, (first == ord(letter) for letter in "stmd"))
    long = functools.reduce(tf.logical_or, ((first == ord(a)) & (second == ord(b)) for a, b in ("re", "ve", "ll")))
    is_contraction = short | long
    apostrophes = tf.boolean_mask(apostrophes, is_contraction)
    length = tf.where(tf.boolean_mask(short, is_contraction), tf.constant(2, tf.int64), 3)
    # Its letters begin no word, but what follows them does.
    changed = tf.concat([apostrophes + 1, apostrophes + length], 0)
    values = tf.concat([tf.zeros_like(length, tf.bool), tf.ones_like(length, tf.bool)], 0)
    return tf.tensor_scatter_nd_update(begins, changed[:, None], values)


def _without_overlap(starts, lengths):
    """Which of some spans, in the order of their starts, are chosen when each begins at or after the last one's end.

    The first is chosen, and each chosen one has the first after its end for its successor. Steps of 1, 2, 4, …
    successors from all that are found reach every chosen one after a logarithm of their number.
    """
    count = tf.size(starts)
    jump = tf.concat([tf.searchsorted(starts, starts + lengths), [count]], 0)  # `count` stands for the end
    chosen = tf.concat([[True], tf.zeros([count], tf.bool)], 0)

    def double(jump, chosen):
        reached = tf.boolean_mask(jump, chosen)
        chosen = tf.tensor_scatter_nd_update(chosen, reached[:, None], tf.ones_like(reached, tf.bool))
        return tf.gather(jump, jump), chosen

    shapes = (tf.TensorShape([None]), tf.TensorShape([None]))
    _, chosen = tf.while_loop(lambda jump, chosen: jump[0] < count, double, (jump, chosen), shape_invariants=shapes)
    return chosen[:count]
