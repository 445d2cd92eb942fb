"""The REST API. What is expected of each case is TensorFlow Serving's behaviour, from its documentation and source."""

import base64
import http.client
import json
import math

import numpy as np
import pytest

from tests.server.served_models import NUMBERS, UNWRITABLE

PREDICT = "/v1/models/scale:predict"


def is_error(content):
    return isinstance(content, dict) and set(content) == {"error"} and isinstance(content["error"], str)


@pytest.mark.parametrize(
    "path, body, expected",
    [
        (PREDICT, {"instances": [1.0, 2]}, {"predictions": [5.0, 8.0]}),
        (PREDICT, {"instances": [{"x": 1}]}, {"predictions": [5.0]}),
        (PREDICT, {"instances": [[1.0, 2.0]]}, {"predictions": [[5.0, 8.0]]}),  # ranks are the graph's affair
        (PREDICT, {"inputs": [1.0]}, {"outputs": [5.0]}),
        (PREDICT, {"inputs": {"x": [1.0]}}, {"outputs": [5.0]}),
        (PREDICT, {"inputs": {"x": [1.0], "more": "ignored"}}, {"outputs": [5.0]}),
        (PREDICT, {"inputs": 1.0}, {"outputs": 5.0}),
        (PREDICT, {"inputs": []}, {"outputs": []}),
        (PREDICT, {"signature_name": "serving_default", "inputs": [1.0]}, {"outputs": [5.0]}),
        (PREDICT, {"signature_name": "", "inputs": [1.0]}, {"outputs": [5.0]}),
        (PREDICT, {"other": 1, "instances": [1.0]}, {"predictions": [5.0]}),
        ("/v1/models/scale/versions/1:predict", {"instances": [1.0]}, {"predictions": [4.0]}),
        ("/v1/models/scale/versions/0002:predict", {"instances": [1.0]}, {"predictions": [5.0]}),
        ("/v1/models/scale/labels/stable:predict", {"instances": [1.0]}, {"predictions": [4.0]}),
        ("/v1/models/scale/labels/canary:predict", {"instances": [1.0]}, {"predictions": [5.0]}),
        ("/V1/Models/scale:PREDICT", {"instances": [1.0]}, {"predictions": [5.0]}),
        ("/v1/models/%73cale:predict?a=b", {"instances": [1.0]}, {"predictions": [5.0]}),
        (PREDICT, '{"instances": [1.0], "instances": [7.0]}', {"predictions": [5.0]}),  # the first of equal keys
        (PREDICT, '\ufeff {"instances": [1e0]} ', {"predictions": [5.0]}),
    ],
)
def test_predictions(ask, path, body, expected):
    status, content, headers = ask("POST", path, body)
    assert (status, content, headers["content-type"]) == (200, expected, "application/json")


def test_several_inputs_and_outputs(ask):
    rows = [
        {"name": "a", "times": 1, "weights": [0.5, 1.0]},
        {"name": {"b64": "/wA="}, "times": 2, "weights": [2, 3]},
    ]
    status, content, _ = ask("POST", "/v1/models/greeting:predict", {"instances": rows})
    assert status == 200
    assert content["predictions"] == [
        {"greeting": "hello a", "name_bytes": {"b64": "YQ=="}, "sums": 1.5, "times": 1},
        {"greeting": "hello \udcff\x00", "name_bytes": {"b64": "/wA="}, "sums": 5.0, "times": 2},  # raw bytes
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    status, content, _ = ask("POST", "/v1/models/greeting:predict", {"inputs": columns})
    assert status == 200 and content["outputs"]["sums"] == [1.5, 5.0]
    assert content["outputs"]["name_bytes"] == [{"b64": "YQ=="}, {"b64": "/wA="}]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "  \n",
        "{",
        "[1]",
        "1",
        '{"instances": [1.0]} {}',
        '{"instances": [1.0],}',
        '{"instances": [01]}',
        '{"instances": [1.]}',
        '{"instances": [1e999]}',
        '{"instances": ["\\ud800"]}',
        '{"instances": ["\\udc00\\ud800"]}',
        '{"instances": ["tab\t"]}',
        '{"instances": ' + "[" * 100_000 + "]" * 100_000 + "}",
        {"foo": [1]},
        {"instances": [1.0], "inputs": [1.0]},
        {"instances": []},
        {"instances": 1.0},
        {"instances": {"x": [1.0]}},
        {"instances": None},
        {"instances": ["a"]},
        {"instances": [True]},
        {"instances": [None]},
        {"instances": [2**24]},  # a float32 would round it
        {"instances": [1e39]},
        {"instances": [1.0, [2.0]]},
        {"instances": [[1.0], [2.0, 3.0]]},
        {"instances": [1.0, {"x": 2.0}]},
        {"instances": [{"x": 2.0}, 1.0]},
        {"instances": [{"y": 2.0}]},
        {"instances": [{"x": 2.0, "y": 3.0}]},
        {"instances": [{}]},
        '{"instances": [{"x": 1.0, "x": 2.0}]}',
        {"instances": [{"b64": "AAAA"}]},
        {"inputs": None},
        {"inputs": {"y": [1.0]}},
        {"inputs": [[1.0], 2.0]},
        {"signature_name": "nope", "inputs": [1.0]},
        {"signature_name": 1, "inputs": [1.0]},
        {"signature_name": None, "inputs": [1.0]},
    ],
)
def test_requests_that_are_wrong(ask, body):
    status, content, _ = ask("POST", PREDICT, body)
    assert status == 400 and is_error(content)


