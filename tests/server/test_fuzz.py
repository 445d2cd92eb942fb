"""Requests that nobody would write on purpose: each has a proper status, and the server lives."""

import json
import random

import grpc
import pytest

from tests.server.test_grpc import predict_request

PROPER_HTTP = {200, 400, 404, 413, 501}
PROPER_GRPC = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED"}
MODELS = ("scale", "types", "greeting", "examples", "nope", "")
SIGNATURES = (
    "",
    "serving_default",
    "string",
    "float32",
    "uint64",
    "bool",
    "sum",
    "__saved_model_init_op",
    "nope",
    "\0",
)
NAMES = ("x", "name", "times", "weights", "inputs", "b64", "", "\0", "é")
LEAVES = (
    *(0, 1, -1, 2**31, 2**63, 2**64, 2**100, 10**400, 0.5, 1e308, -1e-320, float("nan"), float("inf")),
    *(True, False, None, "", "a", "%%%", "AAAA", "\ud800", "\x00", "日本" * 50, "a" * 5000),
)


def random_value(rng, depth=0):
    kind = rng.random()
    if depth > 4 or kind < 0.45:
        return rng.choice(LEAVES)
    if kind < 0.75:
        return [random_value(rng, depth + 1) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
    if kind < 0.85:
        return {"b64": rng.choice(("", "AA==", "AA=", "/w", "%", 3, None))}
    return {rng.choice(NAMES): random_value(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 3)))}


def random_body(rng):
    body = {}
    if rng.random() < 0.5:
        body["signature_name"] = rng.choice((*SIGNATURES, 1, None))
    for key in rng.sample(("instances", "inputs", "examples", "context"), rng.choice((0, 1, 1, 1, 2))):
        body[key] = random_value(rng)
    data = json.dumps(body, ensure_ascii=rng.random() < 0.7).encode("utf-8", "surrogatepass")
    return mutated(rng, data) if rng.random() < 0.4 else data


def mutated(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(data) + 1)
        change = rng.random()
        if change < 0.4:
            data[place:place] = bytes([rng.randrange(256)])
        elif change < 0.7:
            del data[place : place + rng.randrange(1, 9)]
        else:
            data[place : place + 1] = bytes([rng.choice(b'{}[]",:\\0e-\xff\x00')])
    return bytes(data)


def random_path(rng):
    model = rng.choice((*MODELS, "%00", "a/b", "%73cale", "sc%FFle"))
    where = rng.choice(
        ("", "", "", "/versions/1", "/versions/9", f"/versions/{2**70}", "/labels/stable", "/labels/%ff", "//")
    )
    ending = rng.choice((":predict", ":predict", ":classify", ":regress", ":Predict", "", "/metadata", ":x"))
    return f"/v1/models/{model}{where}{ending}"


@pytest.mark.parametrize("seed", range(4))
def test_rest(ask, seed):
    rng = random.Random(seed)
    seen = set()
    for _ in range(150):
        method = rng.choice(("POST", "POST", "POST", "GET", "PUT"))
        path, body = random_path(rng), random_body(rng)
        status, content, headers = ask(method, path, body)
        assert status in PROPER_HTTP, (method, path, body, content)
        assert headers["content-type"] == "application/json"
        assert status == 200 or set(content) == {"error"}
        seen.add(status)
    assert {200, 400, 404} <= seen
    assert ask("POST", "/v1/models/scale:predict", {"instances": [1.0]})[1] == {"predictions": [5.0]}


@pytest.mark.parametrize("seed", range(4))
def test_grpc(server, ask, seed):
    """Serialized requests with bytes changed: most parse, as something else."""
    rng = random.Random(seed)
    requests = [
        predict_request("scale", x=[1.0, 2.0]),
        predict_request("greeting", name=["a", "b"], times=[1, 2]),
        predict_request("types", "string", x=["a", "b"]),
        predict_request("types", "int8", version=1, x=[[1, 2]], outputs=["y"]),
    ]
    originals = [request.SerializeToString() for request in requests]
    methods = ["PredictionService/Predict"] * 5 + [
        *("PredictionService/Classify", "PredictionService/Regress", "PredictionService/GetModelMetadata"),
        *("PredictionService/MultiInference", "ModelService/GetModelStatus", "ModelService/HandleReloadConfigRequest"),
    ]
    seen = set()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        for _ in range(150):
            method = rng.choice(methods)
            body = mutated(rng, rng.choice(originals)) if rng.random() < 0.9 else rng.randbytes(rng.randrange(100))
            try:
                channel.unary_unary(f"/tensorflow.serving.{method}")(body, timeout=60)
                code = "OK"
            except grpc.RpcError as error:
                code = error.code().name
            assert code in PROPER_GRPC, (method, body)
            seen.add(code)
    assert {"OK", "INVALID_ARGUMENT"} <= seen
    assert ask("POST", "/v1/models/scale:predict", {"instances": [1.0]})[1] == {"predictions": [5.0]}
