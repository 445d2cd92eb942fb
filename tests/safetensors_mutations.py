"""Real safetensors files with damaged headers, read in a process that may hardly allocate.

`python -m tests.safetensors_mutations SEED COUNT` damages the headers of files of float32, float16 and bfloat16 weights
and reads each twice: by `SafetensorsFile`, and by the safetensors library from its bytes. It prints the counts of the
verdicts as JSON and fails at the first file that is neither read as the library reads it nor refused in one sentence.
"""

import collections
import json
import os
import pathlib
import random
import resource
import signal
import sys
import tempfile

import ml_dtypes
import numpy as np
import safetensors.numpy

from tests.models import gpt2_numpy
from tfgpt.errors import UserError
from tfgpt.safetensors_file import SafetensorsFile

HEADROOM = 48 * 2**20  # bytes that the process may allocate
CPU_SECONDS = 20  # for one file; a few milliseconds are usual

# What this reader refuses and the library lets pass.
STRICTER = ("twice in its header", "its dtype, shape and data_offsets", "printable characters", "expected one of F64")

HUGE = (2**31, 2**32 - 1, 2**40, 2**61, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30)
ODD = (-1, 0, 1, 1.0, 2.5, True, None, "4", [], [4], {}, "F32", float("nan"), *HUGE)
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F4", "f32", "F33", "", "object")


def originals():
    """Small files of GPT-2's tensors: bytes."""
    weights = gpt2_numpy.random_weights(2, 8, 20, 6)
    for dtype, metadata in ((np.float32, {"format": "pt"}), (np.float16, None), (ml_dtypes.bfloat16, {"a": "é"})):
        yield safetensors.numpy.save({name: tensor.astype(dtype) for name, tensor in weights.items()}, metadata)


def mutated(original, generator):
    """A copy with its header damaged in one to three ways; some of them leave it whole."""
    length = int.from_bytes(original[:8], "little")
    header, data = original[8 : 8 + length], original[8 + length :]
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        mutate = generator.choice((_change_entries, _change_entries, _change_entries, _change_bytes))
        header, data = mutate(header, data, generator)
    length = len(header)
    kind = generator.randrange(10)
    if kind == 0:
        length = generator.choice((0, 1, length - 1, length + 1, length + len(data), length + len(data) + 1, *HUGE[:7]))
    elif kind == 1:
        length = generator.getrandbits(generator.randint(1, 64))
    damaged = length.to_bytes(8, "little") + header + data
    if generator.randrange(10) == 0:
        damaged = damaged[: generator.randrange(len(damaged))]
    return damaged + bytes(generator.choice((0, 0, 0, 0, 0, 0, 0, 1, 8)))


def _change_bytes(header, data, generator):
    header = bytearray(header)
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(len(header) + 1)
        end = place + generator.randrange(12)
        new = generator.choice((b"", bytes([generator.randrange(256)]), b"9" * 5000, b"[" * 5000, header[place:end]))
        header[place : generator.choice((place, place + 1, end))] = new
    return bytes(header), data


def _change_entries(header, data, generator):
    try:
        entries = list(json.loads(header).items())
        number = generator.randrange(len(entries))
    except (ValueError, AttributeError, RecursionError):
        return header, data
    name, entry = entries[number]
    if generator.randrange(4) and isinstance(entry, dict) and _has_lists(entry):
        kind = generator.choice((_change_shape, _change_offsets, _change_dtype, _change_keys))
        data = kind(entry, entries, data, generator)
    kind = generator.randrange(8)
    if kind == 0:
        entries[number] = generator.choice(("", "a\nb", "\ud800", "x" * 10_000, "__metadata__", "é")), entry
    elif kind == 1:
        entries.insert(generator.randrange(len(entries)), (name, generator.choice(entries)[1]))
    elif kind == 2:
        del entries[number]
    elif kind == 3:
        entries[number] = name, generator.choice(ODD)
    elif kind == 4:
        generator.shuffle(entries)
    ascii_only = generator.random() < 0.5
    pairs = (f"{json.dumps(key)}:{json.dumps(value, ensure_ascii=ascii_only)}" for key, value in entries)
    return f"{{{','.join(pairs)}}}".encode("utf-8", "surrogatepass"), data


