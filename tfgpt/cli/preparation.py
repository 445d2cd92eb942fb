"""`tfgpt prepare`: what it shows, and how it ends when a scheduler ends it."""

from __future__ import annotations

import contextlib
import signal
import sys
import time

from tfgpt.cli.progress import show_bytes, show_status
from tfgpt.errors import UserError


def run_prepare(data, out, tokenizer, vocabulary_size, workers, **options):
    """Prepares token shards with a progress bar, prints what they hold, and returns the figures."""
    if not data:
        raise UserError("data is missing, expected files, folders, globs or 'stdlib'")
    from tfgpt.text import prepare

    start = time.perf_counter()
    with _exit_on_termination(), contextlib.closing(_Display()) as display:
        shown = {"on_stage": display.stage, "on_progress": display.progress}
        shards = prepare(data, out, tokenizer, vocabulary_size, workers, **shown, **options)
    seconds, tokenizing = time.perf_counter() - start, time.perf_counter() - display.start
    figures = {"directory": str(out), "vocabulary_size": shards.vocabulary_size, "splits": {}}
    for name, split in shards.splits.items():
        figures["splits"][name] = {
            "tokens": split.num_tokens,
            "bytes": split.num_bytes,
            "documents": split.num_documents,
            "shards": len(split.arrays),
        }
        print(
            f"{name}: {split.num_tokens:,} tokens of {split.num_documents:,} documents "
            f"({split.num_bytes / 1e6:,.1f} MB) in {len(split.arrays)} shards"
        )
    total = sum(split.num_bytes for split in shards.splits.values())
    figures |= {"seconds": seconds, "megabytes_per_second": total / 1e6 / tokenizing}
    print(
        f"{out}: {shards.vocabulary_size:,} token ids, {shards.size / 1e6:,.1f} MB; {seconds:.1f} s, tokenized at "
        f"{figures['megabytes_per_second']:.1f} MB/s"
    )
    return figures


def run_verify(directory):
    """Compares the checksums of prepared token shards with a progress bar, and returns the figures."""
    from tfgpt.text import TokenShards, load_tokenizer

    shards = TokenShards.open(directory)
    shards.check_tokenizer(load_tokenizer(directory))
    with show_bytes("verifying") as on_progress:
        shards.check_contents(on_progress)
    print(f"{directory}: {shards.size / 1e6:,.1f} MB are as they were written")
    return {"directory": str(directory), "size": shards.size, "verified": True}


@contextlib.contextmanager
def _exit_on_termination():
    """Has SIGTERM, which would end the process at once, raise an exception, so that nothing half-written stays."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Display:
    """A spinner's line for the first stages, then a bar."""

    def __init__(self):
        self._shown = contextlib.ExitStack()
        self._on_stage = self._shown.enter_context(show_status("starting"))
        self._on_progress = None
        self.start = time.perf_counter()

    def stage(self, text):
        self._on_stage(text)
        self.start = time.perf_counter()

    def progress(self, done, total):
        if self._on_progress is None:
            self.close()  # one at a time
            self._on_progress = self._shown.enter_context(show_bytes("tokenizing"))
        self._on_progress(done, total)

    def close(self):
        self._shown.close()
