"""TensorFlow Serving over REST."""

from __future__ import annotations

import base64
import json
import math
import time
import urllib.parse

import numpy as np
import requests
import urllib3
from google.protobuf import json_format

from tfgpt.errors import UserError
from tfgpt.runtime.serving_client import ServingClient
from tfgpt.runtime.serving_messages import message
from tfgpt.runtime.tensor_messages import BY_NUMBER

CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class RestClient(ServingClient):
    """A `ServingClient` over REST.

    JSON has no dtypes: the first prediction of a signature asks the server for its metadata.
    """

    def __init__(self, address, **options):
        super().__init__(address, **options)
        self._session = requests.Session()
        # As `auth`, since a plain header gives way to what a .netrc file says of the host.
        self._session.auth = self._authorize
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=64)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)
        self._signatures = None

    def predict(self, inputs, signature="serving_default", outputs=()):
        declared = self._signature(signature).outputs
        if unknown := set(outputs) - set(declared):
            raise UserError(f"signature {signature!r} has no output {min(unknown)!r}, expected of {sorted(declared)}")
        body = {"signature_name": signature, "inputs": {name: _to_json(array) for name, array in inputs.items()}}
        found = self._ask("POST", ":predict", body)["outputs"]
        if len(declared) == 1:
            found = {next(iter(declared)): found}
        return {name: _from_json(found[name], declared[name]) for name in outputs or found}

    def classify(self, examples, signature="serving_default", context=None):
        results = self._ask("POST", ":classify", _examples(examples, signature, context))["results"]
        return [[(label, float(score)) for label, score in classes] for classes in results]

    def regress(self, examples, signature="serving_default", context=None):
        return [
            float(value) for value in self._ask("POST", ":regress", _examples(examples, signature, context))["results"]
        ]

    def status(self):
        rows = self._ask("GET", "")["model_version_status"]
        return [{"version": int(row["version"]), "state": row["state"], **row.get("status", {})} for row in rows]

    def metadata(self):
        answer = self._ask("GET", "/metadata")["metadata"]["signature_def"]
        parsed = json_format.ParseDict(answer, message("serving.SignatureDefMap")(), ignore_unknown_fields=True)
        return dict(parsed.signature_def)

    def close(self):
        self._session.close()

    def _signature(self, name):
        if self._signatures is None or name not in self._signatures:
            self._signatures = self.metadata()
        if name not in self._signatures:
            known = ", ".join(sorted(self._signatures))
            raise self._refused("INVALID_ARGUMENT", f"it has no signature {name!r}, expected one of {known}")
        return self._signatures[name]

    def _authorize(self, request):
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request

    def _url(self, ending):
        address = self.address
        url = f"{address}/v1/models/{urllib.parse.quote(address.model, safe='')}"
        if address.version is not None:
            url += f"/versions/{address.version}"
        elif address.label is not None:
            url += f"/labels/{urllib.parse.quote(address.label, safe='')}"
        return url + ending

    def _ask(self, method, ending, body=None):
        data = None if body is None else json.dumps(body).encode("utf-8")
        return self._with_retries(lambda seconds: self._ask_once(method, self._url(ending), data, seconds))

    def _ask_once(self, method, url, data, seconds):
        end = time.monotonic() + seconds
        options = {"headers": {"Content-Type": "application/json"}, "timeout": seconds, "stream": True}
        if self.ca_file is not None:
            options["verify"] = str(self.ca_file)  # here, since the session's gives way to REQUESTS_CA_BUNDLE
        try:
            with self._session.request(method, url, data=data, **options) as answer:
                content = self._read(answer, end)
        except requests.exceptions.SSLError as error:
            raise self._refused("PERMISSION_DENIED", f"no secure connection: {_innermost(error)}") from error
        except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError) as error:
            raise self._too_late() from error
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unreachable(_innermost(error)) from error
        # What is no UTF-8 comes as raw bytes from the server, and goes on as such.
        text = content.decode("utf-8", "surrogateescape")
        try:
            found = json.loads(text)
        except ValueError:
            found = {"error": f"{text[:200]!r}, expected JSON"}
            if answer.ok:
                raise self._refused("INTERNAL", found["error"]) from None
        if not answer.ok:
            reason = found.get("error") if isinstance(found, dict) else found
            raise self._refused(CODES.get(answer.status_code, "UNKNOWN"), reason)
        return found

    def _read(self, answer, end):
        """The body, within the deadline even where it trickles in."""
        pieces = []
        while piece := answer.raw.read1(2**16, decode_content=True):
            pieces.append(piece)
            if time.monotonic() > end:
                raise self._too_late()
        return b"".join(pieces)


def _innermost(error):
    while isinstance(error, Exception) and error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    # urllib3 says once more what it tried to reach.
    return str(getattr(error, "reason", None) or error).rpartition("): ")[2]


def _to_json(array):
    array = np.asarray(array)
    return [_to_json(row) for row in array] if array.ndim and array.dtype.kind in "OSU" else _value(array.tolist())


def _value(value):
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode("ascii")}


def _from_json(value, info):
    """An output's array, of the dtype that the signature declares."""
    dtype, _ = BY_NUMBER[info.dtype]
    if dtype.kind != "O":
        return np.array(value, dtype)
    shape, level = [], value
    while isinstance(level, list):
        shape.append(len(level))
        level = level[0] if level else None
    flat = np.empty(math.prod(shape), object)
    flat[:] = [_text(item) for item in _leaves(value)]
    return flat.reshape(shape)


def _leaves(value):
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _text(item):
    return base64.b64decode(item["b64"]) if isinstance(item, dict) else item.encode("utf-8", "surrogateescape")


def _examples(examples, signature, context):
    def plain(features):
        listed = {name: values if isinstance(values, list) else [values] for name, values in features.items()}
        return {name: [_value(value) for value in values] for name, values in listed.items()}

    body = {"signature_name": signature, "examples": [plain(example) for example in examples]}
    return body if context is None else {**body, "context": plain(context)}
