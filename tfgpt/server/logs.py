"""Logs as lines of JSON, each with the id of the request that it is about."""

from __future__ import annotations

import contextvars
import datetime
import json
import logging
import re
import secrets
import sys

REQUEST_ID = contextvars.ContextVar("request_id", default=None)
FIELDS = ("model", "version", "path", "method", "entrypoint", "status", "seconds", "rest", "grpc", "client")
LEVELS = ("debug", "info", "warning", "error")


def start_logging(level="info", stream=None):
    """Logs go to standard error from here on."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("uvicorn", "grpc", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    tensorflow = logging.getLogger("tensorflow")
    tensorflow.setLevel(logging.ERROR)  # it calls sessions deprecated, which its own server runs
    tensorflow.propagate = False  # and prints by itself


def request_id(given):
    """A request's id: the client's where that is one, else a new one."""
    return given if given and re.fullmatch(r"[\w.:/+=-]{1,128}", given, re.ASCII) else secrets.token_hex(8)


class JsonFormatter(logging.Formatter):
    """A record as one line."""

    def format(self, record):
        when = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (current := REQUEST_ID.get()) is not None:
            line["request_id"] = current
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
