import contextlib
import functools
import hashlib
import http.server
import json
import pathlib
import socket
import struct
import subprocess
import sys
import threading

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "serving" / "kubernetes" / "fetch_model.py"
FILES = {"saved_model.pb": b"graph", "variables/variables.data-00000-of-00001": b"weights" * 500_000}


def make_release(folder, files=FILES, version="1"):
    for name, data in files.items():
        path = folder / "saved_model" / "demo" / version / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "config.json").write_text("{}")
    entries = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps({"files": entries}))


def manifest_sha256(folder):
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


class Store(http.server.SimpleHTTPRequestHandler):
    """A bucket with a password, which is not well at its first request."""

    asked = None

    def do_GET(self):
        self.asked.append(self.path)
        if len(self.asked) == 1:
            self.send_error(503)
        elif self.headers.get("Authorization") != "Bearer key":
            self.send_error(403)
        else:
            super().do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def store(tmp_path):
    (tmp_path / "store" / "a").mkdir(parents=True)
    make_release(tmp_path / "store" / "a")
    return tmp_path / "store"


class BreakingStore(Store):
    """A bucket whose connections break: before an answer, and within a body by an orderly end and by a reset."""

    def do_GET(self):
        self.asked.append(self.path)
        data = pathlib.Path(self.translate_path(self.path)).read_bytes()
        times = self.asked.count(self.path)
        if self.path.endswith("/manifest.json") and times == 1:
            return  # closes the connection
        if "variables" not in self.path or times > 2:
            return http.server.SimpleHTTPRequestHandler.do_GET(self)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        if times == 2:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


class SendingElsewhere(Store):
    """A bucket that has its files elsewhere."""

    elsewhere = None

    def do_GET(self):
        self.asked.append(self.headers.get("Authorization"))
        self.send_response(302)
        self.send_header("Location", f"{self.elsewhere}{self.path}")
        self.end_headers()


class Elsewhere(Store):
    """Notes the Authorization that it gets, and asks for none."""

    def do_GET(self):
        self.asked.append(self.headers.get("Authorization"))
        http.server.SimpleHTTPRequestHandler.do_GET(self)


@contextlib.contextmanager
def serving(kind, directory, **attributes):
    """Yields a server's address and the list of what it was asked."""
    handler = type("Handler", (kind,), {"asked": [], **attributes})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=directory)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", handler.asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(store):
    with serving(Store, store) as (address, _):
        yield address


def fetch(tmp_path, *lines, key="Bearer key"):
    (tmp_path / "releases.txt").write_text("# number, address, manifest\n\n" + "\n".join(lines) + "\n")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "releases.txt"), str(tmp_path / "models")]
    environment = {"MODEL_STORE_AUTHORIZATION": key}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def failure(run):
    assert run.returncode == 1
    [line] = run.stderr.strip().splitlines()
    return line


def test_versions_are_fetched_over_http(tmp_path, store, server):
    (store / "b").mkdir()
    make_release(store / "b", {"saved_model.pb": b"newer"}, version="7")  # which number it had there does not matter
    lines = [f"{number} {server}/{name} {manifest_sha256(store / name)}" for number, name in ((1, "a"), (2, "b"))]
    run = fetch(tmp_path, *lines)
    assert run.returncode == 0, run.stderr
    base_path = tmp_path / "models" / "demo"
    assert sorted(path.name for path in base_path.iterdir()) == ["1", "2"]
    assert {name: (base_path / "1" / name).read_bytes() for name in FILES} == FILES
    assert (base_path / "2" / "saved_model.pb").read_bytes() == b"newer"
    # A pod's second start finds them there.
    assert fetch(tmp_path, *lines).stdout.count("is there already") == 2


def test_connections_that_break(tmp_path, store):
    with serving(BreakingStore, store) as (address, asked):
        run = fetch(tmp_path, f"1 {address}/a {manifest_sha256(store / 'a')}")
    assert run.returncode == 0, run.stderr
    version = tmp_path / "models" / "demo" / "1"
    assert {name: (version / name).read_bytes() for name in FILES} == FILES
    assert [asked.count(path) for path in sorted(set(asked))] == [2, 1, 3]  # the manifest, the graph, the weights


def test_credentials_are_for_the_store_alone(tmp_path, store):
    with serving(Elsewhere, store) as (elsewhere, seen), serving(SendingElsewhere, store, elsewhere=elsewhere) as asked:
        address, authorizations = asked
        run = fetch(tmp_path, f"1 {address}/a {manifest_sha256(store / 'a')}")
    assert run.returncode == 0, run.stderr
    assert authorizations == ["Bearer key"] * 3 and seen == [None] * 3


def test_a_store_that_refuses(tmp_path, store, server):
    run = fetch(tmp_path, f"1 {server}/a {manifest_sha256(store / 'a')}", key="Bearer lost")
    assert "a/manifest.json cannot be fetched: HTTP Error 403" in failure(run)
    assert "cannot be fetched: HTTP Error 404" in failure(fetch(tmp_path, f"1 {server}/c {'0' * 64}"))


def test_another_manifest(tmp_path, store):
    run = fetch(tmp_path, f"1 {(store / 'a').as_uri()} {'0' * 64}")
    assert f"manifest.json has sha256 {manifest_sha256(store / 'a')}, expected {'0' * 64}" in failure(run)
    assert not (tmp_path / "models").exists()


def test_a_damaged_file(tmp_path, store):
    data = store / "a" / "saved_model" / "demo" / "1" / "saved_model.pb"
    data.write_bytes(b"grapH")
    line = f"1 {(store / 'a').as_uri()} {manifest_sha256(store / 'a')}"
    assert "saved_model.pb has 5 bytes and sha256" in failure(fetch(tmp_path, line))
    assert not (tmp_path / "models" / "demo" / "1").exists()
    data.write_bytes(b"graph")
    assert fetch(tmp_path, line).returncode == 0  # what the first try left is in nobody's way
    assert (tmp_path / "models" / "demo" / "1" / "saved_model.pb").read_bytes() == b"graph"


def test_a_manifest_that_climbs(tmp_path, store):
    (store / "a" / "manifest.json").write_text('{"files": {"saved_model/demo/1/../../../../x": {}}}')
    run = fetch(tmp_path, f"1 {(store / 'a').as_uri()} {manifest_sha256(store / 'a')}")
    assert "expected saved_model/NAME/VERSION" in failure(run)


def test_a_release_without_a_saved_model(tmp_path, store):
    (store / "a" / "manifest.json").write_text('{"files": {"config.json": {}}}')
    run = fetch(tmp_path, f"1 {(store / 'a').as_uri()} {manifest_sha256(store / 'a')}")
    assert "has 0 SavedModels, expected one" in failure(run)


@pytest.mark.parametrize("line", ["1 https://a", "stable https://a " + "0" * 64, "1 2 3 4"])
def test_a_line_that_is_wrong(tmp_path, line):
    assert f"has the line {line!r}" in failure(fetch(tmp_path, line))


def test_no_lines(tmp_path):
    assert "names no release" in failure(fetch(tmp_path))
