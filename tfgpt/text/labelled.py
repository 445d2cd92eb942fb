"""Labelled texts in files: TSV, CSV and JSON Lines, which may be compressed by gzip."""

import csv
import dataclasses
import gzip
import json
import pathlib
import zlib

from tfgpt.errors import UserError

# What columns are called, in any case, where the user names none: the first that there is.
TEXT_NAMES = ("text", "sentence", "content", "review", "document", "input")
LABEL_NAMES = ("label", "class", "category", "target", "sentiment", "output")

SUFFIXES = (".tsv", ".csv", ".jsonl")


@dataclasses.dataclass(frozen=True, slots=True)
class LabelledText:
    """A text and its class.

    Attributes:
        text: without white space at its ends.
        label: the name of its class.
        place: the file and line that it comes from, for messages.
    """

    text: str
    label: str
    place: str


def read_labelled(paths, text_column=None, label_column=None):
    """Reads labelled texts from files that end in `.tsv` (tabs, no quotes), `.csv` or `.jsonl`, or in these and `.gz`.

    A TSV or CSV file has a header where its first line holds the columns' names: those that are given, or one of
    `TEXT_NAMES` and one of `LABEL_NAMES`. Without a header it has two columns, text and label, or columns are given by
    number, the first of them 1.

    Args:
        paths: files.
        text_column: the name, or without a header the number, of the column or JSON field with the text.
        label_column: the same, of the label.

    Returns:
        A list of `LabelledText`s, in the files' order.

    Raises:
        UserError: for a file that is missing, of another kind, or empty; for a line that is malformed or empty, a
            column that is missing, an empty text or label; each names file and line.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "reviews.csv")
    ...     _ = path.write_text('Label,Text\\ngood,"a fine, warm film"\\nbad,dull\\n')
    ...     [(example.text, example.label) for example in read_labelled([path])]
    [('a fine, warm film', 'good'), ('dull', 'bad')]
    """
    examples = []
    for path in map(pathlib.Path, paths):
        suffix = next((part for part in reversed(path.suffixes) if part.lower() != ".gz"), "").lower()
        if suffix not in SUFFIXES:
            raise UserError(f"{path} is no file of labelled text, expected a name that ends in {', '.join(SUFFIXES)}")
        if not path.is_file():
            raise UserError(f"{path} is missing, expected a file of labelled text")
        rows = _json_rows(path) if suffix == ".jsonl" else _table_rows(path, suffix)
        columns = (_Fields if suffix == ".jsonl" else _Columns)(path, text_column, label_column)
        before = len(examples)
        for line, row in rows:
            if columns.take_header(line, row):
                continue
            text, label = columns.text_and_label(line, row)
            examples.append(LabelledText(text, label, f"{path}, line {line}"))
        if len(examples) == before:
            raise UserError(f"{path} holds no labelled text, expected at least one line of it")
    return examples


def collect_labels(examples):
    """The labels of training data, in order: as numbers if all of them are integers, else as words.

    Raises:
        UserError: if there is one alone.
    """
    labels = {example.label for example in examples}
    if len(labels) < 2:
        [label] = labels
        file = examples[0].place.rpartition(", line ")[0]
        raise UserError(f"{file} has the label {label!r} in all {len(examples)} texts, expected 2 classes or more")
    try:
        return sorted(labels, key=int)
    except ValueError:
        return sorted(labels)


