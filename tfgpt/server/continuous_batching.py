"""Requests that join and leave a running batch at any token: iteration-level scheduling (Yu et al. 2022, "Orca", 3.1).

One thread takes turns. In a turn it reads one piece of one waiting prompt, so that a long prompt stalls others by a
piece at most, and then continues every text by one token. Who comes first is admitted first and read first; once read,
all get the same, a token a turn. What a text gets depends on nobody else (see `tfgpt.runtime.onnx_slots`).
"""

from __future__ import annotations

import collections
import functools
import logging
import math
import threading
import time

import numpy as np

from tfgpt.runtime.random_numbers import uniform
from tfgpt.runtime.sampling import choose_tokens
from tfgpt.runtime.slots import CHUNK, reusable
from tfgpt.server.metrics import METRICS
from tfgpt.server.status import RequestError, invalid
from tfgpt.server.text_requests import Embedding, Finished, Prompt, Token, described

LOGGER = logging.getLogger(__name__)


class Row:
    """A request in a slot."""

    def __init__(self, request, slot, vocabulary_size):
        self.request, self.slot = request, slot
        self.prompt_tokens = [Token(request.prompt[0])]
        self.begun = False
        self.hidden = 0  # the sum of the prompt's last hidden states
        self.count = 0  # of new tokens
        self.token = None  # the newest, once the prompt is read
        self.seen = None
        self.time = None  # of the newest token
        self.adjustment = request.adjustment(vocabulary_size)

    @property
    def reading(self):
        return self.token is None


