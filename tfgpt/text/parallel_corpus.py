"""Sentences and their translations: two files aligned line by line, or one of tab-separated pairs; plain or .gz."""

from __future__ import annotations

import dataclasses
import gzip
import os
import zlib

from tfgpt.errors import UserError


@dataclasses.dataclass(frozen=True)
class SentencePairs:
    """Sentences and their translations.

    Attributes:
        sources, targets: lists of str, none of them empty, of the same length.
        source_name, target_name: of the files, for messages.
        lines: the line of each pair in them; by default pair i stands on line i + 1.
    """

    sources: list
    targets: list
    source_name: str = "the sources"
    target_name: str = "the targets"
    lines: list | None = None

    def line(self, pair):
        """The line of a pair in the files."""
        return pair + 1 if self.lines is None else self.lines[pair]

    def __len__(self):
        return len(self.sources)


def read_sentence_pairs(source, target):
    """Reads two files of which line i of the second is the translation of line i of the first.

    Args:
        source, target: paths of UTF-8 text, a sentence a line; names that end in .gz are gzip files.

    Raises:
        UserError: if the files have different numbers of lines, or an empty one, or cannot be read.
    """
    sources, targets = read_sentences(source), read_sentences(target)
    if len(sources) != len(targets):
        short, long = (source, target) if len(sources) < len(targets) else (target, source)
        line = min(len(sources), len(targets)) + 1
        raise UserError(
            f"{source} has {len(sources)} lines and {target} {len(targets)}, expected as many in both: line {line} of "
            f"{long} has no counterpart in {short}"
        )
    return SentencePairs(sources, targets, os.fspath(source), os.fspath(target))


def read_tab_separated_pairs(path):
    """Reads a file of lines `source TAB target`.

    Raises:
        UserError: if a line has not two columns, or an empty one, or the file cannot be read.
    """
    pairs = []
    for number, line in enumerate(_lines(path), start=1):
        columns = line.split("\t")
        if len(columns) != 2:
            raise UserError(f"{path}, line {number}: found {len(columns)} columns, expected source TAB target")
        if not all(column.strip() for column in columns):
            side = "source" if not columns[0].strip() else "target"
            raise UserError(f"{path}, line {number}: the {side} is empty, expected a sentence")
        pairs.append([column.strip() for column in columns])
    if not pairs:
        raise UserError(f"{path} is empty, expected a pair of sentences a line")
    sources, targets = map(list, zip(*pairs, strict=True))
    return SentencePairs(sources, targets, os.fspath(path), os.fspath(path))


def read_sentences(path):
    """The lines of a text file, none of them empty, without white space around them.

    Args:
        path: of UTF-8 text; a name that ends in .gz is a gzip file.

    Raises:
        UserError: if a line is empty, or the file cannot be read.
    """
    sentences = [line.strip() for line in _lines(path)]
    if not sentences:
        raise UserError(f"{path} is empty, expected a sentence a line")
    if not all(sentences):
        raise UserError(f"{path}, line {sentences.index('') + 1}: found an empty line, expected a sentence on each")
    return sentences


def _lines(path):
    path = os.fspath(path)
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            lines = file.read().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file: {str(error).lower()}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            # A line ends at a line feed alone: characters that str.splitlines takes for line ends stand in sentences.
            lines[number - 1] = line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {number}: found bytes that are no UTF-8, expected UTF-8 text") from error
    return lines
