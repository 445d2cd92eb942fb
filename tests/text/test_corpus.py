import ast

import pytest

from tfgpt.errors import UserError
from tfgpt.text import corpus, find_documents, read_documents
from tfgpt.text.corpus import TextFile


@pytest.fixture
def folder(tmp_path):
    files = {
        "b.txt": "second",
        "a.txt": "first",
        "nested/deep/c.txt": "third",
        "nested/d.md": "fourth",
        ".hidden": "no",
        ".git/config": "no",
        "nested/.secret.txt": "no",
        "empty.txt": "",
        "white.txt": " \n\t\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_a_file_is_one_document(folder):
    assert list(read_documents([str(folder / "a.txt")])) == ["first"]
    assert list(read_documents(folder / "a.txt")) == ["first"]


def test_a_folder_is_read_in_order_without_hidden_files(folder):
    assert list(read_documents([str(folder)])) == ["first", "second", "fourth", "third"]


def test_a_glob(folder):
    assert list(read_documents([str(folder / "*.txt")])) == ["first", "second"]
    assert list(read_documents([str(folder / "**/*.txt")])) == ["first", "second", "third"]


def test_a_name_with_brackets_is_a_file_first(folder):
    (folder / "[a].txt").write_text("brackets")
    assert list(read_documents([str(folder / "[a].txt")])) == ["brackets"]


def test_sources_keep_their_order_and_files_come_once(folder):
    sources = [str(folder / "b.txt"), str(folder / "*.txt"), str(folder / "nested" / ".." / "b.txt")]
    assert list(read_documents(sources)) == ["second", "first"]


def test_line_ends_and_byte_order_mark(tmp_path):
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert list(read_documents([str(tmp_path)])) == ["one\ntwo\nthree\n"]


@pytest.mark.parametrize(
    "max_bytes, expected",
    [(1, ["é" * 5]), (10, ["é" * 5]), (19, ["é" * 5]), (20, ["é" * 5, "b" * 10]), (99, ["é" * 5, "b" * 10])],
)
def test_max_bytes_counts_whole_documents_in_utf_8(tmp_path, max_bytes, expected):
    (tmp_path / "a").write_text("é" * 5, encoding="utf-8")
    (tmp_path / "b").write_text("b" * 10)
    assert list(read_documents([str(tmp_path)], max_bytes=max_bytes)) == expected


def test_stdlib():
    documents = list(read_documents(["stdlib"], max_bytes=500_000))
    assert documents == list(read_documents(["stdlib"], max_bytes=500_000))
    assert 300_000 < sum(len(document.encode()) for document in documents) <= 500_000
    for document in documents:
        ast.parse(document)


def test_stdlib_leaves_out_what_is_not_the_library():
    from tfgpt.text.corpus import _find_stdlib_files

    paths = _find_stdlib_files()
    assert len(paths) > 300
    assert any(path.name == "argparse.py" for path in paths)
    parts = {part for path in paths for part in path.parts[-4:]}
    assert not parts & {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "turtledemo"}


def test_stdlib_skips_source_that_is_not_in_its_encoding(tmp_path):
    (tmp_path / "bad.py").write_bytes(b"# caf\xe9\n")
    (tmp_path / "unknown.py").write_bytes(b"# -*- coding: klingon -*-\n")
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\n# caf\xe9\n")
    assert list(TextFile(str(tmp_path / "bad.py"), 8, is_python=True).blocks()) == []
    assert list(TextFile(str(tmp_path / "unknown.py"), 26, is_python=True).blocks()) == []
    [text] = TextFile(str(tmp_path / "latin.py"), 34, is_python=True).blocks()
    assert text.endswith("café\n")


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 7, 1000])
def test_blocks_change_no_character(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(corpus, "BLOCK_BYTES", block_bytes)
    text = "naïve\r\n日本語\r\r\n👍🏽 end\r"
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbf" + text.encode())
    [document] = find_documents([str(tmp_path / "text")])
    blocks = list(document.blocks())
    assert "".join(blocks) == text.replace("\r\n", "\n").replace("\r", "\n")
    assert max(map(len, blocks)) <= block_bytes + 1
    (tmp_path / "text").write_bytes(text.encode() + b"abc\xff\xd8")
    with pytest.raises(UserError, match=f"found byte 0xff at offset {len(text.encode()) + 3};"):
        list(find_documents([str(tmp_path / "text")])[0].blocks())


def test_cuts_between_characters(tmp_path):
    data = "aé日👍\r\nz".encode()
    (tmp_path / "text").write_bytes(data)
    document = TextFile(str(tmp_path / "text"), len(data))
    cuts = [document.cut(near) for near in range(len(data))]
    assert cuts == [0, 1, 3, 3, 6, 6, 6, 10, 10, 10, 10, 12, 12]
    for cut in cuts:
        parts = ["".join(document.blocks(0, cut)), "".join(document.blocks(cut))]
        assert "".join(parts) == "aé日👍\nz"


@pytest.mark.parametrize("name", ["missing.txt", "*.nothing", "[a].txt"])
def test_nothing_matches(tmp_path, name):
    with pytest.raises(UserError, match="matches no file; expected a file, a folder of files, a glob or 'stdlib'"):
        read_documents([str(tmp_path / name)])  # at the call, before anything is read


def test_folder_without_files(tmp_path):
    with pytest.raises(UserError, match="is a folder that holds no file"):
        read_documents([str(tmp_path)])


def test_no_sources():
    with pytest.raises(UserError, match="no text was named"):
        read_documents([])


def test_not_utf_8(tmp_path):
    (tmp_path / "image.bin").write_bytes(b"abc\xff\xd8")
    with pytest.raises(UserError, match="image.bin is not UTF-8 text: found byte 0xff at offset 3; .* glob such as"):
        list(read_documents([str(tmp_path)]))


def test_no_text(tmp_path):
    (tmp_path / "white.txt").write_text(" \n")
    with pytest.raises(UserError, match="white.txt holds no text"):
        list(read_documents([str(tmp_path / "white.txt")]))
