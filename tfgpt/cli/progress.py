"""What the terminal shows while something takes long; nothing moves where standard error is no terminal."""

from __future__ import annotations

import contextlib

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

STDERR = Console(stderr=True)


class TrainingDisplay:
    """A progress bar with loss, tokens a second and time left, and a line at each validation.

    It is a `tfgpt.training.trainer.RunObserver` in shape; that class is not imported here, for it brings TensorFlow.
    """

    def __init__(self):
        self._status = STDERR.status("loading TensorFlow")
        self._progress = None
        self._loss = float("nan")

    def __enter__(self):
        self._status.start()
        return self

    def __exit__(self, *exception):
        self._status.stop()
        self.end()

    def stage(self, text):
        self._status.update(text)
        self._status.start()

    def distribution(self, text):
        STDERR.print(text, soft_wrap=True)

    def begin(self, config, parameters):
        self._status.stop()
        STDERR.print(
            f"{parameters:,} parameters; {config.steps} steps of {config.batch_size} {config.examples}; "
            f"{config.precision}; the first step compiles"
        )
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:,.0f} tokens/s"),
            TimeRemainingColumn(),
            console=STDERR,
        )
        self._task = self._progress.add_task("train", total=config.steps, loss=float("nan"), speed=0.0)
        self._progress.start()

    def row(self, row):
        if "loss" in row:
            self._loss = row["loss"]
            self._progress.update(self._task, completed=row["step"], loss=row["loss"], speed=row["tokens_per_second"])
        else:
            scores = "  ".join(
                f"{name.replace('_', ' ')} {value:.4f}" for name, value in row.items() if name.startswith("validation_")
            )
            STDERR.print(f"step {row['step']:>6}  loss {self._loss:.4f}  {scores}  {row['seconds']:.0f} s")

    def note(self, text):
        STDERR.print(f"tfgpt: {text}", markup=False, highlight=False, soft_wrap=True)

    def sample(self, step, text):
        pass  # samples go to training/samples.txt; the last one is in the summary

    def end(self):
        if self._progress is not None:
            self._progress.stop()


@contextlib.contextmanager
def show_status(text):
    """Yields a function that sets the line shown beside a spinner."""
    with STDERR.status(text) as status:
        yield status.update


@contextlib.contextmanager
def show_fraction(text):
    """Yields a function that moves a progress bar to a fraction."""
    with Progress(console=STDERR, transient=True) as progress:
        task = progress.add_task(text, total=1.0)
        yield lambda fraction: progress.update(task, completed=fraction)


@contextlib.contextmanager
def show_bytes(text):
    """Yields a function that moves a progress bar, with MB/s and the time left, to some bytes out of all."""
    columns = (TextColumn(text), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=STDERR, transient=True) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def print_table(headings, rows):
    """Prints a table on standard output."""
    table = Table(*map(escape, headings))
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console()
    # Where output is not a terminal, such as in a log, rich would wrap cells at 80 columns.
    (console if console.is_terminal else Console(width=150)).print(table)
