"""Which versions of which models are loaded, and which of them answers a request.

What is wanted is in a ModelServerConfig and in the models' base paths, which are looked at again and again. A new
version is loaded, warm-up included, before an old one goes; one that goes takes no new requests, finishes those it has,
and then gives its memory back. A model whose newest version cannot be loaded keeps the one it has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pathlib
import threading
import time

from tfgpt.base_path import versions_of
from tfgpt.server.metrics import METRICS
from tfgpt.server.status import RequestError, invalid

LOGGER = logging.getLogger(__name__)
MOST_TRIES, TRY_AGAIN_SECONDS = 6, 60.0  # max_num_load_retries 5 and load_retry_interval_micros of TensorFlow Serving


@dataclasses.dataclass
class Version:
    """One version of a model: state is LOADING, AVAILABLE, UNLOADING or END, as in `serving.ModelVersionStatus`."""

    model: str
    number: int
    path: pathlib.Path
    state: str = "LOADING"
    error: RequestError | None = None
    servable: object = None
    in_flight: int = 0
    tries: int = 0
    next_try: float = 0.0

    @property
    def may_try(self):
        """Whether a version that could not be loaded is due for another try."""
        return self.tries < MOST_TRIES and time.monotonic() >= self.next_try


class Models:
    """The models of a server.

    Args:
        load: a function of a model's name and a version's directory that gives what `Version.servable` is: with
            `signatures`, `run` and `close` as `SavedModelServable` has them.
        labels_before_versions: whether a label may name a version that is not loaded
            (--allow_version_labels_for_unavailable_models).
    """

    def __init__(self, load, labels_before_versions=False):
        self._load_servable, self._labels_before_versions = load, labels_before_versions
        self._lock = threading.RLock()  # of the tables; held for moments
        self._work = threading.Lock()  # of whoever loads and unloads
        self._configs, self._labels, self._versions = {}, {}, {}

    def configure(self, config, root=None):
        """Takes over a configuration, and returns when every model of it has a version.

        Args:
            config: `serving.ModelServerConfig`'s message.
            root: the directory that relative base paths start from; None refuses them.

        Raises:
            RequestError: if it is no list of models, or one of them has no version that can be loaded.
        """
        with self._work:
            first = not self._configs
            configs = checked_configs(config, root)
            labels = {name: dict(one.version_labels) for name, one in configs.items()}
            if not first:
                self._check_labels(labels)
            with self._lock:
                self._configs = configs
            self._look(again=True)
            missing = sorted(name for name in configs if not self.is_available(name))
            if missing:
                raise RequestError("UNKNOWN", f"Some models did not become available: {self._reasons(missing)}")
            if first:
                self._check_labels(labels)
            with self._lock:
                self._labels = labels

    def look(self):
        """Looks at the base paths, and loads and unloads what has changed."""
        with self._work:
            self._look()

    def names(self):
        """The models that have a version that answers."""
        with self._lock:
            return sorted(name for name in self._configs if self.is_available(name))

    def is_available(self, name):
        """Whether a model has a version that answers."""
        with self._lock:
            return any(one.state == "AVAILABLE" for one in self._versions.get(name, {}).values())

    def knows(self, name):
        """Whether a model of this name is configured."""
        with self._lock:
            return name in self._configs

    @property
    def ready(self):
        """Whether every configured model has a version that answers."""
        with self._lock:
            return bool(self._configs) and all(self.is_available(name) for name in self._configs)

    @contextlib.contextmanager
    def borrowed(self, spec):
        """The version that a request means; it stays loaded within the block.

        Args:
            spec: `serving.ModelSpec`'s message.

        Raises:
            RequestError: NOT_FOUND for a model or version that is not loaded, INVALID_ARGUMENT for an unknown label.
        """
        with self._lock:
            version = self._find(spec)
            version.in_flight += 1
        try:
            yield version
        finally:
            with self._lock:
                version.in_flight -= 1
                ends = version.state == "UNLOADING" and not version.in_flight
            if ends:
                self._end(version)

    def statuses(self, name, number=None):
        """The versions of a model that are or were there, newest first, or one of them.

        Raises:
            RequestError: NOT_FOUND.
        """
        with self._lock:
            versions = self._versions.get(name, {})
            if number is not None:
                if number not in versions:
                    raise RequestError("NOT_FOUND", f"Could not find version {number} of model {name}")
                return [dataclasses.replace(versions[number])]
            if not versions:
                raise RequestError("NOT_FOUND", f"Could not find any versions of model {name}")
            return [dataclasses.replace(versions[number]) for number in sorted(versions, reverse=True)]

    def close(self):
        """Unloads everything."""
        with self._work:
            with self._lock:
                self._configs = {}
            self._look()

    def _find(self, spec):
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        number = spec.version.value if spec.HasField("version") else None
        if spec.version_label:
            number = self._labels.get(spec.name, {}).get(spec.version_label)
            if number is None:
                raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        available = {n: one for n, one in self._versions.get(spec.name, {}).items() if one.state == "AVAILABLE"}
        if number is None and available:
            number = max(available)
        if number not in available:
            wanted = f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
            raise RequestError("NOT_FOUND", f"Servable not found for request: {wanted}")
        return available[number]

    def _check_labels(self, labels):
        """Refuses labels of versions that do not answer; the flag allows them where the label is new."""
        for name, wanted in labels.items():
            for label, number in wanted.items():
                known = self._labels.get(name, {}).get(label)
                if self._labels_before_versions and known in (None, number):
                    continue
                version = self._versions.get(name, {}).get(number)
                if version is None or version.state != "AVAILABLE":
                    message = f"Request to assign label {label} to version {number} of model {name}"
                    message += ", which is not currently available for inference"
                    raise RequestError("FAILED_PRECONDITION", message)

    def _look(self, again=False):
        with self._lock:
            configs, known = dict(self._configs), list(self._versions)
        for name, config in configs.items():
            try:
                aspired = aspired_versions(config)
            except OSError as error:
                LOGGER.error("cannot read %s: %s", config.base_path, error, extra={"model": name})
                continue
            for number, path in aspired.items():
                self._load(name, number, path, again)
            self._unload(name, aspired)
        for name in known:
            if name not in configs:
                self._unload(name, {})

    def _load(self, name, number, path, again):
        with self._lock:
            version = self._versions.setdefault(name, {}).get(number)
            if version is None or (version.state == "END" and version.error is None):
                version = self._versions[name][number] = Version(name, number, path)
            elif version.state != "END" or not (again or version.may_try):
                return
            version.state, version.tries = "LOADING", version.tries + 1
        start = time.monotonic()
        try:
            servable = self._load_servable(name, path)
        except RequestError as error:
            self._failed(version, error)
        except Exception as error:  # whatever a model makes of its loading, the server lives on
            self._failed(version, RequestError("UNKNOWN", f"{type(error).__name__}: {error}"))
        else:
            with self._lock:
                version.servable, version.state, version.error = servable, "AVAILABLE", None
            METRICS.loaded(path, time.monotonic() - start)
            LOGGER.info("loaded", extra={"model": name, "version": number, "path": str(path)})

    def _failed(self, version, error):
        with self._lock:
            version.state, version.error = "END", error
            version.next_try = time.monotonic() + TRY_AGAIN_SECONDS
        METRICS.load_failed(version.path)
        LOGGER.error("cannot load: %s", error.message, extra={"model": version.model, "version": version.number})

    def _unload(self, name, aspired):
        """Unloads what is not wanted, unless nothing of what is wanted can answer yet."""
        with self._lock:
            versions = self._versions.get(name, {})
            if aspired and not any(versions[number].state == "AVAILABLE" for number in aspired):
                return
            going = [one for number, one in versions.items() if number not in aspired and one.state == "AVAILABLE"]
            for version in going:
                version.state = "UNLOADING"
            idle = [version for version in going if not version.in_flight]
        for version in idle:
            self._end(version)

    def _end(self, version):
        with self._lock:
            if version.state != "UNLOADING":
                return
            version.state, servable, version.servable = "END", version.servable, None
        servable.close()
        LOGGER.info("unloaded", extra={"model": version.model, "version": version.number})

    def _reasons(self, names):
        reasons = []
        for name in names:
            versions = self._versions.get(name, {}).values()
            errors = [f"version {one.number}: {one.error.message}" for one in versions if one.error]
            reasons.append(f"{name} ({'; '.join(errors) or f'no version in {self._configs[name].base_path}'})")
        return ", ".join(reasons)


def aspired_versions(config):
    """The versions of a model that should be loaded, of those in its base path: number → directory.

    Args:
        config: `serving.ModelConfig`'s message.

    Example:
        >>> import tempfile
        >>> from tfgpt.runtime.serving_messages import message
        >>> with tempfile.TemporaryDirectory() as base_path:
        ...     for number in (1, 2, 3):
        ...         pathlib.Path(base_path, str(number)).mkdir()
        ...     config = message("serving.ModelConfig")(base_path=base_path)
        ...     newest = list(aspired_versions(config))
        ...     config.model_version_policy.specific.versions.extend([1, 9])
        ...     newest, list(aspired_versions(config))
        ([3], [1])
    """
    found = versions_of(config.base_path)
    if not found and pathlib.Path(config.base_path, "manifest.json").is_file():
        found = {1: pathlib.Path(config.base_path)}  # a release directory by itself
    policy = config.model_version_policy
    chosen = policy.WhichOneof("policy_choice")
    if chosen == "all":
        return found
    if chosen == "specific":
        return {number: found[number] for number in policy.specific.versions if number in found}
    count = policy.latest.num_versions or 1
    return dict(list(found.items())[-count:])


def checked_configs(config, root=None):
    """The models of a ModelServerConfig: name → `serving.ModelConfig`'s message, with an absolute base path.

    Raises:
        RequestError: INVALID_ARGUMENT, with the reason.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise invalid("ServerModelConfig type not supported. Only ModelConfigList is currently supported")
    configs = {}
    for one in config.model_config_list.config:
        if not one.name:
            raise invalid("a model has no name, expected one")
        if one.name in configs:
            raise invalid(f"Illegal to list model {one.name} multiple times in config list")
        # Deprecated model_type TENSORFLOW is 1.
        if one.model_platform not in ("", "tensorflow") or one.model_type not in (0, 1):
            raise invalid(f"model {one.name} has platform {one.model_platform!r}, expected 'tensorflow'")
        if not one.model_platform and not one.model_type:
            raise invalid(f"model {one.name} has no model_platform, expected 'tensorflow'")
        if not one.base_path or (root is None and not pathlib.Path(one.base_path).is_absolute()):
            raise invalid(f"model {one.name} has base_path {one.base_path!r}, expected an absolute path")
        copy = type(one)()
        copy.CopyFrom(one)
        copy.base_path = str(pathlib.Path(root or "/", one.base_path))
        configs[one.name] = copy
    if not configs:
        raise invalid("the list of models is empty, expected one at least")
    return configs
