"""Fetches releases' SavedModels into a TensorFlow Serving base path, checked: fetch_model.py RELEASES MODELS.

RELEASES is a file like releases.txt. A release is any address below which its files lie, such as a bucket's: https,
http or file. With MODEL_STORE_AUTHORIZATION in the environment, requests carry it as their Authorization header, but
not on to where a store redirects them. Runs in the init container, in an image that has Python and nothing of ours, so
it needs the standard library alone.
"""

import hashlib
import http.client
import io
import json
import os
import pathlib
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

ATTEMPTS = 5
PIECE = 2**20


def main(releases, models):
    """Fetches every version that is not there yet; exits with a sentence if one cannot be had or is damaged."""
    for number, address, manifest_sha256 in read_releases(releases):
        print(fetch_version(number, address, manifest_sha256, pathlib.Path(models)), flush=True)


def read_releases(path):
    """The lines of a releases file: number, address, SHA-256 of the manifest."""
    found = []
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 3 or not (words[0].isascii() and words[0].isdigit()):
            sys.exit(f"{path} has the line {line!r}, expected a number, an address and a SHA-256")
        found.append(words)
    if not found:
        sys.exit(f"{path} names no release, expected at least one")
    return found


def fetch_version(number, address, manifest_sha256, models):
    """Fetches one version under a hidden name and renames it; returns what was done."""
    manifest = io.BytesIO()
    _, found = fetch(f"{address}/manifest.json", manifest)
    if found != manifest_sha256:
        sys.exit(f"{address}/manifest.json has sha256 {found}, expected {manifest_sha256}")
    name, files = newest_saved_model(json.loads(manifest.getvalue())["files"], address)
    target = models / name / number
    if target.exists():
        return f"{target} is there already"  # the container was restarted; the name appears only when all is checked
    hidden = target.with_name(f".fetching-{number}")
    shutil.rmtree(hidden, ignore_errors=True)
    for path, (inside, entry) in files.items():
        fetch_file(f"{address}/{urllib.parse.quote(path)}", hidden / inside, entry)
    os.rename(hidden, target)
    return f"{target} is {address}"


def newest_saved_model(files, address):
    """The name of a release's model, and its newest version's files: path → (path in the version, manifest's entry)."""
    versions = {}
    for path, entry in files.items():
        parts = pathlib.PurePosixPath(path).parts
        if parts[0] == "saved_model" and len(parts) > 3:
            if ".." in parts or not parts[2].isdigit():
                sys.exit(f"{address}/manifest.json names {path!r}, expected saved_model/NAME/VERSION/…")
            versions.setdefault((parts[1], int(parts[2])), {})[path] = (pathlib.Path(*parts[3:]), entry)
    if len({name for name, _ in versions}) != 1:
        sys.exit(f"{address} has {len(versions)} SavedModels, expected one model's")
    newest = max(versions)
    return newest[0], versions[newest]


def fetch_file(address, path, entry):
    """Writes a file; exits if it is not what the manifest says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        size, sha256 = fetch(address, file)
    if (size, sha256) != (entry["bytes"], entry["sha256"]):
        expected = f"expected {entry['bytes']} and {entry['sha256']} as in manifest.json"
        sys.exit(f"{address} has {size} bytes and sha256 {sha256}, {expected}")


def fetch(address, file):
    """Writes a response's body to a file; returns its size and SHA-256.

    A store that does not answer, or breaks off, is asked again for the whole, after longer and longer waits.
    """
    request = urllib.request.Request(address)
    if authorization := os.environ.get("MODEL_STORE_AUTHORIZATION"):
        request.add_unredirected_header("Authorization", authorization)  # it is no other host's business
    for attempt in range(ATTEMPTS):
        file.seek(0)
        file.truncate()
        try:
            return copy_response(request, file)
        except (OSError, http.client.HTTPException) as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if refused or attempt == ATTEMPTS - 1:
                sys.exit(f"{address} cannot be fetched: {error}")
            time.sleep(2**attempt)


def copy_response(request, file):
    """One attempt: the size and SHA-256 of what came, which is all that was announced."""
    digest, size = hashlib.sha256(), 0
    with urllib.request.urlopen(request, timeout=60) as response:
        while piece := response.read(PIECE):
            digest.update(piece)
            size += len(piece)
            file.write(piece)
        # A read by pieces takes a connection's early end for the body's.
        announced = response.headers["Content-Length"]
    if announced is not None and size != int(announced):
        raise http.client.HTTPException(f"the connection ended after {size} of {announced} bytes")
    return size, digest.hexdigest()


if __name__ == "__main__":
    main(*sys.argv[1:])
