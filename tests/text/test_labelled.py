import gzip
import json

import pytest

from tfgpt.errors import UserError
from tfgpt.text import (
    BytePairTokenizer,
    CharacterTokenizer,
    LabelledText,
    class_numbers,
    collect_labels,
    encode_labelled,
    read_labelled,
)

ROWS = [("a fine, warm film", "good"), ('dull "art"', "bad"), ("naïve 🎉", "good")]

FILES = {
    "no_header.tsv": "".join(f"{text}\t{label}\n" for text, label in ROWS),
    "no_last_line_feed.tsv": "\n".join(f"{text}\t{label}" for text, label in ROWS),
    "carriage_returns.tsv": "".join(f"{text}\t{label}\r\n" for text, label in ROWS),
    "byte_order_mark.tsv": "\ufeffsentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS),
    "header.tsv": "id\tLabel\tSentence\n"
    + "".join(f"{i}\t{label}\t {text} \n" for i, (text, label) in enumerate(ROWS)),
    "quoted.csv": 'text,label\n"a fine, warm film",good\n"dull ""art""",bad\nnaïve 🎉,good\n',
    "no_header.csv": '"a fine, warm film",good\n"dull ""art""",bad\nnaïve 🎉,good\n',
    "fields.jsonl": "".join(json.dumps({"n": 1, "class": label, "review": text}) + "\n" for text, label in ROWS),
}


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def pairs(examples):
    return [(example.text, example.label) for example in examples]


# === What is read ===


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("compressed", [False, True])
def test_kinds_of_files(name, compressed, tmp_path):
    contents = FILES[name].encode()
    path = write(tmp_path, name + ".gz" * compressed, gzip.compress(contents) if compressed else contents)
    examples = read_labelled([path])
    assert pairs(examples) == ROWS
    header = name == "header.tsv" or "quoted" in name or "mark" in name
    assert [example.place for example in examples] == [f"{path}, line {line + header}" for line in (1, 2, 3)]


def test_several_files_in_order(tmp_path):
    paths = [write(tmp_path, name, FILES[name]) for name in ("no_header.tsv", "fields.jsonl")]
    assert pairs(read_labelled(paths)) == ROWS * 2


@pytest.mark.parametrize("columns", [("Words", "stars"), ("words", "STARS")])
def test_named_columns(columns, tmp_path):
    path = write(tmp_path, "f.csv", "text,Words,stars\nx,dull,1\ny,fine,5\n")
    assert pairs(read_labelled([path], *columns)) == [("dull", "1"), ("fine", "5")]
    path = write(tmp_path, "f.jsonl", '{"text": "x", "words": "dull", "stars": 1}\n')
    assert pairs(read_labelled([path], "words", "stars")) == [("dull", "1")]


def test_numbered_columns(tmp_path):
    path = write(tmp_path, "f.tsv", "1\tx\tdull\n5\ty\tfine\n")
    assert pairs(read_labelled([path], "3", "1")) == [("dull", "1"), ("fine", "5")]


def test_a_record_of_several_lines(tmp_path):
    path = write(tmp_path, "f.csv", 'text,label\n"two\n\nlines",a\none,b\n')
    examples = read_labelled([path])
    assert pairs(examples) == [("two\n\nlines", "a"), ("one", "b")]
    assert [example.place for example in examples] == [f"{path}, line 2", f"{path}, line 5"]


def test_labels_of_json(tmp_path):
    path = write(tmp_path, "f.jsonl", '{"text": "a", "label": true}\n{"text": "b", "label": 0}\n')
    assert [example.label for example in read_labelled([path])] == ["true", "0"]


# === What is refused ===


