"""Requests that are generated from the server's own description (schemathesis), and what they must not find."""

import os
import re
import subprocess
import sys

import jsonschema
import pytest

from tests.server.conftest import send

CASES = os.environ.get("TFGPT_SCHEMATHESIS_CASES", "200")  # of each operation
CAPTURED = {"capture_output": True, "text": True, "timeout": 1500}
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)


def test_the_description_is_one(served):
    status, description, _ = send(served, "GET", "/openapi.json")
    assert status == 200 and description["openapi"].startswith("3.1")
    for operations in description["paths"].values():
        for operation in operations.values():
            body = operation.get("requestBody")
            if body:
                schema = body["content"]["application/json"]["schema"]
                jsonschema.Draft202012Validator.check_schema(schema)
                assert schema["properties"]["model"]["enum"] == ["tiny", "tiny:int8"]


@pytest.mark.slow
def test_generated_requests(served, tmp_path):
    pytest.importorskip("schemathesis")
    url = f"http://127.0.0.1:{served.rest_port}"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks", ",".join(CHECKS)]
    command += ["--max-examples", CASES, "--mode", "all", "--phases", "examples,coverage,fuzzing", "--workers", "1"]
    done = subprocess.run([*command, "--seed", "1", "--no-color"], cwd=tmp_path, **CAPTURED)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    generated = re.search(r"(\d+) generated", done.stdout)
    assert int(generated[1]) > 3 * int(CASES), done.stdout[-2000:]
    print(generated[0])  # for `pytest -rA`
    assert send(served, "GET", "/readyz")[0] == 200