def class_numbers(examples, labels):
    """The class of each example: its label's place among `labels`.

    Raises:
        UserError: for a label that is not among them.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    for example in examples:
        if example.label not in numbers:
            raise UserError(
                f"{example.place} has the label {example.label!r}, expected one of those of training: "
                f"{', '.join(labels)}"
            )
    return [numbers[example.label] for example in examples]


def encode_labelled(tokenizer, examples, window, truncate=False):
    """The token ids of each example.

    Args:
        tokenizer: a `tfgpt.text.Tokenizer`.
        examples: `LabelledText`s.
        window: the most tokens of a text.
        truncate: take the first tokens of a longer text, rather than refuse it.

    Raises:
        UserError: for a text that is longer than the window, or that the tokenizer cannot read.
    """
    try:
        rows = tokenizer.encode_batch([example.text for example in examples])
    except UserError:
        for example in examples:
            try:
                tokenizer.encode(example.text)
            except UserError as error:
                raise UserError(f"{example.place}: {error}") from error
        raise
    for example, row in zip(examples, rows, strict=True):
        if len(row) > window and not truncate:
            raise UserError(
                f"{example.place} has a text of {len(row)} tokens, expected at most the window's {window}; --truncate "
                "takes the first ones of such texts"
            )
    return [row[:window] for row in rows]


class _Columns:
    """Which columns of a TSV or CSV file hold text and label."""

    def __init__(self, path, text_column, label_column):
        self.path = path
        self.wanted = {"text": text_column, "label": label_column}
        self.known = {"text": TEXT_NAMES, "label": LABEL_NAMES}
        self.places = None
        self.width = 0

    def take_header(self, line, row):
        """Finds the columns out from the first row, and tells whether that is a header."""
        if self.places is not None:
            return False
        self.width = len(row)
        names = [cell.strip().lower() for cell in row]
        if all(self._is_number(column) for column in self.wanted.values()):
            self.places = [int(column) - 1 for column in self.wanted.values()]
            for column, place in zip(self.wanted.values(), self.places, strict=True):
                if not 0 <= place < self.width:
                    raise UserError(f"{self.path}, line {line} has {self.width} columns, expected a number {column}")
            return False
        found = {kind: self._find(kind, names) for kind in self.wanted}
        missing = [kind for kind, place in found.items() if place is None]
        if not missing:
            self.places = list(found.values())
            return True
        if not any(self.wanted.values()) and not any(place is not None for place in found.values()) and self.width == 2:
            self.places = [0, 1]
            return False
        missing = max(missing, key=lambda kind: self.wanted[kind] is not None)  # one that was named, rather
        name = f"one named {self.wanted[missing]!r}"
        if not self.wanted[missing]:
            known = ", ".join(self.known[missing])
            name = f"one for the {missing} ({known}), or --{missing}-column to name another"
        raise UserError(f"{self.path}, line {line} has the columns {', '.join(row)}, expected {name}")

    def text_and_label(self, line, row):
        if len(row) != self.width:
            raise UserError(f"{self.path}, line {line} has {len(row)} columns, expected {self.width} as in line 1")
        return self.checked(line, *(row[place] for place in self.places))

    def checked(self, line, text, label):
        text, label = text.strip(), label.strip()
        for kind, value in (("text", text), ("label", label)):
            if not value:
                raise UserError(f"{self.path}, line {line} has an empty {kind}, expected some characters")
        return text, label

    def _find(self, kind, names):
        wanted = [self.wanted[kind].lower()] if self.wanted[kind] else self.known[kind]
        return next((names.index(name) for name in wanted if name in names), None)

    @staticmethod
    def _is_number(column):
        return column is not None and str(column).isdecimal()


class _Fields(_Columns):
    """Which fields of a JSON Lines file's objects hold text and label."""

    def take_header(self, line, row):
        return False

    def text_and_label(self, line, row):
        values = []
        for kind, name in self.wanted.items():
            names = [name] if name else [known for known in self.known[kind] if known in row] or self.known[kind][:1]
            if names[0] not in row:
                fields = ", ".join(row) or "none"
                raise UserError(f"{self.path}, line {line} has the fields {fields}, expected one named {names[0]!r}")
            values.append(row[names[0]])
        text, label = values
        if not isinstance(text, str):
            raise UserError(f"{self.path}, line {line} has the text {json.dumps(text)}, expected a string")
        if not isinstance(label, (str, int)):
            raise UserError(
                f"{self.path}, line {line} has the label {json.dumps(label)}, expected a string or an integer"
            )
        return self.checked(line, text, label if isinstance(label, str) else json.dumps(label))


def _table_rows(path, suffix):
    """Pairs (line number, cells); of a CSV record of several lines the number of the first."""
    if suffix == ".tsv":
        for number, line in _lines(path):
            _check_filled(path, number, line.strip())
            yield number, line.rstrip("\r\n").split("\t")
        return
    last = 0

    def counted():
        nonlocal last
        for number, line in _lines(path):
            last = number
            yield line

    reader = csv.reader(counted(), strict=True)
    first = 1
    try:
        for row in reader:
            _check_filled(path, first, row)
            yield first, row
            first = last + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {first} is malformed, expected CSV: {error}") from error


def _json_rows(path):
    for number, line in _lines(path):
        _check_filled(path, number, line.strip())
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is malformed, expected a JSON object: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number} holds a JSON {type(row).__name__}, expected an object")
        yield number, row


def _check_filled(path, number, contents):
    if not contents:
        raise UserError(f"{path}, line {number} is empty, expected a text and its label")


def _lines(path):
    """Pairs (number, line with its end)."""
    try:
        with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(f"{path}, line {number} is not UTF-8, expected text: {error.reason}") from error
                yield number, text
    except (OSError, EOFError, zlib.error) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UserError(f"cannot read {path}: {reason}") from error