@pytest.mark.parametrize(
    "body",
    [
        {"instances": ["a"]},
        {"instances": [{"name": "a", "times": 1}]},  # a default is no use over REST
        {"inputs": {"name": ["a"], "times": [1]}},
        {"inputs": ["a"]},
        {"instances": [{"b64": "YQ=="}]},
        {"instances": [{"name": "a", "times": 1, "weights": [1.0]}, {"name": "a"}]},
        {"instances": [{"name": "a", "times": 1.0, "weights": [1.0]}]},
        {"instances": [{"name": "a", "times": 2**31, "weights": [1.0]}]},
        {"instances": [{"name": "a", "times": True, "weights": [1.0]}]},
        {"instances": [{"name": 1, "times": 1, "weights": [1.0]}]},
        {"instances": [{"name": {"b64": "%%%"}, "times": 1, "weights": [1.0]}]},
        {"instances": [{"name": {"b64": "YQ="}, "times": 1, "weights": [1.0]}]},
        {"instances": [{"name": {"b64": "YQ==", "x": 1}, "times": 1, "weights": [1.0]}]},
        {"inputs": {"name": "a", "times": [1, 2], "weights": 1.0}},  # wrong in the graph: a scalar has no axis 1
        {"inputs": {"name": ["a"], "times": [0], "weights": [[1.0]]}},  # an assertion in the graph
    ],
)
def test_requests_that_do_not_fit_the_signature(ask, body):
    status, content, _ = ask("POST", "/v1/models/greeting:predict", body)
    assert status == 400 and is_error(content)


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("POST", "/v1/models/nope:predict", 404),
        ("POST", "/v1/models/scale/versions/9:predict", 404),
        ("POST", "/v1/models/scale/labels/nope:predict", 400),
        ("POST", "/v1/models/types/labels/stable:predict", 400),
        ("POST", "/v1/models/scale/versions/x:predict", 400),
        ("POST", f"/v1/models/scale/versions/{2**64}:predict", 400),
        ("POST", "/v1/models/scale/versions/1/labels/stable:predict", 400),
        ("POST", "/v1/models/scale:frobnicate", 400),
        ("POST", "/v1/models/scale", 400),
        ("POST", "/v1/models/scale:predict/", 400),
        ("GET", "/v1/models/scale:predict", 400),
        ("PUT", "/v1/models/scale:predict", 400),
        ("DELETE", "/v1/models/scale", 400),
        ("OPTIONS", "/v1/models/scale", 400),
        ("GET", "/v1/models", 400),
        ("GET", "/v1/foo", 400),
        ("GET", "/v1/models/nope", 404),
        ("GET", "/v1/models/nope/metadata", 404),
        ("GET", "/v1/models/scale/versions/9", 404),
        ("GET", "/v1/models/scale/versions/9/metadata", 404),
        ("GET", "/v1/models/scale/labels/nope/metadata", 400),
        ("GET", "/v1/models/scale/labels/nope", 200),  # labels count for nothing here
        ("GET", "/v1/models/scale/versions/1/metadata", 200),
    ],
)
def test_paths(ask, method, path, status):
    found, content, _ = ask(method, path, {"instances": [1.0]} if method == "POST" else None)
    assert found == status and is_error(content) == (status != 200)


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/models/scale", "/statuspage", "/monitoring/prometheus/metrics"])
def test_other_pages_are_none(ask, path):
    status, content, headers = ask("GET", path)
    assert status == 404 and headers["content-type"].startswith("text/html") and b"Not Found" in content


def test_an_unknown_model_is_found_after_the_json_is_parsed(ask):
    assert ask("POST", "/v1/models/nope:predict", "{")[0] == 400
    assert ask("POST", "/v1/models/nope:predict", "{}")[0] == 404