def _has_lists(entry):
    return isinstance(entry.get("shape"), list) and isinstance(entry.get("data_offsets"), list)


def _change_shape(entry, entries, data, generator):
    shape = entry["shape"]
    kind = generator.randrange(4)
    if kind == 0:
        generator.shuffle(shape)
    elif kind == 1:
        shape.insert(generator.randrange(len(shape) + 1), generator.choice((1, *ODD)))
    elif kind == 2 and shape:
        shape[generator.randrange(len(shape))] = generator.choice(ODD)
    else:
        entry["shape"] = generator.choice((*ODD, [], [1] * 70, [2**62, 2**62, 0], [10**4000] * 300))
    return data


def _change_offsets(entry, entries, data, generator):
    offsets = entry["data_offsets"]
    kind = generator.randrange(5)
    if kind == 0 and offsets:
        offsets[generator.randrange(len(offsets))] = generator.choice(ODD)
    elif kind == 1:
        step = generator.choice((-4, 4, 2, 8, 2**40, len(data)))
        entry["data_offsets"] = [n + step for n in offsets if isinstance(n, int)]
    elif kind == 2:
        other = generator.choice(entries)[1]
        entry["data_offsets"] = other.get("data_offsets", []) if isinstance(other, dict) else other
    elif kind == 3:
        entry["data_offsets"] = generator.choice((offsets[::-1], offsets[:1], [*offsets, 0], [], *ODD))
    elif offsets and all(type(n) is int and 0 <= n <= len(data) for n in offsets):  # a hole, with its byte to it
        for _, moved in entries:
            if isinstance(moved, dict) and isinstance(moved.get("data_offsets"), list):
                ends = moved["data_offsets"]
                moved["data_offsets"] = [n + 1 if isinstance(n, int) and n >= offsets[-1] else n for n in ends]
        data = data[: offsets[-1]] + b"\0" + data[offsets[-1] :]
    return data


def _change_dtype(entry, entries, data, generator):
    entry["dtype"] = generator.choice((*DTYPES, *ODD))
    return data


def _change_keys(entry, entries, data, generator):
    kind = generator.randrange(2)
    if kind == 0:
        entry[generator.choice(("strides", "Dtype", ""))] = generator.choice(ODD)
    else:
        del entry[generator.choice(list(entry))]
    return data


def verdict(path, content):
    """What became of one file: "read", "refused" or "refused, stricter"; an AssertionError for anything else."""
    path.write_bytes(content)
    try:
        expected = dict(safetensors.deserialize(content))
    except safetensors.SafetensorError:
        expected = None
    try:
        with SafetensorsFile(path) as file:
            found = {name: (stored, file[name]) for name, stored in file.tensors.items()}
    except UserError as error:
        message = str(error)
        assert message.startswith(str(path)) and message.isprintable() and len(message) < 800, message
        assert "expected" in message or "is not JSON" in message, message
        if expected is None:
            return "refused"
        assert any(reason in message for reason in STRICTER), message
        return "refused, stricter"
    assert expected is not None and set(found) == set(expected)
    for name, (stored, tensor) in found.items():
        assert stored.dtype == expected[name]["dtype"] and list(stored.shape) == expected[name]["shape"]
        assert tensor.shape == stored.shape and tensor.tobytes() == bytes(expected[name]["data"])
    return "read"


def main(seed, count):
    """Reads `count` damaged files; prints how many came to which verdict."""
    generator = random.Random(seed)
    files = list(originals())
    counts = collections.Counter()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        np.empty(2 * HEADROOM, np.uint8)
    except MemoryError:
        counts["the limit holds"] += 1
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            content = mutated(files[number % len(files)], generator)
            signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)  # its signal ends the process
            counts[verdict(pathlib.Path(folder, "model.safetensors"), content)] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
