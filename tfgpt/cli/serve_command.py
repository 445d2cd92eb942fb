"""`tfgpt serve`."""

from __future__ import annotations

import pathlib

from tfgpt.cli.quiet import import_tensorflow
from tfgpt.errors import UserError
from tfgpt.server.config import ServerConfig


def serve(release: str | None = None, log_level: str = "info", **config):
    """Serve a release, or the models of a models.config, by TensorFlow Serving's and OpenAI's protocols.

    Args:
        release: a release directory; without one, --model_config_file or --model_base_path.
        log_level: debug, info, warning or error; logs are lines of JSON on standard error.
        **config: the fields of `ServerConfig`.
    """
    if release is not None:
        if config.get("model_base_path") is not None:
            raise UserError("a release and model_base_path are both given, expected one of them")
        on_onnx = config.get("engine") == "onnx"
        base_path = _release(release) if on_onnx else _base_path(release)
        config |= {"model_base_path": str(base_path), "model_name": base_path.name}
    config = ServerConfig(**config)
    try:
        from tfgpt.server.logs import LEVELS, start_logging
        from tfgpt.server.serve import Server
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed, expected it: pip install 'tfgpt[serving]'") from error

    if log_level not in LEVELS:
        raise UserError(f"log_level is {log_level!r}, expected one of {', '.join(LEVELS)}")
    server = Server(config)
    if config.engine == "saved_model":
        import_tensorflow()
    start_logging(log_level)
    server.run()


def _release(release):
    """A release directory, by itself a version for the ONNX engine."""
    path = pathlib.Path(release).resolve()
    if not (path / "manifest.json").is_file():
        raise UserError(f"{release} has no manifest.json, expected a release directory, which tfgpt export writes")
    return path


def _base_path(release):
    """RELEASE/saved_model/NAME, which is a base path of TensorFlow Serving's as it is."""
    found = sorted(path for path in pathlib.Path(release, "saved_model").glob("*") if path.is_dir())
    if len(found) != 1:
        message = "expected one: a release exported with the format saved_model"
        raise UserError(f"{release} has {len(found)} models in saved_model/, {message}")
    return found[0]
