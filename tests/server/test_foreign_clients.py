"""Clients that others wrote, unmodified, each in a process of its own."""

import json
import shutil
import subprocess
import sys

import pytest

# Its protobufs clash with TensorFlow's, so it is never imported here. Its default version 0 is OpenVINO's "latest", and
# one that TensorFlow Serving does not have: a version is named.
OVMS_CLIENT = """
import json, sys
import numpy as np
import ovmsclient
make, url = getattr(ovmsclient, sys.argv[1]), sys.argv[2]
client = make(url)
status = client.get_model_status("scale", 2)
metadata = client.get_model_metadata("greeting", 1)
outputs = client.predict({"x": np.array([1, 2], np.float32)}, "scale", 1)
text = client.predict({"name": ["a", "b"], "times": np.array([1, 2], np.int32),
                       "weights": np.ones((2, 3), np.float32)}, "greeting", 1)
errors = []
for model, inputs in (("nope", {"x": np.float32([1])}), ("scale", {"z": np.float32([1])})):
    try:
        client.predict(inputs, model, 1)
    except Exception as error:
        errors.append(type(error).__name__)
listed = lambda value: value.tolist() if hasattr(value, "tolist") else value
plain = lambda value: [one.decode() if isinstance(one, bytes) else one for one in listed(value)]
print(json.dumps({"status": {str(k): v["state"] for k, v in status.items()}, "metadata": metadata,
                  "outputs": plain(outputs), "greeting": plain(text["greeting"]), "errors": errors}))
"""


@pytest.mark.parametrize("make", ["make_grpc_client", "make_http_client"])
def test_ovmsclient(server, make):
    pytest.importorskip("requests")
    port = server.grpc_port if "grpc" in make else server.rest_port
    command = [sys.executable, "-c", OVMS_CLIENT, make, f"127.0.0.1:{port}"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if "No module named 'ovmsclient'" in process.stderr:
        pytest.skip("ovmsclient is not installed")
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert found["status"] == {"2": "AVAILABLE"}
    if "grpc" in make:
        assert found["metadata"]["inputs"]["weights"] == {"shape": [-1, -1], "dtype": "DT_FLOAT"}
    else:  # as the server gave it
        signatures = found["metadata"]["metadata"]["signature_def"]["signature_def"]
        assert signatures["serving_default"]["inputs"]["weights"]["dtype"] == "DT_FLOAT"
    assert found["outputs"] == [4.0, 7.0] and found["greeting"] == ["hello a", "hello b"]
    assert found["errors"] == ["ModelNotFoundError", "InvalidInputError"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server):
    """The requests of TensorFlow Serving's REST documentation, with this server's models."""

    def curl(*arguments):
        process = subprocess.run(["curl", "-sS", *arguments], capture_output=True, text=True, timeout=60)
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout)

    url = f"http://localhost:{server.rest_port}/v1/models"
    assert curl("-X", "GET", f"{url}/scale")["model_version_status"][0]["state"] == "AVAILABLE"
    assert curl("-d", '{"instances": [1.0, 2.0, 5.0]}', "-X", "POST", f"{url}/scale:predict") == {
        "predictions": [5.0, 8.0, 17.0]
    }
    assert "signature_def" in curl(f"{url}/scale/metadata")["metadata"]
    examples = '{"examples": [{"x": 1.0}, {"x": 2.0}], "signature_name": "sum"}'
    assert curl("-d", examples, "-X", "POST", f"{url}/examples:regress") == {"results": [1.0, 2.0]}
    assert set(curl("-d", "{", f"{url}/scale:predict")) == {"error"}
    large = '{"instances": [' + ",".join(["1.0"] * 3000) + "]}"  # curl asks first: Expect: 100-continue
    assert curl("-H", "Expect: 100-continue", "-d", large, f"{url}/scale:predict") == {"predictions": [5.0] * 3000}
    gzip = curl("--compressed", "-d", '{"inputs": 1.0}', f"{url}/scale:predict")
    assert gzip == {"outputs": 5.0}
