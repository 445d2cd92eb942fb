import gzip

import pytest

from tfgpt.errors import UserError
from tfgpt.text import read_sentence_pairs, read_sentences, read_tab_separated_pairs


def write(path, text):
    content = text if isinstance(text, bytes) else text.encode("utf-8")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_two_files_line_by_line(tmp_path, suffix):
    source = write(tmp_path / f"a{suffix}", "one\n  two words \r\nthree\u2028lines\n")
    target = write(tmp_path / f"b{suffix}", "\ufeffeins\nzwei Wörter\ndrei")  # no line feed at the end
    pairs = read_sentence_pairs(source, target)
    # Only a line feed ends a line: U+2028 stands in a sentence.
    assert pairs.sources == ["one", "two words", "three\u2028lines"]
    assert pairs.targets == ["eins", "zwei Wörter", "drei"]
    assert len(pairs) == 3 and pairs.line(2) == 3


@pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz"])
def test_tab_separated(tmp_path, suffix):
    pairs = read_tab_separated_pairs(write(tmp_path / f"pairs{suffix}", "one\teins\n two \tzwei Wörter\n"))
    assert (pairs.sources, pairs.targets) == (["one", "two"], ["eins", "zwei Wörter"])


@pytest.mark.parametrize("lines", [(3, 5), (5, 3)])
def test_files_that_are_not_aligned(tmp_path, lines):
    a, b = (write(tmp_path / name, "x\n" * count) for name, count in zip("ab", lines))
    long, short = (b, a) if lines[1] > lines[0] else (a, b)
    with pytest.raises(UserError) as error:
        read_sentence_pairs(a, b)
    assert str(error.value) == (
        f"{a} has {lines[0]} lines and {b} {lines[1]}, expected as many in both: line 4 of {long} has no counterpart "
        f"in {short}"
    )


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "{} is empty, expected a sentence a line"),
        ("one\n \nthree\n", "{}, line 2: found an empty line, expected a sentence on each"),
        ("one\n\n", "{}, line 2: found an empty line, expected a sentence on each"),
        (b"one\ntw\xff\n", "{}, line 2: found bytes that are no UTF-8, expected UTF-8 text"),
    ],
)
def test_a_bad_file_of_sentences_is_one_sentence(tmp_path, text, sentence):
    path = write(tmp_path / "text", text)
    with pytest.raises(UserError) as error:
        read_sentences(path)
    assert str(error.value) == sentence.format(path)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("one\teins\ntwo\n", "{}, line 2: found 1 columns, expected source TAB target"),
        ("one\teins\tuno\n", "{}, line 1: found 3 columns, expected source TAB target"),
        ("one\teins\n \tzwei\n", "{}, line 2: the source is empty, expected a sentence"),
        ("one\teins\ntwo\t\n", "{}, line 2: the target is empty, expected a sentence"),
        ("", "{} is empty, expected a pair of sentences a line"),
    ],
)
def test_a_bad_file_of_pairs_is_one_sentence(tmp_path, text, sentence):
    path = write(tmp_path / "pairs.tsv", text)
    with pytest.raises(UserError) as error:
        read_tab_separated_pairs(path)
    assert str(error.value) == sentence.format(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*missing: no such file"):
        read_sentences(tmp_path / "missing")
    with pytest.raises(UserError, match=r"plain\.gz is not a whole gzip file: not a gzipped file"):
        (tmp_path / "plain.gz").write_text("one\n")
        read_sentences(tmp_path / "plain.gz")
    cut = write(tmp_path / "cut.gz", "one\n" * 1000).read_bytes()[:-20]
    (tmp_path / "cut.gz").write_bytes(cut)
    with pytest.raises(UserError, match=r"cut\.gz is not a whole gzip file"):
        read_sentences(tmp_path / "cut.gz")