class ContinuousBatcher:
    """A model's slots, and the thread that works on them.

    Args:
        slots: the rows in which texts grow at the same time, `OnnxSlots` or `SavedModelSlots`.
        max_queue: how many requests wait at most.
        name: of the model, in metrics.
    """

    def __init__(self, slots, max_queue=256, name=""):
        self.max_queue, self.name = max_queue, name
        self._slots = slots
        self._known = [[] for _ in range(slots.count)]  # the tokens that each slot has read and not forgotten
        self._used = [0.0] * slots.count  # when
        self._rows = {}  # slot → Row
        self._reading = collections.deque()
        self._waiting = collections.deque()
        self._seconds = 1.0  # that a request takes, lately
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"batch-{name}", daemon=True)
        self._thread.start()

    def submit(self, request):
        """Queues a request.

        Raises:
            RequestError: INVALID_ARGUMENT if the prompt and what is to follow do not fit in the window,
                RESOURCE_EXHAUSTED with `retry_after` seconds if too many wait already, UNAVAILABLE if the server shuts
                down.
        """
        new = 0 if request.prompt_only or request.embedding else request.settings.max_new_tokens
        room = self.room(request.prompt)
        if room < 1 or new > room:
            raise invalid(
                f"the prompt has {len(request.prompt)} tokens and {new} are to follow, expected at most the window's "
                f"{self._slots.window} and one more"
            )
        with self._changed:
            if self._closed:
                raise RequestError("UNAVAILABLE", "the server is shutting down")
            if len(self._waiting) >= self.max_queue:
                error = RequestError("RESOURCE_EXHAUSTED", f"{self.max_queue} requests are waiting, try again later")
                error.retry_after = self._retry_after()
                raise error
            self._waiting.append(request)
            METRICS.queued(self.name, len(self._waiting))
            self._changed.notify()

    def close(self):
        """Finishes what was submitted, and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def room(self, prompt):
        """How many tokens may follow a prompt; the last of them needs no place in the window."""
        return self._slots.window - len(prompt) + 1

    @property
    def load(self):
        """How many requests are in slots, and how many wait."""
        return len(self._rows), len(self._waiting)

    def _retry_after(self):
        turns = (len(self._waiting) + len(self._rows)) / self._slots.count
        return min(60, max(1, math.ceil(turns * self._seconds)))

    def _work(self):
        while True:
            with self._changed:
                while not self._waiting and not self._rows:
                    if self._closed:
                        return
                    self._changed.wait()
                self._drop_waiting()
                self._admit()
            try:
                self._drop_rows()
                self._read()
                self._step()
            except Exception:  # whatever it is, the texts of this batch end with it, and the server lives on
                LOGGER.exception("a batch failed")
                for row in list(self._rows.values()):
                    self._end(row, RequestError("INTERNAL", "the batch failed in the server"))
                self._known = [[] for _ in self._known]

    def _drop_waiting(self):
        """Takes out of the queue whom nobody waits for any more, or who has waited too long."""
        now, kept = time.monotonic(), collections.deque()
        for request in self._waiting:
            if request.deadline <= now and not request.cancelled:
                self._notify(request, RequestError("DEADLINE_EXCEEDED", "the request waited longer than its deadline"))
            elif not request.cancelled:
                kept.append(request)
        self._waiting = kept
        METRICS.queued(self.name, len(kept))

    def _admit(self):
        """Gives free slots to those who wait, longest first: one that knows their prompt, or the least missed."""
        free = [slot for slot in range(self._slots.count) if slot not in self._rows]
        while free and self._waiting:
            request = self._waiting.popleft()
            METRICS.queued(self.name, len(self._waiting))
            METRICS.admitted(self.name, time.monotonic() - request.enqueued)
            slot = max(free, key=lambda slot: (self._reusable(slot, request), -self._used[slot]))
            free.remove(slot)
            self._rows[slot] = row = Row(request, slot, self._slots.vocabulary_size)
            self._reading.append(row)

    def _reusable(self, slot, request):
        return 0 if request.prompt_logprobs or request.embedding else reusable(self._known[slot], request.prompt)

    def _reuse(self, row):
        """Lets a row begin with what some slot knows of its prompt; now, when those before it have been read."""
        best = max(range(self._slots.count), key=lambda slot: (self._reusable(slot, row.request), slot == row.slot))
        length = self._reusable(best, row.request)
        if best != row.slot and length:
            self._slots.copy(best, row.slot, length)
        self._slots.truncate(row.slot, length)
        self._known[row.slot] = row.request.prompt[:length]
        METRICS.prompt(self.name, len(row.request.prompt), length)
        row.begun = True

    def _drop_rows(self):
        now = time.monotonic()
        for row in list(self._rows.values()):
            if row.request.cancelled:
                self._remove(row)
                METRICS.finished(self.name, "cancelled")
            elif row.request.deadline <= now:
                self._end(row, RequestError("DEADLINE_EXCEEDED", "the text was not complete at its deadline"))

    def _read(self):
        """Reads a piece of the prompt whose turn it is; with the last one its first token is there."""
        if not self._reading:
            return
        row = self._reading[0]
        if not row.begun:
            self._reuse(row)
        request, start = row.request, len(self._known[row.slot])
        end = min(start + CHUNK, len(request.prompt))
        if request.embedding:
            hidden = self._slots.read_hidden(row.slot, request.prompt[start:end])
            row.hidden = row.hidden + hidden.sum(axis=0, dtype=np.float64)
        else:
            logits = self._slots.read(row.slot, request.prompt[start:end], request.prompt_logprobs)
        self._known[row.slot] += request.prompt[start:end]
        if request.prompt_logprobs:
            following = request.prompt[start + 1 : end + 1]
            row.prompt_tokens += [
                described(line, token, request.num_logprobs) for line, token in zip(logits, following)
            ]
        if end < len(request.prompt):
            return
        self._reading.popleft()
        if request.embedding:
            self._notify(request, Embedding((row.hidden / end).astype(np.float32)))
        if request.prompt_logprobs:
            self._notify(request, Prompt(tuple(row.prompt_tokens)))
        if request.prompt_only or request.embedding:
            self._end(row, Finished("length"))
            return
        if request.settings.repetition_penalty != 1:
            row.seen = np.zeros((1, self._slots.vocabulary_size), bool)
            row.seen[0, request.prompt] = True
        self._continue(row, logits[-1])

    def _step(self):
        """Continues each text by a token."""
        active = sorted(slot for slot, row in self._rows.items() if not row.reading)
        if not active:
            return
        active = self._close_gaps(active)
        tokens = [self._rows[slot].token if slot in active else None for slot in range(active[-1] + 1)]
        logits = self._slots.step(tokens)
        METRICS.stepped(self.name, len(active))
        for slot in active:
            self._continue(self._rows[slot], logits[slot])

    def _close_gaps(self, active):
        """Moves the last texts into free slots before them, where nobody is about to come: rows between cost time."""
        while not self._waiting:
            gap = next((slot for slot in range(active[-1]) if slot not in self._rows), None)
            if gap is None:
                break
            last = active.pop()
            self._slots.copy(last, gap, int(self._slots.lengths[last]))
            self._known[gap], self._used[last] = list(self._known[last]), time.monotonic()
            row = self._rows[gap] = self._rows.pop(last)
            row.slot = gap
            active = sorted([*active, gap])
        return active

    def _continue(self, row, logits):
        """Chooses a text's next token."""
        request, settings = row.request, row.request.settings
        draw = functools.partial(uniform, [settings.seed], row.count)
        adjusted = logits if row.adjustment is None else logits + row.adjustment.bias
        token = int(choose_tokens(adjusted[None], row.seen, settings, draw)[0])
        now = time.monotonic()
        METRICS.new_token(self.name, row.time is None, now - (request.enqueued if row.time is None else row.time))
        row.token, row.time = token, now
        row.count += 1
        if row.adjustment is not None:
            row.adjustment.count(token)
        if row.seen is not None:
            row.seen[0, token] = True
        self._notify(request, described(logits, token, request.num_logprobs))
        if token in settings.stop_token_ids:
            self._end(row, Finished("stop"))
        elif row.count == settings.max_new_tokens:
            self._end(row, Finished("length"))

    def _end(self, row, event):
        self._remove(row)
        self._seconds += 0.1 * (time.monotonic() - row.request.enqueued - self._seconds)
        METRICS.finished(self.name, event.reason if isinstance(event, Finished) else event.code)
        self._notify(row.request, event)

    def _remove(self, row):
        del self._rows[row.slot]
        if row in self._reading:
            self._reading.remove(row)
        self._used[row.slot] = time.monotonic()

    def _notify(self, request, event):
        try:
            request.notify(event)
        except Exception:  # of one listener, which is not to end the others' texts
            LOGGER.exception("a listener failed")
            request.cancel()
