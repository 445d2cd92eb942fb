"""TensorFlow Serving's base paths: a release's SavedModel becomes their next version, or a version is withdrawn.

A base path holds one directory a version, named by an integer. TensorFlow Serving looks at it every second, loads what
appears and unloads what is gone; other names it ignores. So a version is copied under a hidden name and renamed when it
is whole, and withdrawn by a rename to a hidden name. The base path itself is never replaced: it may be mounted in a
container, which would go on seeing the old directory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import pathlib
import re
import secrets
import shutil

from tfgpt.base_path import HIGHEST, versions_of
from tfgpt.errors import UserError
from tfgpt.runtime.release_files import change, read_manifest

# Locked while versions are numbered, renamed and pruned; holds the highest number ever given.
NUMBER_FILE = ".last_version"
TAKEN = re.compile(r"(\d+)|\.(\d+)\.withdrawn", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Published:
    """A version that stands: its directory, its source, and the versions that were pruned for it."""

    path: pathlib.Path
    source: pathlib.Path
    pruned: list[int]


@dataclasses.dataclass(frozen=True)
class Withdrawn:
    """What a rollback did: the version that is the newest now, and where the withdrawn ones lie, by number."""

    newest: int
    paths: dict[int, pathlib.Path]


def publish_version(release, models, keep=None):
    """Puts a release's SavedModel into its base path as the next version, which appears whole or not at all.

    Its files are compared with the release's manifest before they are copied, and the copies after. Several may publish
    at once: each takes a number of its own. A number is never given twice, also not after a rollback.

    Args:
        release: a release directory that has a SavedModel.
        models: the directory of base paths; that of the release's model is made if need be.
        keep: leave this many versions, the newest ones, and remove the others once the new one stands; None keeps all.
            Versions that were withdrawn do not count and are never removed: a rollback loses nothing.

    Returns:
        A `Published`.

    Raises:
        UserError: if the release has no SavedModel or a damaged one, `keep` is below 1, `models` cannot be written, or
            the highest number is taken.
    """
    if keep is not None and keep < 1:
        raise UserError(f"keep is {keep}, expected at least 1: the version that is published stays")
    release = pathlib.Path(release)
    with _one_sentence(f"cannot publish {release} in {models}"):
        source = _newest_saved_model(release)
        files = _checked_files(release, source)
        base_path = pathlib.Path(models) / source.parent.name
        if base_path.resolve().is_relative_to(release.resolve()):
            raise UserError(f"{models} lies in the release {release}, expected a directory outside of it")
        base_path.mkdir(parents=True, exist_ok=True)
        with _hidden_copy(source, files, base_path) as copy, _locked(base_path) as numbers:
            path = _rename_to_next_number(copy, base_path, numbers)
            with _one_sentence(f"{path} is published, but older versions cannot be removed"):
                _to_disk(base_path)  # the new name, before the old ones go
                pruned = _prune(base_path, keep)
    return Published(path, source, pruned)


def withdraw_versions(base_path, to=None):
    """Takes back the newest version of a base path, or all that are newer than one, by renames to hidden names.

    Args:
        base_path: the directory that holds a model's versions.
        to: the version to go back to; by default the one before the newest.

    Returns:
        A `Withdrawn`.

    Raises:
        UserError: if there is no such version, none before the newest, or the base path cannot be written.
    """
    base_path = pathlib.Path(base_path)
    with _one_sentence(f"cannot roll back {base_path}"):
        if not versions_of(base_path):
            raise UserError(f"{base_path} has no versions, expected a base path: MODELS/NAME with directories 1, 2, …")
        with _locked(base_path):
            return _withdraw(base_path, to)


def _newest_saved_model(release):
    """RELEASE/saved_model/NAME/VERSION, of the one model that a release has."""
    found = sorted(path for path in (release / "saved_model").glob("*") if versions_of(path))
    if not found:
        if not release.is_dir():
            raise UserError(f"{release} does not exist, expected a release directory")
        message = "expected a release directory that was exported with --formats saved_model"
        raise UserError(f"{release} has no SavedModel in saved_model/NAME/1, {message}")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{release}/saved_model has {len(found)} models ({names}), expected one")
    return list(versions_of(found[0]).values())[-1]


def _checked_files(release, source):
    """The manifest's entries for the files of a SavedModel, by their names inside it, all compared with it.

    Raises:
        UserError: if one is missing, changed, or unknown to the manifest, and so proved by no parity check.
    """
    prefix = f"{source.relative_to(release).as_posix()}/"
    entries = read_manifest(release)["files"]
    files = {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}
    found = {path.relative_to(source).as_posix() for path in source.rglob("*") if not path.is_dir()}
    if unknown := sorted(found - set(files)):
        raise UserError(f"{source / unknown[0]} is not in {release}/manifest.json, expected only files that are")
    # Names that climb out of the SavedModel are not found in it, and so are missing.
    if missing := sorted({"saved_model.pb", *files} - found):
        raise UserError(f"{source / missing[0]} is missing, expected the file as in {release}/manifest.json")
    _compare(source, files)
    return files


def _compare(directory, files):
    for name, entry in files.items():
        if wrong := change(directory, name, entry):
            raise UserError(f"{directory / name}: {wrong}")


@contextlib.contextmanager
def _hidden_copy(source, files, base_path):
    """Yields a checked copy of a SavedModel under a hidden name in the base path; removes it if it is still there."""
    copy = base_path / f".publishing-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        copy.mkdir()
        for path in sorted(source.rglob("*")):  # a directory comes before what is in it
            target = copy / path.relative_to(source)
            if path.is_dir():
                target.mkdir()
            else:
                shutil.copyfile(path, target)
        for path in (copy, *copy.rglob("*")):
            _to_disk(path)
        _compare(copy, files)
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _to_disk(path):
    """Waits until a file, or a directory's list of names, is on the disk.

    Done for all of a copy before its rename, so that a version that stands is whole after a power cut too.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems cannot sync a directory
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(base_path):
    """Yields the file that holds the highest number given, locked against others who publish or roll back."""
    descriptor = os.open(base_path / NUMBER_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    with open(descriptor, "r+", encoding="ascii", errors="replace") as numbers:
        fcntl.flock(numbers, fcntl.LOCK_EX)  # released as the file is closed
        yield numbers


def _rename_to_next_number(copy, base_path, numbers):
    while True:
        number = _highest_number(base_path, numbers) + 1
        if number > HIGHEST:
            raise UserError(f"{base_path} has or had version {HIGHEST}, the highest there can be, expected a lower one")
        numbers.seek(0)
        numbers.truncate()
        numbers.write(f"{number}\n")
        numbers.flush()  # before the rename: a number is rather skipped than given twice
        path = base_path / str(number)
        try:
            os.rename(copy, path)
        except OSError as error:
            # Someone who takes no lock, such as `mv`, made this version meanwhile; the next number may be free.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        else:
            return path


def _highest_number(base_path, numbers):
    """The highest number that is or was a version's; 0 if there was none."""
    numbers.seek(0)
    recorded = numbers.read(len(str(HIGHEST)) + 1).strip()
    # Of files too: TensorFlow Serving takes any name that is a number for a version.
    taken = [int(match[1] or match[2]) for path in base_path.iterdir() if (match := TAKEN.fullmatch(path.name))]
    numbers_given = [int(recorded) if recorded.isdecimal() else 0, *taken]
    return max(number for number in numbers_given if number <= HIGHEST)


def _prune(base_path, keep):
    """Removes all but the newest `keep` versions; returns their numbers."""
    versions = versions_of(base_path)
    old = list(versions)[:-keep] if keep else []
    for number in old:
        # Hidden first, so that no server meets half a version.
        hidden = base_path / f".{number}.pruned-{secrets.token_hex(4)}"
        os.rename(versions[number], hidden)
        shutil.rmtree(hidden)
    return old


def _withdraw(base_path, to):
    versions = versions_of(base_path)
    to = _earlier_version(base_path, list(versions)) if to is None else to
    _check_target(base_path, versions, to)
    renamed = {}
    try:
        # From old to new, so that TensorFlow Serving goes from the newest to `to` with no stop between.
        for number in [number for number in versions if number > to]:
            hidden = base_path / f".{number}.withdrawn"
            os.rename(versions[number], hidden)
            renamed[number] = hidden
    except BaseException:  # also Ctrl-C
        for number, hidden in renamed.items():
            os.rename(hidden, versions[number])
        raise
    return Withdrawn(to, renamed)


def _earlier_version(base_path, numbers):
    if len(numbers) < 2:
        raise UserError(f"{base_path} has version {numbers[-1]} alone, expected an earlier one to go back to")
    return numbers[-2]


def _check_target(base_path, versions, to):
    if to not in versions:
        hidden = base_path / f".{to}.withdrawn"
        hint = f"; it was withdrawn, and `mv {hidden} {base_path / str(to)}` brings it back" if hidden.is_dir() else ""
        raise UserError(f"{base_path} has no version {to}, expected one of {', '.join(map(str, versions))}{hint}")
    if to == max(versions):
        raise UserError(f"version {to} is the newest of {base_path} already, expected an earlier one to go back to")


@contextlib.contextmanager
def _one_sentence(what):
    """Turns an error of the file system into a `UserError` that begins with `what`."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename2 or error.filename}: " if error.filename else ""
        raise UserError(f"{what}: {where}{(error.strerror or str(error)).lower()}") from error
