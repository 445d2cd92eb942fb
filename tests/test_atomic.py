import stat

import pytest

from tfgpt.atomic import atomic_directory, atomic_file, write_text
from tfgpt.errors import UserError


def contents(directory):
    return {path.name: path.read_text() for path in directory.iterdir()}


# === Directories ===


def test_a_directory_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "deep" / "out"
    with atomic_directory(path) as temporary:
        (temporary / "file").write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename does not cross file systems
    assert contents(path) == {"file": "new"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, UserError])
def test_nothing_is_left_of_a_directory_on_an_exception(tmp_path, error):
    with pytest.raises(error, match="stopped"):
        with atomic_directory(tmp_path / "out") as temporary:
            (temporary / "file").write_text("half")
            raise error("stopped")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_holds_something_is_refused_before_the_block(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("old")
    with pytest.raises(UserError, match="out exists already and is not an empty directory; expected a new one"):
        with atomic_directory(out):
            pytest.fail("the block ran")
    assert contents(out) == {"mine": "old"}


def test_a_file_is_refused_as_a_directory(tmp_path):
    (tmp_path / "out").write_text("old")
    with pytest.raises(UserError, match="exists already"):
        with atomic_directory(tmp_path / "out"):
            pytest.fail("the block ran")
    assert contents(tmp_path) == {"out": "old"}


def test_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_directory(tmp_path / "out") as temporary:
        (temporary / "file").write_text("new")
    assert contents(tmp_path / "out") == {"file": "new"}
    assert len(list(tmp_path.iterdir())) == 1


def test_overwriting_replaces_the_whole_directory(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with atomic_directory(out, overwrite=True) as temporary:
        (temporary / "new").write_text("new")
        assert contents(out) == {"old": "old"}
    assert contents(out) == {"new": "new"}
    assert list(tmp_path.iterdir()) == [out]


def test_a_failed_overwrite_keeps_the_old_directory(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(ZeroDivisionError):
        with atomic_directory(out, overwrite=True) as temporary:
            (temporary / "new").write_text("new")
            raise ZeroDivisionError
    assert contents(out) == {"old": "old"}
    assert list(tmp_path.iterdir()) == [out]


def test_overwriting_a_file_with_a_directory(tmp_path):
    out = tmp_path / "out"
    out.write_text("old")
    with atomic_directory(out, overwrite=True) as temporary:
        (temporary / "new").write_text("new")
    assert contents(out) == {"new": "new"}
    assert list(tmp_path.iterdir()) == [out]


def test_overwriting_through_a_link_replaces_what_it_points_to(tmp_path):
    target, out = tmp_path / "target", tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    out.symlink_to(target)
    with atomic_directory(out, overwrite=True) as temporary:
        (temporary / "new").write_text("new")
    assert out.is_symlink()
    assert contents(target) == {"new": "new"}
    assert {path.name for path in tmp_path.iterdir()} == {"out", "target"}


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "out"
    with pytest.raises(UserError, match=f"^cannot write {path}: [a-z ]+$"):
        with atomic_directory(path):
            pytest.fail("the block ran")
    assert contents(tmp_path) == {"file": ""}


def test_a_failed_write_in_the_block_is_one_sentence(tmp_path):
    with pytest.raises(UserError) as error:
        with atomic_directory(tmp_path / "out") as temporary:
            (temporary / "no such folder" / "file").write_text("")
    assert str(error.value) == f"cannot write {tmp_path / 'out'}: no such file or directory"
    assert list(tmp_path.iterdir()) == []


# === Files ===


def test_a_file_appears_when_the_block_ends_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "deep" / "file"
    for text in ("first", "second"):
        with atomic_file(path) as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert contents(path.parent) == {"file": text}


def test_a_file_stays_as_it_was_on_an_exception(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError
    assert contents(tmp_path) == {"file": "old"}


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        with atomic_file(tmp_path / "file"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    with pytest.raises(UserError, match="^cannot write .*folder: is a directory$"):
        write_text(tmp_path / "folder", "text")
    with pytest.raises(UserError, match="^cannot write .*mine/file: "):
        write_text(tmp_path / "folder" / "mine" / "file", "text")
    assert contents(tmp_path / "folder") == {"mine": "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_text_is_utf8(tmp_path):
    write_text(tmp_path / "file", "Ω\n")
    assert (tmp_path / "file").read_bytes() == b"\xce\xa9\n"
