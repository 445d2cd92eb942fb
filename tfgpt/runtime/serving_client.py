"""Clients of TensorFlow Serving, over REST and gRPC behind one interface: addresses, deadlines, retries, errors."""

from __future__ import annotations

import dataclasses
import pathlib
import random
import re
import time
import urllib.parse

from tfgpt.errors import UserError

SCHEMES = ("http", "https", "grpc", "grpcs")
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds
EXPECTED = "http://HOST:PORT/v1/models/NAME or grpc://HOST:PORT/NAME, with /versions/N or /labels/LABEL if wanted"


class ServingError(UserError):
    """A server refused, or could not be reached; the message is one sentence that names it.

    Attributes:
        code: gRPC's name of the status, such as "INVALID_ARGUMENT"; also over REST.
    """

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a model is served.

    Args:
        scheme: of `SCHEMES`; https and grpcs are encrypted.
        host: and its port, `HOST:PORT`.
        model: the served name.
        version: a number, or None.
        label: a version label, or None; without both, the server takes its newest version.
    """

    scheme: str
    host: str
    model: str
    version: int | None = None
    label: str | None = None

    @classmethod
    def parse(cls, text):
        """Reads an address as users write it.

        Raises:
            UserError: if it is none.

        Example:
            >>> Address.parse("grpc://localhost:8500/demo/labels/stable")
            Address(scheme='grpc', host='localhost:8500', model='demo', version=None, label='stable')
        """
        scheme, _, rest = text.partition("://")
        scheme = scheme.lower()
        prefix = "/v1/models" if scheme in ("http", "https") else ""
        path = rf"([^/?#@\s]+){prefix}/([^/:?#\s]+)(?:/versions/([0-9]+)|/labels/([^/:?#\s]+))?/?"
        found = re.fullmatch(path, rest) if scheme in SCHEMES else None
        if not found:
            raise UserError(f"the server's address is {text!r}, expected {EXPECTED}")
        host, model, version, label = found.groups()
        model, label = urllib.parse.unquote(model), urllib.parse.unquote(label) if label else None
        return cls(scheme, host, model, int(version) if version else None, label)

    @property
    def secure(self):
        return self.scheme in ("https", "grpcs")

    def __str__(self):
        return f"{self.scheme}://{self.host}"


def is_address(text):
    """Whether a model is named by a server's address rather than a directory."""
    return text.partition("://")[0].lower() in SCHEMES and "://" in text


def open_client(address, **options):
    """A client of one served model.

    Args:
        address: a string, see `Address`.
        **options: of `ServingClient`.

    Raises:
        UserError: for another address.
    """
    address = Address.parse(address)
    if address.scheme in ("http", "https"):
        from tfgpt.runtime.rest_client import RestClient

        return RestClient(address, **options)
    from tfgpt.runtime.grpc_client import GrpcClient

    return GrpcClient(address, **options)


class ServingClient:
    """What both protocols have in common. Connections are kept and used again; threads may share a client.

    A call that finds the server unavailable (HTTP 503, gRPC UNAVAILABLE, no connection) is tried again after a pause
    that doubles from time to time and of which a random part is waited ("full jitter"), so that clients who fail
    together do not come back together. Nothing else is tried again. Predictions change nothing in a server, so a
    request that was lost on the way may be sent twice.

    Args:
        address: an `Address`.
        deadline: seconds that a call may take, with all its tries.
        retries: how many times an unavailable server is asked again.
        ca_file: certificates that sign the server's, for https and grpcs; by default those of the system.
        token: sent as "Authorization: Bearer TOKEN".
    """

    def __init__(self, address, deadline=60.0, retries=5, ca_file=None, token=None):
        self.address, self.deadline, self.retries = address, deadline, retries
        self.ca_file, self.token = ca_file, token
        if not deadline > 0:
            raise UserError(f"the deadline is {deadline} seconds, expected a number above 0")
        if ca_file is not None and not pathlib.Path(ca_file).is_file():
            raise UserError(f"{ca_file} does not exist, expected a file of certificates")

    def predict(self, inputs, signature="serving_default", outputs=()):
        """Runs a signature.

        Args:
            inputs: name → array, all that the signature declares.
            signature: its name.
            outputs: names of those wanted; by default all.

        Returns:
            Name → array; strings are bytes objects.

        Raises:
            ServingError: with the server's reason.
        """
        raise NotImplementedError(f"{type(self).__name__} has no predict")

    def classify(self, examples, signature="serving_default", context=None):
        """Classifies examples.

        Args:
            examples: dictionaries of features, each a number, a string, bytes, or a list of one kind of these.
            signature: its name.
            context: features that all examples share.

        Returns:
            For each example a list of (label, score).
        """
        raise NotImplementedError(f"{type(self).__name__} has no classify")

    def regress(self, examples, signature="serving_default", context=None):
        """A number for each of `classify`'s examples."""
        raise NotImplementedError(f"{type(self).__name__} has no regress")

    def status(self):
        """The model's versions, each a dictionary of `version`, `state`, `error_code` and `error_message`."""
        raise NotImplementedError(f"{type(self).__name__} has no status")

    def metadata(self):
        """The model's signatures: name → `serving.SignatureDef`'s message."""
        raise NotImplementedError(f"{type(self).__name__} has no metadata")

    def close(self):
        """Closes its connections."""
        raise NotImplementedError(f"{type(self).__name__} has no close")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def _with_retries(self, call):
        """`call(seconds left)`, again while it raises a `ServingError` of UNAVAILABLE."""
        end = time.monotonic() + self.deadline
        for attempt in range(self.retries + 1):
            try:
                return call(max(end - time.monotonic(), 0.001))
            except ServingError as error:
                pause = random.uniform(0, min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE))
                if error.code != "UNAVAILABLE" or attempt == self.retries or time.monotonic() + pause >= end:
                    raise
                time.sleep(pause)

    def _refused(self, code, reason):
        """The error of a server's answer."""
        reason = " ".join(str(reason).split()) or "no reason given"
        return ServingError(f"{self.address} answered {code} for the model {self.address.model!r}: {reason}", code)

    def _unreachable(self, reason):
        reason = " ".join(str(reason).split())
        message = f"{self.address} cannot be reached, expected a running TensorFlow Serving: {reason}"
        return ServingError(message, "UNAVAILABLE")

    def _too_late(self):
        return ServingError(f"{self.address} did not answer within {self.deadline:g} s", "DEADLINE_EXCEEDED")
