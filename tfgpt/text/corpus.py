"""The documents that a model learns from."""

import glob
import os
import pathlib
import sysconfig
import tokenize

from tfgpt.errors import UserError

# The corpus that is on every machine: the Python standard library's own source.
STDLIB = "stdlib"

# What may not be installed beside it, or is not the library itself.
STDLIB_WITHOUT = {
    "__pycache__",
    "dist-packages",
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}


def read_documents(sources, max_bytes=None):
    """Reads the documents of several sources, one after the other.

    Args:
        sources: a list of names, each a file (one document), a folder (every file in it and below, in order, but
            hidden ones), a glob ("books/**/*.txt"), or "stdlib", the Python standard library's source. A file that
            several of them name is read once, so that no document is both learned and held out.
        max_bytes: stop before the document that would bring the text past this many UTF-8 bytes; the first document
            always comes.

    Returns:
        An iterator of str, without documents that are empty or white space; line ends are line feeds.

    Raises:
        UserError: if a source matches no file; and while reading, if a file is not UTF-8 or if there is no text at all.

    Example:

    >>> document = next(read_documents(["stdlib"]))
    >>> document.splitlines()[0]
    '\"\"\"Record of phased-in incompatible language changes.'
    """
    if isinstance(sources, (str, os.PathLike)):
        sources = [sources]
    sources = [os.fspath(source) for source in sources]
    if not sources:
        raise UserError("no text was named; expected files, folders, globs or 'stdlib'")
    readers = {}  # by path; a dict keeps the order
    for source in sources:
        for path in _find_files(source):
            readers.setdefault(path, _read_python_source if source == STDLIB else _read_utf8)
    # The files are looked for here, at the call, and read in the generator.
    return _read_files(readers, sources, max_bytes)


def _find_files(source):
    path = pathlib.Path(source)
    if source == STDLIB:
        return _find_stdlib_files()
    if path.is_dir():
        paths = _walk(path, without=lambda name: name.startswith("."))
    elif path.exists():
        paths = [path]
    else:
        paths = [pathlib.Path(match) for match in sorted(glob.glob(source, recursive=True)) if os.path.isfile(match)]
    if not paths:
        found = "is a folder that holds" if path.is_dir() else "matches"
        raise UserError(f"{source} {found} no file; expected a file, a folder of files, a glob or '{STDLIB}'")
    return [pathlib.Path(os.path.abspath(path)) for path in paths]


def _find_stdlib_files():
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    paths = [path for path in _walk(root, without=STDLIB_WITHOUT.__contains__) if path.suffix == ".py"]
    if not paths:
        raise UserError(f"{root} holds no Python source; expected the standard library, or name another text")
    return paths


def _walk(root, without):
    """Every file below `root`, sorted by relative path; names for which `without` is true are left out."""
    paths = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not without(name)]
        paths += [pathlib.Path(folder, name) for name in files if not without(name)]
    return sorted(paths, key=lambda path: path.relative_to(root).parts)


def _read_files(readers, sources, max_bytes):
    size = 0
    for path, read in readers.items():
        document = read(path)
        if document is None or not document.strip():
            continue
        document_size = len(document.encode("utf-8"))
        if max_bytes is not None and size and size + document_size > max_bytes:
            return
        size += document_size
        yield document
    if not size:
        verb = "holds" if len(sources) == 1 else "hold"
        raise UserError(f"{', '.join(sources)} {verb} no text; expected a file that is not empty or white space")


def _read_utf8(path):
    try:
        document = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text: found byte 0x{error.object[error.start]:02x} at offset {error.start}; "
            f"expected text files alone, which a glob such as '{path.parent}/*.txt' can pick out"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    return document.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _read_python_source(path):
    """The text in the encoding that the file declares, or None if it is not in it: some exist to be broken."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None
