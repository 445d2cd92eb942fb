"""What happens around a run's steps: records, checkpoints, samples, early stopping, and a civil end on signals.

One Keras epoch is the steps of one row of metrics.csv, so that a run can end and go on after any of them: validations
and what follows them happen in those epochs that have a `val_loss`. A callback with `state` and `restore` is continued
with the run: `state()` is what it remembers, for JSON.
"""

import csv
import math
import os
import pathlib
import signal
import threading
import time

import keras

from tfgpt.atomic import atomic_directory, atomic_file, write_text
from tfgpt.errors import UserError
from tfgpt.training.averaging import averaged_weights
from tfgpt.training.run_state import checkpoint_path, prune_checkpoints, save_state

COLUMNS = ("step", "loss", "validation_loss", "learning_rate", "tokens_per_second", "seconds")


class NonFiniteLoss(UserError):
    """The loss became NaN or infinite in one of the steps from `first` to `last`."""

    def __init__(self, loss, first, last):
        steps = f"at step {last}" if first == last else f"between steps {first} and {last}"
        super().__init__(
            f"the loss became {loss} {steps}, expected a finite one; try a lower learning_rate or another precision"
        )
        self.loss, self.first, self.last = loss, first, last


class Records(keras.callbacks.Callback):
    """Keeps the mean loss of each epoch, writes `metrics.csv`, and tells others of each row.

    Args:
        path: of the CSV file.
        tokens_per_step: B × T, of targets.
        learning_rate: a function of the step.
        on_row: functions called with each row, a dictionary with the keys `COLUMNS` and those of the measures.
        measures: of `tfgpt.training.measures`: functions of a row of training that give it more columns.
        validation_columns: such as "validation_x", which a row of validation gets from "val_x" in the logs.
    """

    def __init__(self, path, tokens_per_step, learning_rate, on_row=(), measures=(), validation_columns=()):
        super().__init__()
        self.path, self.tokens_per_step, self.learning_rate = pathlib.Path(path), tokens_per_step, learning_rate
        self.on_row = on_row
        self.measures = measures
        self.validation_columns = validation_columns
        self.columns = (*COLUMNS, *validation_columns, *(column for measure in measures for column in measure.columns))
        self.rows = []
        self.step = 0  # of the run
        self._seconds = 0.0  # that the run took before this process

    def state(self):
        self._file.flush()
        os.fsync(self._file.fileno())  # a checkpoint counts on the rows before it
        return {"seconds": time.perf_counter() - self._start}

    def restore(self, state, step):
        """Goes on after `step`: reads the rows up to it back, and forgets those of steps that will be taken again."""
        self.step = step
        self._seconds = state["seconds"]
        self.rows = read_rows(self.path, step, self.columns)

    def on_train_begin(self, logs=None):
        self._start = time.perf_counter() - self._seconds
        with atomic_file(self.path) as temporary:  # replaced by rename: a kill must not cost the rows there were
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self.columns)
                writer.writeheader()
                writer.writerows(map(_formatted, self.rows))
        self._file = open(self.path, "a", newline="", encoding="utf-8")  # noqa: SIM115 (closed when training ends)
        self._writer = csv.DictWriter(self._file, self.columns)

    def on_epoch_begin(self, epoch, logs=None):
        self._begun, self._taken = time.perf_counter(), 0  # steps of this epoch

    def on_train_batch_end(self, batch, logs=None):
        first, self._taken = self._taken + 1, batch + 1  # of one execution
        loss = float(logs["loss"])  # the mean since the epoch began
        if not math.isfinite(loss):
            raise NonFiniteLoss(loss, self.step + first, self.step + self._taken)
        if self._taken == self.params["steps"]:
            self._add_training(loss, time.perf_counter() - self._begun)

    def on_epoch_end(self, epoch, logs=None):
        if logs and "val_loss" in logs:
            own = {column: logs[column.replace("validation", "val", 1)] for column in self.validation_columns}
            self._add(step=self.step, validation_loss=logs["val_loss"], **own)
            self._file.flush()

    def on_train_end(self, logs=None):
        self._file.close()

    def losses(self, column):
        """(step, loss) pairs of the column "loss" or "validation_loss"."""
        return [(row["step"], row[column]) for row in self.rows if row.get(column) is not None]

    def _add_training(self, loss, seconds):
        self.step += self._taken
        row = {
            "step": self.step,
            "loss": loss,
            "learning_rate": self.learning_rate(self.step),
            "tokens_per_second": self._taken * self.tokens_per_step / seconds,
        }
        for measure in self.measures:
            row |= measure(row)
        self._add(**row)

    def _add(self, **row):
        row["seconds"] = time.perf_counter() - self._start
        self.rows.append(row)
        self._writer.writerow(_formatted(row))
        for function in self.on_row:
            function(row)


