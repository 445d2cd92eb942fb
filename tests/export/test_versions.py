import errno
import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import threading

import pytest

from tfgpt.checksum import sha256_of_file
from tfgpt.errors import UserError
from tfgpt.export import versions
from tfgpt.export.versions import publish_version, versions_of, withdraw_versions

FILES = {"saved_model.pb": "graph", "variables/variables.index": "index", "variables/variables.data": "weights" * 999}


def write_manifest(release):
    files = [path for path in sorted(release.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    entries = {
        path.relative_to(release).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
        for path in files
    }
    (release / "manifest.json").write_text(json.dumps({"files": entries}))


@pytest.fixture
def release(tmp_path):
    """What a release's SavedModel looks like from outside; publishing opens no file of it."""
    source = tmp_path / "release" / "saved_model" / "demo" / "1"
    (source / "assets").mkdir(parents=True)
    for name, text in FILES.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    write_manifest(tmp_path / "release")
    return tmp_path / "release"


@pytest.fixture
def models(tmp_path):
    return tmp_path / "models"


def names(base_path):
    return sorted(path.name for path in base_path.iterdir())


def contents(version):
    return {path.relative_to(version).as_posix(): path.read_text() for path in version.rglob("*") if path.is_file()}


def test_versions_count_up_and_hold_the_release(release, models):
    first = publish_version(release, models)
    assert first.path == models / "demo" / "1" and first.source == release / "saved_model" / "demo" / "1"
    assert contents(first.path) == FILES and (first.path / "assets").is_dir()
    assert publish_version(release, models).path == models / "demo" / "2"
    assert names(models / "demo") == [".last_version", "1", "2"]


def test_a_version_is_readable_by_others(release, models):
    """The server is another user."""
    path = publish_version(release, models).path
    plain = models / "plain"
    plain.mkdir()
    assert path.stat().st_mode == plain.stat().st_mode


def test_ten_comes_after_nine(release, models):
    for name in ("9", "10", "2"):
        (models / "demo" / name).mkdir(parents=True)
        (models / "demo" / name / "saved_model.pb").touch()
    published = publish_version(release, models, keep=2)
    assert published.path.name == "11" and published.pruned == [2, 9]
    assert list(versions_of(models / "demo")) == [10, 11]


def test_the_newest_version_of_a_release_is_published(release, models):
    shutil.copytree(release / "saved_model" / "demo" / "1", release / "saved_model" / "demo" / "10")
    (release / "saved_model" / "demo" / "10" / "saved_model.pb").write_text("newer")
    write_manifest(release)
    assert (publish_version(release, models).path / "saved_model.pb").read_text() == "newer"


def test_keep_prunes_after_the_new_version_stands(release, models, monkeypatch):
    for _ in range(3):
        publish_version(release, models)
    seen = []

    def observed(path, *arguments, **options):
        seen.append((sorted(versions_of(models / "demo")), path.name[0]))
        return remove(path, *arguments, **options)

    remove = shutil.rmtree
    monkeypatch.setattr(versions.shutil, "rmtree", observed)
    assert publish_version(release, models, keep=2).pruned == [1, 2]
    # Each was hidden before its files went; the last call looks for a copy to clean up.
    assert seen == [([2, 3, 4], "."), ([3, 4], "."), ([3, 4], ".")]
    assert names(models / "demo") == [".last_version", "3", "4"]


@pytest.mark.parametrize("keep", [0, -1])
def test_keep_below_one(release, models, keep):
    with pytest.raises(UserError, match=f"keep is {keep}, expected at least 1"):
        publish_version(release, models, keep)
    assert not models.exists()


def test_other_names_in_a_base_path_stay(release, models):
    (models / "demo").mkdir(parents=True)
    for name in ("notes.txt", "7", "-3", "²"):  # files, and what Python's int or isdigit() would take
        (models / "demo" / name).write_text("mine")
    assert publish_version(release, models, keep=1).path.name == "8"
    assert {"notes.txt", "7", "-3", "²"} < set(names(models / "demo"))


@pytest.mark.parametrize("kind", ["directory", "record", "withdrawn"])
def test_numbers_beyond_int64_are_no_versions(release, models, kind):
    base_path, number = models / "demo", "9" * 20
    base_path.mkdir(parents=True)
    (base_path / "2").mkdir()
    if kind == "record":
        (base_path / ".last_version").write_text(f"{number}\n")
    else:
        (base_path / (number if kind == "directory" else f".{number}.withdrawn")).mkdir()
    assert list(versions_of(base_path)) == [2]
    published = publish_version(release, models, keep=1)
    assert published.path.name == "3" and published.pruned == [2]
    assert kind == "record" or any(number in name for name in names(base_path))


def test_the_highest_number(release, models):
    (models / "demo" / str(2**63 - 2)).mkdir(parents=True)
    assert publish_version(release, models).path.name == str(2**63 - 1)
    for _ in range(2):
        with pytest.raises(UserError, match=f"has or had version {2**63 - 1}, the highest there can be"):
            publish_version(release, models)
    assert names(models / "demo") == [".last_version", str(2**63 - 2), str(2**63 - 1)]


def test_withdrawn_versions_are_not_pruned(release, models):
    for _ in range(2):
        publish_version(release, models)
    withdraw_versions(models / "demo")
    assert publish_version(release, models, keep=1).pruned == [1]
    assert names(models / "demo") == [".2.withdrawn", ".last_version", "3"]


def watch_syncs(monkeypatch):
    """The list that fills with the paths that are synced and renamed, as strings and pairs of them."""
    events, sync, rename = [], os.fsync, os.rename

    def synced(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def renamed(source, target):
        events.append((str(source), str(target)))
        rename(source, target)

    monkeypatch.setattr(versions.os, "fsync", synced)
    monkeypatch.setattr(versions.os, "rename", renamed)
    return events


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="the paths of descriptors are known on Linux alone")
def test_all_is_on_the_disk_before_it_stands(release, models, monkeypatch):
    publish_version(release, models)
    events = watch_syncs(monkeypatch)
    path = publish_version(release, models, keep=1).path
    renames = [event for event in events if isinstance(event, tuple)]
    copy, target = renames[0]
    inside = ["", "/assets", "/variables", *(f"/{name}" for name in FILES)]
    assert target == str(path) and len(renames) == 2  # the second hides the version that is pruned
    assert sorted(events[: events.index(renames[0])]) == sorted(f"{copy}{name}" for name in inside)
    assert events[-2:] == [str(models / "demo"), renames[1]]


def test_a_file_system_that_syncs_no_directories(release, models, monkeypatch):
    sync = os.fsync

    def files_alone(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(descriptor)

    monkeypatch.setattr(versions.os, "fsync", files_alone)
    assert contents(publish_version(release, models).path) == FILES


def test_a_disk_that_fails_to_sync(release, models, monkeypatch):
    def failed(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(versions.os, "fsync", failed)
    with pytest.raises(UserError, match="cannot publish .*: input/output error$"):
        publish_version(release, models)
    assert names(models / "demo") == []


def test_rollback_and_back_again(release, models):
    base_path = models / "demo"
    for _ in range(2):
        publish_version(release, models)
    withdrawn = withdraw_versions(base_path)
    assert withdrawn.newest == 1 and withdrawn.paths == {2: base_path / ".2.withdrawn"}
    assert list(versions_of(base_path)) == [1] and contents(withdrawn.paths[2]) == FILES
    withdrawn.paths[2].rename(base_path / "2")
    assert list(versions_of(base_path)) == [1, 2]
    assert withdraw_versions(base_path).newest == 1


def test_rollback_to_a_version_withdraws_from_old_to_new(release, models, monkeypatch):
    for _ in range(4):
        publish_version(release, models)
    order = []
    rename = os.rename
    monkeypatch.setattr(versions.os, "rename", lambda a, b: (order.append(pathlib.Path(a).name), rename(a, b)))
    withdrawn = withdraw_versions(models / "demo", to=2)
    # TensorFlow Serving never sees 3 as the newest.
    assert order == ["3", "4"] and withdrawn.newest == 2 and list(withdrawn.paths) == [3, 4]
    assert list(versions_of(models / "demo")) == [1, 2]


def test_a_rollback_that_fails_halfway_withdraws_nothing(release, models):
    for _ in range(3):
        publish_version(release, models)
    (models / "demo" / ".3.withdrawn").mkdir()
    (models / "demo" / ".3.withdrawn" / "file").touch()
    with pytest.raises(UserError, match="cannot roll back .*3.withdrawn: directory not empty"):
        withdraw_versions(models / "demo", to=1)
    assert list(versions_of(models / "demo")) == [1, 2, 3]


@pytest.mark.parametrize("forget", [[], [".last_version"], [".2.withdrawn"]])
def test_numbers_are_never_used_twice(release, models, forget):
    """Neither what is withdrawn nor what is on record alone is needed to know them."""
    for _ in range(2):
        publish_version(release, models)
    withdraw_versions(models / "demo")
    for name in forget:
        path = models / "demo" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert publish_version(release, models, keep=1).path.name == "3"


@pytest.mark.parametrize(
    "to, message",
    [
        (9, "has no version 9, expected one of 1, 2$"),
        (3, r"has no version 3, expected one of 1, 2; it was withdrawn, and `mv .*\.3\.withdrawn .*/3` brings it back"),
        (2, "version 2 is the newest of .* already"),
    ],
)
def test_rollback_to_no_earlier_version(release, models, to, message):
    for _ in range(3):
        publish_version(release, models)
    withdraw_versions(models / "demo")
    with pytest.raises(UserError, match=message):
        withdraw_versions(models / "demo", to)
    assert list(versions_of(models / "demo")) == [1, 2]


def test_rollback_of_the_only_version(release, models):
    publish_version(release, models)
    with pytest.raises(UserError, match="has version 1 alone, expected an earlier one"):
        withdraw_versions(models / "demo")


def test_rollback_of_what_is_no_base_path(release, models):
    publish_version(release, models)
    for path in (models, models / "nothing", models / "demo" / "1" / "saved_model.pb"):
        with pytest.raises(UserError, match="has no versions, expected a base path"):
            withdraw_versions(path)
    assert names(models) == ["demo"]


def test_a_release_without_a_saved_model(release, models):
    shutil.rmtree(release / "saved_model")
    with pytest.raises(UserError, match="has no SavedModel in saved_model/NAME/1, expected .* --formats saved_model"):
        publish_version(release, models)


def test_a_release_that_is_none(tmp_path, models):
    with pytest.raises(UserError, match="nothing does not exist, expected a release directory"):
        publish_version(tmp_path / "nothing", models)


def test_a_release_of_two_models(release, models):
    shutil.copytree(release / "saved_model" / "demo", release / "saved_model" / "other")
    with pytest.raises(UserError, match=r"has 2 models \(demo, other\), expected one"):
        publish_version(release, models)


def damage_bit(source):
    (source / "variables" / "variables.index").write_text("Index")


def damage_length(source):
    (source / "saved_model.pb").write_text("graphs")


def damage_missing(source):
    (source / "variables" / "variables.data").unlink()


def damage_extra(source):
    (source / "assets" / "extra.txt").write_text("no parity check read this")


def damage_manifest(source):
    (source.parents[2] / "manifest.json").write_text("{")


def damage_no_graph(source):
    (source / "saved_model.pb").unlink()
    write_manifest(source.parents[2])


def damage_climbing(source):
    path = source.parents[2] / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["saved_model/demo/1/../../../manifest.json"] = {"bytes": 1, "sha256": ""}
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage, message",
    [
        (damage_bit, "variables.index: the file has sha256 .*, expected"),
        (damage_length, "saved_model.pb: the file has 6 bytes, expected 5"),
        (damage_missing, "variables.data is missing, expected"),
        (damage_extra, "extra.txt is not in .*manifest.json"),
        (damage_manifest, "manifest.json cannot be read"),
        (damage_no_graph, "saved_model.pb is missing"),
        (damage_climbing, "is missing"),
    ],
)
def test_a_damaged_release_leaves_no_trace(release, models, damage, message):
    damage(release / "saved_model" / "demo" / "1")
    with pytest.raises(UserError, match=message):
        publish_version(release, models)
    assert not models.exists()


def test_a_copy_that_is_damaged_does_not_stand(release, models, monkeypatch):
    copyfile = shutil.copyfile

    def flipped(source, target):
        copyfile(source, target)
        if target.name == "variables.data":
            target.write_text("weightz" * 999)

    publish_version(release, models)
    monkeypatch.setattr(versions.shutil, "copyfile", flipped)
    with pytest.raises(UserError, match="variables.data: the file has sha256"):
        publish_version(release, models)
    assert names(models / "demo") == [".last_version", "1"]


def test_a_full_disk_leaves_nothing(release, models, monkeypatch):
    publish_version(release, models)

    def full(source, target):
        target.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(versions.shutil, "copyfile", full)
    with pytest.raises(UserError, match="^cannot publish .*: no space left on device$"):
        publish_version(release, models, keep=1)
    assert names(models / "demo") == [".last_version", "1"]


def test_ctrl_c_leaves_nothing(release, models, monkeypatch):
    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(versions.shutil, "copyfile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish_version(release, models)
    assert names(models / "demo") == []


def test_a_target_that_cannot_be_written(release, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot publish .* in .*: not a directory"):
        publish_version(release, tmp_path / "file")


def test_a_prune_that_fails_says_that_the_version_stands(release, models, monkeypatch):
    publish_version(release, models)

    def denied(path, *arguments, **options):
        if not options:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(versions.shutil, "rmtree", denied)
    with pytest.raises(UserError, match="demo/2 is published, but older versions cannot be removed: .* denied"):
        publish_version(release, models, keep=1)
    assert list(versions_of(models / "demo")) == [2]


def test_a_target_inside_of_the_release(release):
    with pytest.raises(UserError, match="lies in the release"):
        publish_version(release, release / "saved_model")
    assert names(release / "saved_model" / "demo") == ["1"]


def test_the_base_path_itself_is_kept(release, models):
    """A container that mounted it would go on seeing the old one."""
    publish_version(release, models)
    inode = (models / "demo").stat().st_ino
    publish_version(release, models, keep=1)
    assert (models / "demo").stat().st_ino == inode


def test_a_stranger_who_takes_no_lock(release, models, monkeypatch):
    """A version that `mv` makes between the numbering and the rename stays as it is."""
    rename = os.rename

    def late(source, target):
        if target.name == "1":
            target.mkdir()
            (target / "saved_model.pb").write_text("someone else's")
        rename(source, target)

    monkeypatch.setattr(versions.os, "rename", late)
    assert publish_version(release, models).path.name == "2"
    assert (models / "demo" / "1" / "saved_model.pb").read_text() == "someone else's"


PUBLISHER = """
import sys
from tfgpt.export.versions import publish_version
for _ in range(10):
    print(publish_version(sys.argv[1], sys.argv[2]).path.name)
"""


def test_publishers_at_once_take_numbers_of_their_own(release, models):
    command = [sys.executable, "-c", PUBLISHER, str(release), str(models)]
    publishers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    taken = [int(line) for publisher in publishers for line in publisher.communicate(timeout=60)[0].split()]
    assert sorted(taken) == list(range(1, 31))
    assert all(contents(path) == FILES for path in versions_of(models / "demo").values())


def test_a_reader_never_sees_part_of_a_version(release, models):
    """While versions come and go, each that is seen has all its files, or is gone as a whole by then."""
    stop, partial = threading.Event(), []

    def read():
        while not stop.is_set():
            for path in versions_of(models / "demo").values():
                missing = [name for name in FILES if not (path / name).exists()]
                if missing and path.exists():
                    partial.append((path.name, missing))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(50):
            publish_version(release, models, keep=2)
    finally:
        stop.set()
        reader.join()
    assert partial == []
    assert list(versions_of(models / "demo")) == [49, 50]


def test_publishing_does_without_tensorflow():
    code = "import sys, tfgpt.export.versions, tfgpt.cli.main; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
