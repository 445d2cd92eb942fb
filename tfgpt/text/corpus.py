"""The documents that a model learns from."""

import codecs
import contextlib
import dataclasses
import glob
import io
import os
import pathlib
import sysconfig
import tokenize

from tfgpt.errors import UserError

# The corpus that is on every machine: the Python standard library's own source.
STDLIB = "stdlib"

BLOCK_BYTES = 2**20

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


@dataclasses.dataclass(frozen=True, slots=True)
class TextFile:
    """A document in a file, which is read block by block.

    Attributes:
        path: a str, for there may be millions of them.
        num_bytes: the size of the file.
        is_python: whether it is in the encoding that it declares, as Python's source is; else it is UTF-8.
    """

    path: str
    num_bytes: int
    is_python: bool = False

    def blocks(self, start=0, stop=None):
        """The text from byte `start` to byte `stop` in blocks of about `BLOCK_BYTES`, with line feeds as line ends.

        Raises:
            UserError: if the file is not UTF-8 or cannot be read.
        """
        if self.is_python:
            return _read_python_source(self.path).blocks(start, stop)
        return _utf8_blocks(self.path, start, stop)

    def cut(self, near):
        """The first byte from `near` on at which a character begins; no line end is torn apart."""
        if self.is_python:
            return _read_python_source(self.path).cut(near)
        with _readable(self.path), open(self.path, "rb") as file:
            file.seek(max(near - 1, 0))
            return near + _up_to_character(file.read(1) if near else b"", file.read(4))


@dataclasses.dataclass(frozen=True, slots=True)
class TextString:
    """A document in memory, with what `TextFile` has.

    Attributes:
        text: a str.
    """

    text: str

    @property
    def num_bytes(self):
        return len(self._bytes)

    def blocks(self, start=0, stop=None):
        for text in [self._bytes[start:stop].decode("utf-8", "surrogatepass")] if self.text else ():
            yield from (text[i : i + BLOCK_BYTES] for i in range(0, len(text), BLOCK_BYTES))

    def cut(self, near):
        return near + _up_to_character(self._bytes[:near][-1:], self._bytes[near : near + 4])

    @property
    def _bytes(self):
        return self.text.encode("utf-8", "surrogatepass")  # the tokenizer will say what is wrong with a surrogate


def _up_to_character(before, around):
    """How many of the bytes `around` belong to the character, or line end, that began with the one `before`."""
    if before == b"\r" and around[:1] == b"\n":
        return 1
    return next((i for i, byte in enumerate(around) if not 0x80 <= byte < 0xC0), 0)


def find_documents(sources, max_bytes=None):
    """Looks for the documents of several sources, one after the other; reads no more of them than their beginnings.

    Args:
        sources: a list of names, each a file (one document), a folder (every file in it and below, in order, but
            hidden ones), a glob ("books/**/*.txt"), or "stdlib", the Python standard library's source. A file that
            several of them name is taken once, so that no document is both learned and held out.
        max_bytes: stop before the document that would bring the text past this many bytes; the first document always
            comes.

    Returns:
        A list of `TextFile`, without documents that are empty or white space.

    Raises:
        UserError: if a source matches no file, or if there is no text at all.

    Example:

    >>> [document] = find_documents(["stdlib"], max_bytes=1)
    >>> next(document.blocks()).splitlines()[0]
    '\"\"\"Record of phased-in incompatible language changes.'
    """
    if isinstance(sources, (str, os.PathLike)):
        sources = [sources]
    sources = [os.fspath(source) for source in sources]
    if not sources:
        raise UserError("no text was named; expected files, folders, globs or 'stdlib'")
    files = {}  # by path; a dict keeps the order
    for source in sources:
        for path in _find_files(source):
            files.setdefault(os.fspath(path), source == STDLIB)
    documents, size = [], 0
    for path, is_python in files.items():
        with _readable(path):
            document = TextFile(path, os.path.getsize(path), is_python)
        if not document.num_bytes or not any(block.strip() for block in document.blocks()):
            continue
        size += document.num_bytes
        if max_bytes is not None and documents and size > max_bytes:
            break
        documents.append(document)
    if not documents:
        verb = "holds" if len(sources) == 1 else "hold"
        raise UserError(f"{', '.join(sources)} {verb} no text; expected a file that is not empty or white space")
    return documents


def read_documents(sources, max_bytes=None):
    """Reads the documents of several sources whole, one after the other.

    Args:
        sources, max_bytes: as in `find_documents`.

    Returns:
        An iterator of str; line ends are line feeds.

    Raises:
        UserError: as `find_documents`, at the call; and while reading, if a file is not UTF-8.
    """
    # The files are looked for here, at the call, and read in the generator.
    return ("".join(document.blocks()) for document in find_documents(sources, max_bytes))


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


def _utf8_blocks(path, start, stop):
    decoder = codecs.getincrementaldecoder("utf-8")()
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    offset, stop = start, os.path.getsize(path) if stop is None else stop
    with _readable(path), open(path, "rb") as file:
        if not start and file.read(3) == codecs.BOM_UTF8:
            offset = 3
        file.seek(offset)
        while offset < stop:
            # A file that grows meanwhile is read to where it ended.
            block = file.read(min(BLOCK_BYTES, stop - offset))
            left_over = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=offset + len(block) >= stop or not block)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path} is not UTF-8 text: found byte 0x{error.object[error.start]:02x} at offset "
                    f"{offset - left_over + error.start}; expected text files alone, which a glob such as "
                    f"'{os.path.dirname(path)}/*.txt' can pick out"
                ) from error
            if not block:
                raise UserError(f"{path} became shorter while it was read; expected {stop} bytes")
            offset += len(block)
            yield line_ends.decode(text, final=offset >= stop)


def _read_python_source(path):
    """The text, which is empty if it is not in the encoding that the file declares: some exist to be broken."""
    try:
        with tokenize.open(path) as file:
            return TextString(file.read())
    except (OSError, SyntaxError, UnicodeDecodeError):
        return TextString("")


@contextlib.contextmanager
def _readable(path):
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
