"""Which versions are loaded when, with models that record what happens to them."""

import contextlib
import threading

import pytest
from google.protobuf import text_format

from tfgpt.runtime.serving_messages import message
from tfgpt.server import models as models_module
from tfgpt.server.models import Models
from tfgpt.server.status import RequestError


class Shelf:
    """Loads versions that are no models, and keeps a diary."""

    def __init__(self, folder):
        self.folder, self.diary, self.broken = folder, [], set()

    def add(self, *numbers, name="m"):
        for number in numbers:
            (self.folder / name / str(number)).mkdir(parents=True)

    def load(self, name, path):
        if path in self.broken:
            self.diary.append(f"failed {path.name}")
            raise RequestError("DATA_LOSS", "the file is torn")
        self.diary.append(f"loaded {path.name}")
        return Servable(self, path.name)

    def config(self, policy="", labels="", names=("m",)):
        entries = (
            f'config {{ name: "{name}" base_path: "{self.folder / name}" model_platform: "tensorflow" {policy} {labels}}}'  # noqa: E501
            for name in names
        )
        return text_format.Parse(f"model_config_list {{ {' '.join(entries)} }}", message("serving.ModelServerConfig")())


class Servable:
    def __init__(self, shelf, name):
        self.shelf, self.name = shelf, name

    def close(self):
        self.shelf.diary.append(f"closed {self.name}")


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path)


@pytest.fixture
def models(shelf):
    return Models(shelf.load)


def spec(version=None, label=None, name="m"):
    found = message("serving.ModelSpec")(name=name)
    if version is not None:
        found.version.value = version
    if label is not None:
        found.version_label = label
    return found


def answering(models, **where):
    with models.borrowed(spec(**where)) as version:
        return version.number


def states(models):
    return {version.number: version.state for version in models.statuses("m")}


def test_a_new_version_is_loaded_before_the_old_one_goes(shelf, models):
    shelf.add(1)
    models.configure(shelf.config())
    shelf.add(2)
    models.look()
    assert shelf.diary == ["loaded 1", "loaded 2", "closed 1"]
    assert answering(models) == 2 and states(models) == {2: "AVAILABLE", 1: "END"}
    models.look()
    assert len(shelf.diary) == 3


def test_a_version_in_use_is_closed_after_its_last_request(shelf, models):
    shelf.add(1)
    models.configure(shelf.config())
    shelf.add(2)
    with models.borrowed(spec()), models.borrowed(spec(version=1)):
        models.look()
        assert states(models) == {2: "AVAILABLE", 1: "UNLOADING"} and shelf.diary[-1] == "loaded 2"
        with pytest.raises(RequestError, match="not found"), models.borrowed(spec(version=1)):
            pass
    assert shelf.diary[-1] == "closed 1" and states(models)[1] == "END"


def test_a_version_that_cannot_be_loaded_changes_nothing(shelf, models, monkeypatch):
    shelf.add(1)
    models.configure(shelf.config())
    shelf.add(2)
    shelf.broken.add(shelf.folder / "m" / "2")
    models.look()
    models.look()
    assert shelf.diary == ["loaded 1", "failed 2"] and answering(models) == 1
    [failed, _] = models.statuses("m")
    assert (failed.state, failed.error.code, failed.error.message) == ("END", "DATA_LOSS", "the file is torn")
    monkeypatch.setattr(models_module.time, "monotonic", lambda: 1e12)  # later
    models.look()
    assert shelf.diary[2:] == ["failed 2"]
    shelf.broken.clear()
    models._versions["m"][2].next_try = 0
    models.look()
    assert answering(models) == 2 and shelf.diary[-2:] == ["loaded 2", "closed 1"]


def test_it_gives_up_after_some_tries(shelf, models, monkeypatch):
    shelf.add(1, 2)
    shelf.broken.add(shelf.folder / "m" / "2")
    models.configure(shelf.config("model_version_policy { all {} }"))
    monkeypatch.setattr(models_module, "TRY_AGAIN_SECONDS", 0)
    models._versions["m"][2].next_try = 0
    for _ in range(20):
        models.look()
    assert shelf.diary.count("failed 2") == models_module.MOST_TRIES


def test_a_rollback_goes_back(shelf, models):
    shelf.add(1, 2)
    models.configure(shelf.config())
    (shelf.folder / "m" / "2").rename(shelf.folder / "m" / ".2.withdrawn")
    models.look()
    assert shelf.diary == ["loaded 2", "loaded 1", "closed 2"] and answering(models) == 1
    (shelf.folder / "m" / ".2.withdrawn").rename(shelf.folder / "m" / "2")
    models.look()
    assert answering(models) == 2


