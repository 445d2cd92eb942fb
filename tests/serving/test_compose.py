import http.server
import pathlib
import subprocess
import threading

import pytest
import yaml

SERVING = pathlib.Path(__file__).resolve().parents[2] / "serving"
SERVERS = ["server", "server-gpu"]


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((SERVING / "compose.yaml").read_text(encoding="utf-8"))


def flags(service):
    """--name=value of a server's command line."""
    return dict(flag.removeprefix("--").split("=", 1) for flag in service["command"])


@pytest.mark.parametrize("name", SERVERS)
def test_flags(compose, name):
    chosen = flags(compose["services"][name])
    assert compose["services"][name]["entrypoint"] == ["tensorflow_model_server"]
    assert (chosen["port"], chosen["rest_api_port"]) == ("8500", "8501")
    # Without it, a server whose configuration has labels does not start.
    assert chosen["allow_version_labels_for_unavailable_models"] == "true"
    assert chosen["enable_batching"] == "true"
    assert not any("xla" in flag for flag in chosen)
    files = [value for flag, value in chosen.items() if flag.endswith("_file")]
    assert len(files) == 3
    for file in files:
        assert (SERVING / pathlib.PurePosixPath(file).relative_to("/config")).is_file()


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_is_confined(compose, name):
    service = compose["services"][name]
    assert service["read_only"] and service["init"] and service["cap_drop"] == ["ALL"]
    assert service["user"].partition(":")[0] not in ("", "0", "root")
    assert all(volume["read_only"] for volume in service["volumes"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    limits = service["deploy"]["resources"]["limits"]
    assert flags(service)["tensorflow_intra_op_parallelism"] == limits["cpus"] and limits["memory"]


def test_the_graphics_processor(compose):
    service = compose["services"]["server-gpu"]
    assert service["profiles"] == ["gpu"] and service["image"] == compose["services"]["server"]["image"] + "-gpu"
    [device] = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]
    assert "reservations" not in compose["services"]["server"]["deploy"]["resources"]


def test_images_are_pinned(compose):
    for service in compose["services"].values():
        tag = service["image"].rpartition(":")[2]
        assert any(digit.isdigit() for digit in tag) and "latest" not in tag


def test_mounts_exist(compose):
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            if source.startswith("$"):
                assert source == "${MODELS:-../build/models}" and not volume["bind"]["create_host_path"]
            else:
                assert (SERVING / source).exists(), source


class Status(http.server.BaseHTTPRequestHandler):
    """Model status, as tf_serving's transcript has it."""

    states = ()

    def do_GET(self):
        body = "".join(f'{{\n   "version": "1",\n   "state": "{state}"\n  }}' for state in self.states)
        self.send_response(200 if self.path == "/v1/models/demo" else 404)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(
    "states, healthy",
    [(["AVAILABLE"], True), (["LOADING"], False), (["END", "AVAILABLE"], True), (["UNAVAILABLE"], False)],
)
def test_the_health_check_runs(compose, states, healthy):
    command = compose["services"]["server"]["healthcheck"]["test"]
    assert command[0] == "CMD"
    handler = type("Handler", (Status,), {"states": states})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            run = [word.replace("/8501", f"/{server.server_port}") for word in command[1:]]
            assert (subprocess.run(run, timeout=20).returncode == 0) == healthy
        finally:
            server.shutdown()
            thread.join()


def test_the_health_check_of_no_server(compose):
    run = [word.replace("/8501", "/1") for word in compose["services"]["server"]["healthcheck"]["test"][1:]]
    assert subprocess.run(run, timeout=20, stderr=subprocess.DEVNULL).returncode != 0