def test_status(ask):
    def version(number):
        return {"version": number, "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}

    assert ask("GET", "/v1/models/scale")[1] == {"model_version_status": [version("2"), version("1")]}
    assert ask("GET", "/v1/models/scale/versions/1")[1] == {"model_version_status": [version("1")]}


def test_metadata(ask):
    status, content, _ = ask("GET", "/v1/models/greeting/metadata")
    assert status == 200 and content["model_spec"] == {"name": "greeting", "version": "1", "signature_name": ""}
    signatures = content["metadata"]["signature_def"]["signature_def"]
    weights = signatures["serving_default"]["inputs"]["weights"]
    assert weights["dtype"] == "DT_FLOAT"
    sizes = [{"size": "-1", "name": ""}, {"size": "-1", "name": ""}]
    assert weights["tensor_shape"] == {"dim": sizes, "unknown_rank": False}
    default = signatures["serving_default"]["defaults"]["weights"]
    assert np.frombuffer(base64.b64decode(default["tensor_content"]), np.float32).tolist() == [0.5, 0.25]
    assert signatures["serving_default"]["method_name"] == "tensorflow/serving/predict"


VALUES = {
    "float32": [0.1, -3.5, 16777215, 3.4e38, 1e-45],
    "float64": [0.1, 1e300, 2**53 - 1, -2.5],
    "int8": [-128, 127],
    "uint8": [0, 255],
    "int16": [-32768, 32767],
    "int32": [-(2**31), 2**31 - 1],
    "int64": [-(2**63), 2**63 - 1],
    "uint32": [0, 2**32 - 1],
    "uint64": [0, 2**64 - 1],
    "bool": [True, False],
    "string": ["", "é日本", '"\\\n\x01\x7f'],
}


@pytest.mark.parametrize("dtype", [*NUMBERS, "string"])
def test_every_dtype_comes_back(ask, dtype):
    values = VALUES[dtype]
    for form, key in (("instances", "predictions"), ("inputs", "outputs")):
        status, content, _ = ask("POST", "/v1/models/types:predict", {"signature_name": dtype, form: values})
        assert status == 200
        if dtype == "float32":
            assert content[key] == pytest.approx(values, rel=1e-7)
        else:
            assert content[key] == values and list(map(type, content[key])) == list(map(type, content[key]))


@pytest.mark.parametrize(
    "dtype, value, expected",
    [("int8", 300, 44), ("uint8", -1, 255), ("int16", 40000, -25536)],
)
def test_narrow_integers_wrap(ask, dtype, value, expected):
    status, content, _ = ask("POST", "/v1/models/types:predict", {"signature_name": dtype, "inputs": [value]})
    assert (status, content) == (200, {"outputs": [expected]})


@pytest.mark.parametrize(
    "dtype, value",
    [
        ("int8", 2**31),
        ("int64", 2**63),
        ("uint32", -1),
        ("uint32", 2**32),
        ("uint64", -1),
        ("uint64", 2**64),
        ("int32", 1.0),
        ("int32", "1"),
        ("bool", 1),
        ("bool", "true"),
        ("float64", 2**53),
        ("string", 1),
        ("string", None),
    ],
)
def test_values_of_another_type_are_refused(ask, dtype, value):
    status, content, _ = ask("POST", "/v1/models/types:predict", {"signature_name": dtype, "inputs": [value]})
    assert status == 400 and is_error(content)


@pytest.mark.parametrize("dtype", UNWRITABLE)
def test_types_without_json(ask, dtype):
    body = {"signature_name": dtype, "inputs": [1]}
    assert ask("POST", "/v1/models/types:predict", body)[0] == 501
    body = {"signature_name": dtype, "instances": [1]}
    assert ask("POST", "/v1/models/types:predict", body)[0] == 400


def test_numbers_as_they_are_written(ask, server):
    body = '{"signature_name": "float32", "inputs": [NaN, Infinity, -Infinity, Inf, -Inf, 0.2, 1e10, 1234567, -0.0, 7]}'
    connection = http.client.HTTPConnection(server.config.host, server.rest_port)
    connection.request("POST", "/v1/models/types:predict", body)
    text = connection.getresponse().read().decode()
    connection.close()
    written = [line.strip(" ,") for line in text.splitlines()[2:-2]]
    expected = ["NaN", "Infinity", "-Infinity", "Infinity", "-Infinity", "0.2", "1e+10", "1234567.0", "-0.0", "7.0"]
    assert written == expected


def test_outputs_without_rows_have_no_row_format(ask):
    path = "/v1/models/types:predict"
    assert ask("POST", path, {"signature_name": "scalar", "inputs": [1.0, 2.0]})[1] == {"outputs": 3.0}
    assert ask("POST", path, {"signature_name": "scalar", "instances": [1.0, 2.0]})[0] == 400
    assert ask("POST", path, {"signature_name": "halved", "instances": [1.0, 2.0]})[0] == 400
    status, content, _ = ask("POST", path, {"signature_name": "halved", "inputs": [1.0, 2.0]})
    assert (status, content) == (200, {"outputs": {"half": [1.0], "whole": [1.0, 2.0]}})


@pytest.mark.parametrize("packed", ["/+8=", "/+8", " /+8= ", "/+8=\n"])
def test_base64(ask, packed):
    body = {"signature_name": "string", "inputs": {"b64": packed}}
    status, content, _ = ask("POST", "/v1/models/types:predict", body)
    assert (status, content["outputs"]) == (200, base64.b64decode("/+8=").decode("utf-8", "surrogateescape"))


def test_bytes_that_are_no_utf8_pass(ask):
    body = b'{"signature_name": "string", "inputs": ["\xff\xfe \\u00e9 \\ud83d\\ude00"]}'
    status, content, _ = ask("POST", "/v1/models/types:predict", body)
    assert (status, content["outputs"]) == (200, ["\udcff\udcfe é 😀"])


def test_classify_and_regress(ask):
    path = "/v1/models/examples"
    examples = [{"x": 0.25, "y": [0.75]}, {"x": 1.5}]
    status, content, _ = ask("POST", f"{path}:classify", {"examples": examples})
    assert status == 200
    assert content["results"] == [[["first", 0.25], ["second", 0.75]], [["first", 1.5], ["second", 0.0]]]
    body = {"context": {"y": 2.0}, "examples": [{"x": 0.5}], "signature_name": "scores_only"}
    assert ask("POST", f"{path}:classify", body)[1] == {"results": [[["", 0.5], ["", 2.0]]]}
    body = {"signature_name": "sum", "examples": examples}
    assert ask("POST", f"{path}/versions/1:regress", body)[1] == {"results": [1.0, 1.5]}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"examples": []},
        {"examples": {"x": 1.0}},
        {"examples": [1.0]},
        {"examples": [{"x": None}]},
        {"examples": [{"x": [[1.0]]}]},
        {"examples": [{"x": [1.0, "a"]}]},
        {"examples": [{"x": [1, 1.0]}]},
        {"examples": [{"x": 1e39}]},
        {"examples": [{"x": 2**63}]},
        {"examples": [{"x": {"y": 1}}]},
        {"examples": [{"x": 1.0}], "context": 1},
        {"examples": [{"x": "a"}]},  # wrong in the graph: x is of floats
        {"examples": [{"x": 1.0}], "signature_name": "nope"},
    ],
)
def test_examples_that_are_wrong(ask, body):
    for verb in ("classify", "regress"):
        status, content, _ = ask("POST", f"/v1/models/examples:{verb}", body)
        assert status == 400 and is_error(content)