@pytest.mark.parametrize(
    "policy, expected",
    [
        ("", [3]),
        ("model_version_policy { latest { num_versions: 2 } }", [2, 3]),
        ("model_version_policy { all {} }", [1, 2, 3]),
        ("model_version_policy { specific { versions: 1 versions: 3 versions: 8 } }", [1, 3]),
    ],
)
def test_policies(shelf, models, policy, expected):
    shelf.add(1, 2, 3)
    (shelf.folder / "m" / "notes").mkdir()
    (shelf.folder / "m" / "9").write_text("no directory")
    models.configure(shelf.config(policy))
    assert sorted(states(models)) == expected
    for number in expected:
        assert answering(models, version=number) == number
    assert answering(models) == 3


def test_labels(shelf, models):
    shelf.add(1, 2)
    everything = "model_version_policy { all {} }"
    labels = 'version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 }'
    models.configure(shelf.config(everything, labels))
    assert answering(models, label="stable") == 1 and answering(models, label="canary") == 2
    with pytest.raises(RequestError) as error:
        answering(models, label="nope")
    assert error.value.code == "INVALID_ARGUMENT"
    with pytest.raises(RequestError) as error:
        models.configure(shelf.config(everything, 'version_labels { key: "stable" value: 3 }'))
    assert error.value.code == "FAILED_PRECONDITION" and answering(models, label="stable") == 1
    models.configure(shelf.config(everything, 'version_labels { key: "stable" value: 2 }'))
    assert answering(models, label="stable") == 2


def test_labels_of_versions_to_come_need_leave(shelf):
    shelf.add(1)
    config = shelf.config(labels='version_labels { key: "next" value: 2 }')
    with pytest.raises(RequestError, match="not currently available"):
        Models(shelf.load).configure(config)
    models = Models(shelf.load, labels_before_versions=True)
    models.configure(config)
    with pytest.raises(RequestError) as error:
        answering(models, label="next")
    assert error.value.code == "NOT_FOUND"
    shelf.add(2)
    models.look()
    assert answering(models, label="next") == 2


def test_models_come_and_go(shelf, models):
    shelf.add(1, name="a")
    shelf.add(1, name="b")
    models.configure(shelf.config(names=("a",)))
    models.configure(shelf.config(names=("a", "b")))
    assert answering(models, name="b") == 1
    models.configure(shelf.config(names=("b",)))
    with pytest.raises(RequestError):
        answering(models, name="a")
    assert models.statuses("a")[0].state == "END" and models.ready
    with pytest.raises(RequestError) as error:
        models.configure(shelf.config(names=("b", "c")))
    assert error.value.code == "UNKNOWN" and "c (no version" in error.value.message and not models.ready
    assert answering(models, name="b") == 1
    models.close()
    assert models.statuses("b")[0].state == "END" and not models.ready


@pytest.mark.parametrize(
    "text, message_",
    [
        ("", "Only ModelConfigList"),
        ("model_config_list {}", "empty"),
        ('model_config_list { config { base_path: "/a" model_platform: "tensorflow" } }', "no name"),
        ('model_config_list { config { name: "a" base_path: "/a" } }', "model_platform"),
        ('model_config_list { config { name: "a" base_path: "/a" model_platform: "onnx" } }', "platform 'onnx'"),
        ('model_config_list { config { name: "a" base_path: "a" model_platform: "tensorflow" } }', "absolute"),
        ('model_config_list { config { name: "a" model_platform: "tensorflow" } }', "base_path ''"),
    ],
)
def test_configurations_that_are_wrong(models, text, message_):
    with pytest.raises(RequestError, match=message_) as error:
        models.configure(text_format.Parse(text, message("serving.ModelServerConfig")()))
    assert error.value.code == "INVALID_ARGUMENT"


def test_requests_never_miss_while_versions_change(shelf, models):
    """Threads ask all the time while thirty versions come and go; nobody gets one that is closed, or none."""
    shelf.add(1)
    models.configure(shelf.config())
    stop, wrong = threading.Event(), []

    def client():
        while not stop.is_set():
            try:
                with models.borrowed(spec()) as version:
                    if f"closed {version.number}" in shelf.diary:
                        wrong.append(version.number)
            except RequestError as error:
                wrong.append(error)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(2, 32):
        shelf.add(number)
        models.look()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    closed = [entry for entry in shelf.diary if entry.startswith("closed")]
    assert sorted(closed) == sorted(f"closed {number}" for number in range(1, 31))


def test_a_failing_loader_is_no_end(shelf):
    def load(name, path):
        raise ZeroDivisionError("division by zero")

    shelf.add(1)
    models = Models(load)
    with contextlib.suppress(RequestError):
        models.configure(shelf.config())
    assert models.statuses("m")[0].error.message == "ZeroDivisionError: division by zero"