@pytest.mark.parametrize(
    "name, contents, message",
    [
        ("f.txt", "a\tb\n", "f.txt is no file of labelled text, expected a name that ends in .tsv, .csv, .jsonl"),
        ("f.tsv", "", "f.tsv holds no labelled text, expected at least one line"),
        ("f.csv", "text,label\n", "f.csv holds no labelled text"),
        ("f.tsv", "a\tb\nc\n", "f.tsv, line 2 has 1 columns, expected 2 as in line 1"),
        ("f.tsv", "a\tb\n\nc\td\n", "f.tsv, line 2 is empty, expected a text and its label"),
        ("f.csv", "a,b\n\nc,d\n", "f.csv, line 2 is empty, expected a text and its label"),
        ("f.jsonl", '{"text": "a", "label": 1}\n\n', "f.jsonl, line 2 is empty"),
        ("f.tsv", "a\tb\n \tc\n", "f.tsv, line 2 has an empty text, expected some characters"),
        ("f.tsv", "a\tb\nd\t \n", "f.tsv, line 2 has an empty label"),
        ("f.tsv", "a\tb\tc\n", r"f.tsv, line 1 has the columns a, b, c, expected one for the text \(text, sentence"),
        ("f.csv", "text,stars\na,b\n", r"line 1 has the columns text, stars, expected one for the label \(label, cl"),
        ("f.csv", 'text,label\n"a"b,c\n', "f.csv, line 2 is malformed, expected CSV: .*"),
        ("f.csv", 'text,label\n"a\nb,c\n', "f.csv, line 2 is malformed, expected CSV: unexpected end of data"),
        ("f.tsv", b"a\tb\n\xff\tc\n", "f.tsv, line 2 is not UTF-8"),
        ("f.jsonl", "{}{}\n", "f.jsonl, line 1 is malformed, expected a JSON object"),
        ("f.jsonl", "[1]\n", "f.jsonl, line 1 holds a JSON list, expected an object"),
        ("f.jsonl", '{"label": "b"}\n', "f.jsonl, line 1 has the fields label, expected one named 'text'"),
        ("f.jsonl", '{"text": 3, "label": "b"}\n', "f.jsonl, line 1 has the text 3, expected a string"),
        (
            "f.jsonl",
            '{"text": "a", "label": null}\n',
            "f.jsonl, line 1 has the label null, expected a string or an int",
        ),
        ("f.tsv.gz", b"no gzip", "cannot read .*f.tsv.gz: not a gzipped file"),
        (
            "f.tsv.gz",
            gzip.compress(b"a\tb\n" * 999, mtime=0)[:-9],
            "cannot read .*f.tsv.gz: compressed file ended before",
        ),
    ],
)
def test_bad_files(name, contents, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_labelled([write(tmp_path, name, contents)])


def test_bad_columns(tmp_path):
    path = write(tmp_path, "f.csv", "text,label\na,b\n")
    with pytest.raises(UserError, match="line 1 has the columns text, label, expected one named 'stars'"):
        read_labelled([path], label_column="stars")
    with pytest.raises(UserError, match="line 1 has 2 columns, expected a number 3"):
        read_labelled([path], "1", "3")
    with pytest.raises(UserError, match=r"missing.tsv is missing, expected a file"):
        read_labelled([tmp_path / "missing.tsv"])


# === Labels ===


def texts(*labels):
    return [LabelledText("a", label, f"f.tsv, line {line}") for line, label in enumerate(labels, 1)]


@pytest.mark.parametrize(
    "found, expected",
    [(["b", "a", "b"], ["a", "b"]), (["10", "9", "-1"], ["-1", "9", "10"]), (["10", "x"], ["10", "x"])],
)
def test_labels_are_collected_in_order(found, expected):
    assert collect_labels(texts(*found)) == expected


def test_one_class_only():
    with pytest.raises(UserError, match="^f.tsv has the label 'a' in all 2 texts, expected 2 classes or more"):
        collect_labels(texts("a", "a"))


def test_a_label_that_training_has_not():
    assert class_numbers(texts("b", "a"), ["a", "b"]) == [1, 0]
    with pytest.raises(UserError, match="^f.tsv, line 2 has the label 'c', expected one of those of training: a, b"):
        class_numbers(texts("a", "c"), ["a", "b"])


# === Tokens ===


def test_long_texts():
    tokenizer = BytePairTokenizer.train(["abc"], vocabulary_size=257)
    examples = [LabelledText("abc", "x", "f.tsv, line 1"), LabelledText("abcdef", "y", "f.tsv, line 2")]
    with pytest.raises(
        UserError, match="^f.tsv, line 2 has a text of 6 tokens, expected at most the window's 4; --tru"
    ):
        encode_labelled(tokenizer, examples, window=4)
    assert encode_labelled(tokenizer, examples, 4, truncate=True) == [tokenizer.encode(x) for x in ("abc", "abcd")]


def test_a_text_that_the_tokenizer_cannot_read():
    with pytest.raises(UserError, match="^f.tsv, line 2: the character 'z' is not in the vocabulary"):
        encode_labelled(
            CharacterTokenizer.train(["abc"]),
            [LabelledText("a", "x", "f.tsv, line 1"), LabelledText("z", "y", "f.tsv, line 2")],
            window=4,
        )