def read_rows(path, last_step, columns=COLUMNS):
    """The rows of a metrics.csv up to a step, without those that a killed process wrote in part.

    Args:
        path: of the file.
        last_step: of the rows.
        columns: those to be read.
    """
    if not pathlib.Path(path).exists():
        return []
    rows = []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            try:
                values = {key: float(value) for key, value in row.items() if value}
                if "seconds" in values and values["step"] <= last_step:
                    known = {key: value for key, value in values.items() if key in columns}
                    rows.append(known | {"step": int(values["step"])})
            except (ValueError, TypeError, KeyError):  # a line that was cut
                continue
    return rows


def _formatted(row):
    return {key: str(value) if key == "step" else f"{value:.6g}" for key, value in row.items()}


class Checkpoints(keras.callbacks.Callback):
    """Writes what a run leaves behind: its resume state, and after each validation its weights.

    The weights go to `training/last`, and when they are the best so far to the model directory. The resume state is
    written first: with the weights of a model directory there is always a state to go on from. A moving average of the
    weights is what is validated, and so what the model directory gets; `last` has the weights that training goes on
    from.

    Args:
        directory: the model directory; `last` is `training/last` in it.
        write: a function of a model and a directory, into which it writes the files of a model directory.
        every: steps between checkpoints.
        keep: how many checkpoints are kept.
        callbacks: those with `state` and `restore`, by name. This callback comes after them, and after all that end a
            run.
        score: a function of a validation's logs, of which the best weights have least.
    """

    def __init__(self, directory, write, every, keep, callbacks, score):
        super().__init__()
        self.directory = pathlib.Path(directory)
        self.last = self.directory / "training" / "last"
        self.checkpoints = self.directory / "training" / "checkpoints"
        self.write, self.every, self.keep, self.callbacks, self.score = write, every, keep, callbacks, score
        self.best_score = math.inf
        self.best_step = self.step = 0
        self.newest = None  # path of the last good checkpoint

    def restore(self, path, state):
        """Goes on from the checkpoint at `path`, whose extra is `state`; to be called before `fit`."""
        self.newest = path
        self.step, self.best_step = state["step"], state["best_step"]
        self.best_score = math.inf if state["best_score"] is None else state["best_score"]
        for name, callback in self.callbacks.items():
            callback.restore(state[name], self.step)

    def on_train_begin(self, logs=None):
        if self.newest is None:
            self.save_state()
        elif self.best_step == self.step > 0:
            self.save_best()  # the process may have ended between state and weights
            self.save_last()

    def on_epoch_end(self, epoch, logs=None):
        self.step = (epoch + 1) * self.params["steps"]
        validated = "val_loss" in logs
        score = self.score(logs) if validated else math.inf
        best = score < self.best_score
        if best:
            self.best_score, self.best_step = score, self.step
        last = self.model.stop_training or epoch + 1 == self.params["epochs"]
        if self.step % self.every == 0 or last:
            self.save_state()
        if best:
            self.save_best()
        if validated or last:
            self.save_last()

    def save_state(self):
        """Writes a checkpoint, from which `tfgpt train` goes on."""
        state = {
            "step": self.step,
            "best_score": None if self.best_score == math.inf else float(self.best_score),
            "best_step": self.best_step,
        }
        state |= {name: callback.state() for name, callback in self.callbacks.items()}
        path = checkpoint_path(self.checkpoints, self.step)
        try:
            save_state(path, self.model, state)
        except UserError as error:
            good = f"; the same command goes on from {self.newest}" if self.newest else ""
            raise UserError(f"{error}{good}") from error
        self.newest = path
        prune_checkpoints(self.checkpoints, self.keep)

    def save_best(self):
        """Writes the weights of now to the model directory."""
        with averaged_weights(self.model):
            self.write(self.model, self.directory)

    def save_last(self):
        """Writes the weights of now to `training/last`."""
        with atomic_directory(self.last, overwrite=True) as temporary:
            self.write(self.model, temporary)


