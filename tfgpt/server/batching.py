"""Requests that arrive together run as one batch, by TensorFlow Serving's parameters and rules.

Each signature of each version has a queue; a few threads take batches from the queues in turn. A batch runs as soon as
it is full, or its first request has waited `batch_timeout_micros`. Different from TensorFlow Serving: where a batch of
several requests fails for what it was given, each is run alone, so that one client's error is no other's.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import threading
import time

import numpy as np

from tfgpt.server.metrics import METRICS
from tfgpt.server.status import RequestError, invalid

LOGGER = logging.getLogger(__name__)
OF_THE_REQUEST = ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE")


@dataclasses.dataclass(frozen=True)
class BatchingParameters:
    """TensorFlow Serving's parameters of the same names, and their defaults there.

    Args:
        max_batch_size: rows of a batch, and so of a request.
        batch_timeout_micros: how long a batch waits to become full.
        max_enqueued_batches: of one queue; beyond them requests fail with UNAVAILABLE.
        num_batch_threads: batches that run at the same time.
        allowed_batch_sizes: a batch is filled up to the next of these with copies of its last request's first row.
        pad_variable_length_inputs: fill up inputs of unequal width with their own first element, rather than fail.
        thread_pool_name: the name of the queues in the metrics.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = os.cpu_count() or 1
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    thread_pool_name: str = "batch_threads"


class Task:
    """A request in a queue, and later its outcome."""

    def __init__(self, inputs, rows):
        self.inputs, self.rows = inputs, rows
        self.enqueued = time.monotonic()
        self.outputs, self.error = None, None
        self.done = threading.Event()


class Batch:
    """Tasks that run together."""

    def __init__(self):
        self.tasks, self.rows, self.opened = [], 0, time.monotonic()

    def add(self, task):
        self.tasks.append(task)
        self.rows += task.rows


class Batcher:
    """The queues and their threads.

    Args:
        parameters: `BatchingParameters`.
    """

    def __init__(self, parameters):
        self.parameters = parameters
        self._timeout = parameters.batch_timeout_micros / 1e6
        self._changed = threading.Condition()
        self._queues = collections.OrderedDict()  # key → batches, the next to be looked at first
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{parameters.thread_pool_name}-{i}", daemon=True)
            for i in range(parameters.num_batch_threads)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, servable, signature, inputs, outputs):
        """As `servable.run`, perhaps together with others'."""
        task = Task(inputs, request_rows(inputs))
        if task.rows > self.parameters.max_batch_size:
            most = self.parameters.max_batch_size
            raise invalid(f"Task size {task.rows} is larger than maximum input batch size {most}")
        self._enqueue((servable, signature, tuple(sorted(inputs)), tuple(outputs)), task)
        task.done.wait()
        if task.error is not None:
            raise task.error
        return task.outputs

    def close(self):
        """Runs what is waiting, and ends the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _enqueue(self, key, task):
        with self._changed:
            if self._closed:
                raise RequestError("UNAVAILABLE", "the server is shutting down")
            batches = self._queues.setdefault(key, collections.deque())
            if not batches or batches[-1].rows + task.rows > self.parameters.max_batch_size:
                if len(batches) >= self.parameters.max_enqueued_batches:
                    message = "The batch scheduling queue to which this task was submitted is full"
                    raise RequestError("UNAVAILABLE", message)
                batches.append(Batch())
            batches[-1].add(task)
            self._changed.notify()

    def _work(self):
        while True:
            with self._changed:
                while (taken := self._next()) is None:
                    if self._closed and not self._queues:
                        return
                    self._changed.wait(self._until_due())
            self._process(*taken)

    def _next(self):
        """The key and batch of the first queue that has one to run; that queue goes behind the others."""
        now = time.monotonic()
        for key, batches in self._queues.items():
            first = batches[0]
            due = first.opened + self._timeout <= now or self._closed
            if due or len(batches) > 1 or first.rows >= self.parameters.max_batch_size:
                batches.popleft()
                if batches:
                    self._queues.move_to_end(key)
                else:
                    del self._queues[key]  # also lets go of a version that is unloaded
                return key, first
        return None

    def _until_due(self):
        """Seconds until the next batch has waited long enough; None without one."""
        opened = [batches[0].opened for batches in self._queues.values()]
        return max(min(opened) + self._timeout - time.monotonic(), 0) if opened else None

    def _process(self, key, batch):
        servable, signature, _, outputs = key
        start = time.monotonic()
        METRICS.batched(self.parameters.thread_pool_name, [start - task.enqueued for task in batch.tasks], batch.rows)
        try:
            try:
                self._run_together(servable, signature, outputs, batch)
            except RequestError as error:
                if len(batch.tasks) == 1 or error.code not in OF_THE_REQUEST:
                    raise
                self._run_alone(servable, signature, outputs, batch)
        except RequestError as error:
            _fail(batch, error)
        except Exception as error:  # the thread serves others, too
            LOGGER.exception("a batch failed")
            _fail(batch, RequestError("INTERNAL", f"{type(error).__name__}: {error}"))
        finally:
            for task in batch.tasks:
                task.done.set()

    def _run_together(self, servable, signature, outputs, batch):
        size = next((size for size in self.parameters.allowed_batch_sizes if size >= batch.rows), batch.rows)
        inputs = joined([task.inputs for task in batch.tasks], size - batch.rows, self.parameters)
        found = servable.run(signature, inputs, outputs)
        for name, array in found.items():
            if array.ndim == 0 or len(array) != size:
                message = f"Batched output tensor {name} has shape {list(array.shape)}, expected {size} rows"
                raise RequestError("FAILED_PRECONDITION", message)
        end = 0
        for task in batch.tasks:
            start, end = end, end + task.rows
            task.outputs = {name: array[start:end] for name, array in found.items()}

    def _run_alone(self, servable, signature, outputs, batch):
        for task in batch.tasks:
            try:
                alone = Batch()
                alone.add(task)
                self._run_together(servable, signature, outputs, alone)
            except RequestError as error:
                task.error = error


def request_rows(inputs):
    """How many rows a request's inputs have.

    Raises:
        RequestError: INVALID_ARGUMENT, if they do not all have the same number.
    """
    if not inputs:
        raise invalid("Batching Run() input tensors must have at least one tensor")
    if any(array.ndim == 0 for array in inputs.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    rows = {len(array) for array in inputs.values()}
    if len(rows) > 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return rows.pop()


def joined(requests, padding, parameters):
    """The inputs of several requests as one's.

    Args:
        requests: a dictionary of arrays each.
        padding: how many copies of the last request's first row to add.
        parameters: `BatchingParameters`.

    Raises:
        RequestError: FAILED_PRECONDITION, if inputs differ in width and are not to be padded.
    """
    arrays = {}
    for name in requests[0]:
        parts = [request[name] for request in requests]
        if len({part.shape[1:] for part in parts}) > 1:
            if not parameters.pad_variable_length_inputs or len({part.ndim for part in parts}) > 1:
                message = f"Tensors with name '{name}' from different tasks have different shapes"
                raise RequestError("FAILED_PRECONDITION", f"{message} and padding is turned off.")
            widths = np.max([part.shape[1:] for part in parts], axis=0)
            parts = [_padded(part, widths) for part in parts]
        if padding and len(parts[-1]):
            parts += [parts[-1][:1]] * padding
        arrays[name] = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return arrays


def _padded(array, widths):
    padded = np.full((len(array), *widths), array.ravel()[0] if array.size else 0, array.dtype)
    padded[tuple(slice(size) for size in array.shape)] = array
    return padded


def _fail(batch, error):
    for task in batch.tasks:
        task.error = error
