"""`tfgpt serve`."""

from __future__ import annotations

import pathlib

from tfgpt.cli.quiet import import_tensorflow
from tfgpt.errors import UserError
from tfgpt.server.config import ServerConfig


def serve(release: str | None = None, log_level: str = "info", **config):
    """Serve a release, or the models of a models.config, by TensorFlow Serving's REST and gRPC protocols.

    Args:
        release: a release directory that has a SavedModel; without one, --model_config_file or --model_base_path.
        log_level: debug, info, warning or error; logs are lines of JSON on standard error.
        **config: the fields of `ServerConfig`.
    """
    if release is not None:
        if config.get("model_base_path") is not None:
            raise UserError("a release and model_base_path are both given, expected one of them")
        base_path = _base_path(release)
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
    import_tensorflow()
    start_logging(log_level)
    server.run()


def _base_path(release):
    """RELEASE/saved_model/NAME, which is a base path of TensorFlow Serving's as it is."""
    found = sorted(path for path in pathlib.Path(release, "saved_model").glob("*") if path.is_dir())
    if len(found) != 1:
        message = "expected one: a release exported with the format saved_model"
        raise UserError(f"{release} has {len(found)} models in saved_model/, {message}")
    return found[0]
