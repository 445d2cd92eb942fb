"""Where the time of a SavedModel's decoding loop goes: python -m benchmarks.profile_saved_model.

Profiles the `generate` signature of the release that `make bench-saved-model` made, and adds up the time of each kind
of operator over a step. Operators that run side by side count in full, and what is left of the step's own time is the
executor's: between small operators threads are woken and put to sleep.
"""

import argparse
import collections
import glob
import sys
import tempfile
import time

from benchmarks import models
from benchmarks.contestants import tfgpt_saved_model
from benchmarks.generation import SHORT
from benchmarks.processes import ROOT

NEW_TOKENS = 64
SHOWN = 12  # kinds of operators


def main():
    """Parses the command line, and prints a table for each batch size."""
    parser = argparse.ArgumentParser(prog="benchmarks.profile_saved_model", description=__doc__)
    parser.add_argument("--size", choices=models.SIZES, default="gpt2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    arguments = parser.parse_args()
    releases = sorted((ROOT / "build" / "bench" / arguments.size).glob("tfgpt_saved_model-*/model/1"))
    if not releases:
        print("there is no release in build/bench, expected one: run make bench-saved-model", file=sys.stderr)
        return 2
    generate = tfgpt_saved_model.open_model(releases[-1], "float32", arguments.threads)
    for batch in arguments.batch:
        report(generate, batch)
    return 0


def report(generate, batch):
    """Prints the time of a step, unprofiled, and of its operators, profiled."""
    prompts = [[(7 * row + i) % 250 for i in range(SHORT)] for row in range(batch)]
    generate(prompts, NEW_TOKENS)
    step = min(seconds_per_step(generate, prompts) for _ in range(3))
    counts, seconds = profiled(lambda: generate(prompts, NEW_TOKENS))
    print(f"\nbatch {batch}: {1e3 * step:.1f} ms a step, {batch / step:.0f} tokens/s\n")
    print("| operator | calls a step | ms a step |\n| --- | ---: | ---: |")
    for kind, total in seconds.most_common(SHOWN):
        print(f"| {kind} | {counts[kind] / NEW_TOKENS:.1f} | {1e3 * total / NEW_TOKENS:.2f} |")
    rest = sum(seconds.values()) - sum(total for _, total in seconds.most_common(SHOWN))
    print(f"| {len(seconds) - SHOWN} others | | {1e3 * rest / NEW_TOKENS:.2f} |")


def seconds_per_step(generate, prompts):
    """Of a call, the prompt's reading left out."""
    times = []
    for new_tokens in (1, NEW_TOKENS):
        start = time.perf_counter()
        generate(prompts, new_tokens)
        times.append(time.perf_counter() - start)
    return (times[1] - times[0]) / (NEW_TOKENS - 1)


def profiled(call):
    """How often each kind of operator ran, and for how long: two counters.

    Events of operators are called "node:Kind"; others, such as the executor's own, hold no kind.
    """
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    counts, seconds = collections.Counter(), collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            call()
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        with open(path, "rb") as file:
            space = xplane_pb2.XSpace.FromString(file.read())
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                node, separator, kind = plane.event_metadata[event.metadata_id].name.partition(":")
                if separator and node and kind.replace("_", "").isalnum():
                    counts[kind] += 1
                    seconds[kind] += event.duration_ps / 1e12
    return counts, seconds


if __name__ == "__main__":
    sys.exit(main())
