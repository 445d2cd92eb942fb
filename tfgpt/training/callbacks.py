"""What happens around a run's steps: records, checkpoints, samples, a progress bar, and a civil end on Ctrl-C."""

import csv
import math
import pathlib
import signal
import threading
import time

import keras

from tfgpt.atomic import atomic_directory, write_text
from tfgpt.errors import UserError
from tfgpt.models.gpt2.model_directory import write_model_files

COLUMNS = ("step", "loss", "validation_loss", "learning_rate", "tokens_per_second", "seconds")


class Records(keras.callbacks.Callback):
    """Keeps the loss of the steps of each row, writes `metrics.csv`, and tells others of each row.

    Keras' logs hold the mean since the epoch began; the loss of the last steps alone is worked out from two such means.

    Args:
        path: of the CSV file.
        tokens_per_step: B × T.
        learning_rate: a function of the step.
        on_row: functions called with each row, a dictionary with the keys `COLUMNS`.
        log_every: steps between rows, where executions have fewer.
    """

    def __init__(self, path, tokens_per_step, learning_rate, on_row=(), log_every=1):
        super().__init__()
        self.log_every = log_every
        self.path, self.tokens_per_step, self.learning_rate = pathlib.Path(path), tokens_per_step, learning_rate
        self.on_row = on_row
        self.rows = []
        self.step = 0  # of the run
        self._epoch_step = 0
        self._epoch_mean = 0.0

    def on_train_begin(self, logs=None):
        self._start = self._last = time.perf_counter()
        self._file = open(self.path, "w", newline="", encoding="utf-8")  # noqa: SIM115 (closed when training ends)
        self._writer = csv.DictWriter(self._file, COLUMNS)
        self._writer.writeheader()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch_step, self._epoch_mean = 0, 0.0
        self._last = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if (batch + 1) % self.log_every and not self.model.stop_training:
            return
        steps = batch + 1 - self._epoch_step
        loss = (logs["loss"] * (batch + 1) - self._epoch_mean * self._epoch_step) / steps
        self._epoch_step, self._epoch_mean = batch + 1, logs["loss"]
        now = time.perf_counter()
        self.step += steps
        if not math.isfinite(loss):
            raise UserError(
                f"the loss became {loss} between steps {self.step - steps + 1} and {self.step}, expected a finite one; "
                "try a lower learning_rate or another precision"
            )
        self._add(
            step=self.step,
            loss=loss,
            learning_rate=self.learning_rate(self.step),
            tokens_per_second=steps * self.tokens_per_step / (now - self._last),
        )
        self._last = now

    def on_epoch_end(self, epoch, logs=None):
        if logs and "val_loss" in logs:
            self._add(step=self.step, validation_loss=logs["val_loss"])
        self._file.flush()

    def on_train_end(self, logs=None):
        self._file.close()

    def losses(self, column):
        """(step, loss) pairs of the column "loss" or "validation_loss"."""
        return [(row["step"], row[column]) for row in self.rows if row.get(column) is not None]

    def _add(self, **row):
        row["seconds"] = time.perf_counter() - self._start
        self.rows.append(row)
        self._writer.writerow({key: f"{value:.6g}" for key, value in row.items()})
        for function in self.on_row:
            function(row)


class Checkpoints(keras.callbacks.Callback):
    """Writes the model after each validation: to `last`, and when it is the best so far to the model directory.

    Args:
        directory: the model directory; `last` is `training/last` in it.
    """

    def __init__(self, directory):
        super().__init__()
        self.directory = pathlib.Path(directory)
        self.last = self.directory / "training" / "last"
        self.best_loss = math.inf
        self.best_step = self.last_step = 0

    def on_train_begin(self, logs=None):
        self._step = 0

    def on_train_batch_end(self, batch, logs=None):
        self._batch = batch + 1

    def on_epoch_end(self, epoch, logs=None):
        self._step += self._batch
        self.save_last()
        if logs.get("val_loss", -math.inf) < self.best_loss:
            self.best_loss, self.best_step = logs["val_loss"], self._step
            write_model_files(self.model, self.directory)

    def save_last(self):
        """Writes the weights of now to `training/last`."""
        self.last_step = self._step
        with atomic_directory(self.last, overwrite=True) as temporary:
            write_model_files(self.model, temporary)


class Samples(keras.callbacks.Callback):
    """Continues a prompt after each validation and keeps the texts in `samples.txt`.

    Args:
        path: of the text file.
        prompt: a string.
        max_new_tokens: the length of the continuation.
        seed: of sampling, at temperature 0.8.
        on_sample: functions called with the step and the text.
    """

    def __init__(self, path, prompt, max_new_tokens, seed, on_sample=()):
        super().__init__()
        self.path, self.prompt, self.max_new_tokens, self.seed = path, prompt, max_new_tokens, seed
        self.on_sample = on_sample
        self.samples = []
        self._steps = 0

    def on_train_batch_end(self, batch, logs=None):
        self._batch = batch + 1

    def on_epoch_end(self, epoch, logs=None):
        self._steps += self._batch
        text = self.model.generate(self.prompt, max_new_tokens=self.max_new_tokens, temperature=0.8, seed=self.seed)
        self.samples.append((self._steps, text))
        write_text(self.path, "\n\n".join(f"=== step {step} ===\n{text}" for step, text in self.samples) + "\n")
        for function in self.on_sample:
            function(self._steps, text)


class StopOnInterrupt(keras.callbacks.Callback):
    """Ends the run after the step under way when Ctrl-C is pressed; a second Ctrl-C interrupts at once."""

    def __init__(self):
        super().__init__()
        self.interrupted = False
        self._previous = None

    def on_train_begin(self, logs=None):
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, signum, frame):
        self.interrupted = True  # heeded at the end of a step, where workers of a cluster can agree on it
        signal.signal(signal.SIGINT, self._previous)

    def on_train_batch_end(self, batch, logs=None):
        if self.interrupted:
            self.model.stop_training = True  # Keras resets it as an epoch begins

    def restore(self):
        """Gives Ctrl-C its meaning back; to be called when `fit` has returned or raised."""
        if threading.current_thread() is threading.main_thread() and self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