class Samples(keras.callbacks.Callback):
    """Takes a sample after each validation and keeps the texts in `samples.txt`.

    Args:
        path: of the text file.
        take: a function of the model that gives a text, or None for no sample; or None for no samples.
        on_sample: functions called with the step and the text.
    """

    def __init__(self, path, take, on_sample=()):
        super().__init__()
        self.path, self.take = path, take
        self.on_sample = on_sample
        self.samples = []

    def state(self):
        return self.samples

    def restore(self, state, step):
        self.samples = [tuple(sample) for sample in state]

    def on_epoch_end(self, epoch, logs=None):
        if "val_loss" not in logs or self.take is None:
            return
        step = (epoch + 1) * self.params["steps"]
        with averaged_weights(self.model):
            text = self.take(self.model)
        if text is None:
            return
        self.samples.append((step, text))
        write_text(self.path, "\n\n".join(f"=== step {step} ===\n{text}" for step, text in self.samples) + "\n")
        for function in self.on_sample:
            function(step, text)


class WeightHistograms(keras.callbacks.Callback):
    """Gives the model to loggers after each validation.

    Args:
        on_weights: functions called with the step and the model.
    """

    def __init__(self, on_weights):
        super().__init__()
        self.on_weights = on_weights

    def on_epoch_end(self, epoch, logs=None):
        if "val_loss" in logs:
            for function in self.on_weights:
                function((epoch + 1) * self.params["steps"], self.model)


class EarlyStopping(keras.callbacks.Callback):
    """Ends the run when a score of validations has not fallen in `patience` of them; never if that is 0.

    Args:
        patience: validations.
        score: a function of a validation's logs.
    """

    def __init__(self, patience, score):
        super().__init__()
        self.patience, self.score = patience, score
        self.best_score = math.inf
        self.waited = 0

    @property
    def stopped(self):
        """Whether the run is to end."""
        return self.waited >= self.patience > 0

    def state(self):
        return {"best_score": None if self.best_score == math.inf else float(self.best_score), "waited": self.waited}

    def restore(self, state, step):
        self.best_score = math.inf if state["best_score"] is None else state["best_score"]
        self.waited = state["waited"]

    def on_epoch_end(self, epoch, logs=None):
        if "val_loss" not in logs:
            return
        if (score := self.score(logs)) < self.best_score:
            self.best_score, self.waited = score, 0
        else:
            self.waited += 1
        if self.stopped:
            self.model.stop_training = True


class StopOnInterrupt(keras.callbacks.Callback):
    """Ends the run after the epoch under way on Ctrl-C and on SIGTERM; a second one ends the process at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        super().__init__()
        self.signal = None  # the one that came
        self._previous = {}

    def on_train_begin(self, logs=None):
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._interrupt) for number in self.SIGNALS}

    def _interrupt(self, signum, frame):
        self.signal = signal.Signals(signum)  # heeded where an epoch ends, and workers of a cluster can agree on it
        self.restore()

    def on_epoch_end(self, epoch, logs=None):
        if self.signal:
            self.model.stop_training = True

    def restore(self):
        """Gives the signals their meaning back; to be called when `fit` has returned or raised."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._previous.items():
                signal.signal(number, handler)