def test_signatures_of_another_kind(ask):
    body = {"examples": [{"x": 1.0}]}
    assert ask("POST", "/v1/models/scale:classify", body)[0] == 400
    assert ask("POST", "/v1/models/scale:regress", body)[0] == 400
    assert ask("POST", "/v1/models/nope:regress", body)[0] == 404
    example = base64.b64encode(b"").decode()  # an example without features, as predict takes it
    status, content, _ = ask("POST", "/v1/models/examples:predict", {"instances": [{"b64": example}]})
    assert status == 200 and content["predictions"] == [{"classes": ["first", "second"], "scores": [0.0, 0.0]}]


def test_the_layout_of_answers(server):
    """Spaces and line breaks, too, are those of TensorFlow Serving."""
    connection = http.client.HTTPConnection(server.config.host, server.rest_port)

    def text(body, path=PREDICT):
        connection.request("POST", path, json.dumps(body))
        return connection.getresponse().read().decode()

    assert text({"instances": [1, 2]}) == '{\n    "predictions": [5.0, 8.0\n    ]\n}'
    assert text({"inputs": [1, 2]}) == '{\n    "outputs": [\n        5.0,\n        8.0\n    ]\n}'
    rows = text({"instances": [{"name": "a", "times": 1, "weights": [1]}]}, "/v1/models/greeting:predict")
    assert rows.startswith('{\n    "predictions": [\n        {\n            "greeting": "hello a",\n')
    assert rows.endswith('"times": 1\n        }\n    ]\n}')
    assert text({}) == "{\n    \"error\": \"Missing 'inputs' or 'instances' key\"\n}"
    connection.close()
    assert math.isfinite(json.loads(rows)["predictions"][0]["sums"])
