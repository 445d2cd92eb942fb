"""Checksums of files."""

import hashlib


def sha256_of_file(path):
    """The SHA-256 of a file's contents in hexadecimal, read piece by piece."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
