import itertools
import random

import pytest
import tensorflow as tf
import tokenizers
from tokenizers import models, pre_tokenizers

from benchmarks.in_graph_tokenizer import strings
from tfgpt.text.in_graph_split import (
    LETTER,
    NUMBER,
    OTHER,
    SPACE,
    CodePointTable,
    WordSplitter,
    code_point_classes,
)

LIBRARY = pre_tokenizers.ByteLevel(add_prefix_space=False)


def words(texts, special_tokens=()):
    found, row_splits = tf.function(WordSplitter(special_tokens))(tf.constant(texts, tf.string))
    found, row_splits = [word.decode() for word in found.numpy()], row_splits.numpy()
    return [found[start:end] for start, end in itertools.pairwise(row_splits)]


def expected_words(text):
    return [text[start:stop] for _, (start, stop) in LIBRARY.pre_tokenize_str(text)]


# === Characters ===


def test_classes_are_the_librarys_for_every_code_point():
    classes = code_point_classes()
    assigned = [i for i in [*range(0x40000), *range(0xE0000, 0xF0000)] if not 0xD800 <= i < 0xE000]
    for first, kind in ("a", LETTER), ("1", NUMBER), ("!", OTHER):
        # Each code point behind a character of the class, with which it makes one word or not.
        text = "".join(f"{first}{chr(i)}\n" for i in assigned)
        starts = {start for _, (start, _) in LIBRARY.pre_tokenize_str(text)}
        assert [i for n, i in enumerate(assigned) if (3 * n + 1 not in starts) != (classes[i] == kind)] == []
    rest = [*range(0x40000, 0xE0000), *range(0xF0000, 0x110000)]
    assert len(LIBRARY.pre_tokenize_str("!" + "".join(map(chr, rest)))) == 1
    assert (classes[rest] == OTHER).all()


def test_white_space_is_the_librarys():
    spaces = [i for i in range(0x110000) if code_point_classes()[i] == SPACE]
    # Not Python's str.isspace, which holds for U+001C to U+001F too.
    assert spaces == [*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F,
                      0x3000]  # fmt: skip


def test_code_point_table():
    classes = code_point_classes()
    assert (CodePointTable(classes)(tf.range(0x110000)).numpy() == classes).all()


# === Words ===


@pytest.mark.parametrize(
    "text, expected",
    [
        ("it's I'll you're we've I'm he'd don't", "it 's| I 'll| you 're| we 've| I 'm| he 'd| don 't"),
        ("IT'S 'S 'Re", "IT ' S| ' S| ' Re"),
        ("'s's 'sa' 's !'s '''s", "'s 's| ' sa '| ' s| !' s| ''' s"),
        ("'l 'r 'v 're'r", "' l| ' r| ' v| ' re ' r"),
        ("'ll'lla'tab\n's\t's", "'ll 'll a 't ab \n 's \t 's"),
    ],
)
def test_contractions(text, expected):
    # In `expected` a space parts words, and a bar parts them before a word that begins with a space.
    parts = expected.replace("| ", " \x00").split(" ")
    assert words([text]) == [[part.replace("\x00", " ") for part in parts]] == [expected_words(text)]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a  b", ["a", " ", " b"]),
        ("a\n\nb", ["a", "\n", "\n", "b"]),
        ("a \n", ["a", " \n"]),
        ("a\u00a0b \u00a0b", ["a", "\u00a0", "b", " ", "\u00a0", "b"]),
        ("\x1c \x1c", ["\x1c", " \x1c"]),
        ("   ", ["   "]),
        ("a1!é²", ["a", "1", "!", "é", "²"]),
        ("", []),
    ],
)
def test_white_space_and_runs(text, expected):
    assert words([text]) == [expected] == [expected_words(text)]


def test_fuzzed_words_are_the_librarys():
    texts = strings(6000, seed=1)
    assert words(texts) == [expected_words(text) for text in texts]


def test_rows_do_not_touch():
    texts = ["it", "'s", "", " ", "a", "", "", "b ", "c"]
    assert words(texts) == [expected_words(text) for text in texts]
    assert words([]) == []
    assert words(["", ""]) == [[], []]


def test_special_tokens_are_matched_as_the_library_does():
    special = ["<é>", "<a b>", "<a>", "<a><b>", "a>", "><", "|>", "aa", "\n\n", "'"]
    alphabet = {character: i for i, character in enumerate([*pre_tokenizers.ByteLevel.alphabet(), *special])}
    library = tokenizers.Tokenizer(models.BPE(alphabet, []))
    library.add_special_tokens(special)  # without a pre-tokenizer: text between special tokens stays in one piece
    library.add_special_tokens(["<a"])
    generator = random.Random(0)
    parts = [*special, *"<>ab|é \ns", "<a"]
    texts = ["".join(generator.choices(parts, k=generator.randrange(12))) for _ in range(3000)]
    expected = []
    for text in texts:
        expected.append([])
        end = 0
        for encoding in zip(*(getattr(library.encode(text), name) for name in ("tokens", "offsets"))):
            token, (start, stop) = encoding
            if token in {*special, "<a"}:
                expected[-1] += [*expected_words(text[end:start]), text[start:stop]]
                end = stop
        expected[-1] += expected_words(text[end:])
    assert words(texts, [token.encode() for token in [*special, "<a"]]) == expected
