"""Files and directories that appear whole or not at all: written beside their place, then renamed."""

import contextlib
import fcntl
import glob
import os
import pathlib
import shutil
import tempfile

from tfgpt.errors import UserError


@contextlib.contextmanager
def atomic_directory(path, overwrite=False):
    """Yields an empty temporary sibling of `path`, which takes its place when the block ends without an exception.

    Raises:
        UserError: if `path` holds something and `overwrite` is false, or if it cannot be written.
    """
    path = pathlib.Path(path).resolve()  # a link stays, and what it points to is replaced
    expect_free(path, overwrite)
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        lock = os.open(temporary, os.O_RDONLY)
        try:
            with contextlib.suppress(
                OSError
            ):  # some network file systems lock no directories; they are not swept either
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield temporary
            temporary.chmod(0o777 & ~_umask())  # mkdtemp's directories are private
            _replace(temporary, path)
        finally:
            os.close(lock)
            shutil.rmtree(temporary, ignore_errors=True)


def expect_free(path, overwrite=False):
    """Raises a `UserError` if `path` holds something and `overwrite` is false."""
    path = pathlib.Path(path).resolve()
    if path.exists() and not overwrite and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already and is not an empty directory; expected a new one")


@contextlib.contextmanager
def atomic_file(path):
    """Yields a temporary sibling's path, renamed to `path` when the block ends without an exception.

    Raises:
        UserError: if it cannot be written.
    """
    path = pathlib.Path(path).absolute()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with _writable(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.chmod(0o666 & ~_umask())  # some writers make private files
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Writes a UTF-8 file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sweep(path):
    """Removes what writers of `path` left that were killed: a living one holds a lock."""
    for abandoned in path.parent.glob(f".{glob.escape(path.name)}.{'?' * 8}.partial"):  # mkdtemp's eight characters
        with contextlib.suppress(OSError):
            lock = os.open(abandoned, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(abandoned, ignore_errors=True)
            finally:
                os.close(lock)


def _replace(new, path):
    if not path.exists():
        os.rename(new, path)
        return
    old = new.with_name(new.name + ".old")
    os.rename(path, old)  # a directory that is not empty cannot be renamed over
    try:
        os.rename(new, path)
    except BaseException:  # also Ctrl-C
        os.rename(old, path)
        raise
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink()


def _umask():
    mask = os.umask(0)  # there is no way to read it but to set it
    os.umask(mask)
    return mask


@contextlib.contextmanager
def _writable(path):
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from error
