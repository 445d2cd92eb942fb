"""From the thread of a running batch to the server's event loop, and back when a client goes."""

from __future__ import annotations

import asyncio
import collections
import contextlib

from tfgpt.server.status import RequestError
from tfgpt.server.text_requests import Finished


class Events:
    """What happens to several requests, brought from the batch's thread to the server's loop.

    Args:
        loop: the server's.
        wakes_for_all: whether every token is to be told at once, or all of a text when it ends.
    """

    def __init__(self, loop, wakes_for_all):
        self._loop, self._wakes_for_all = loop, wakes_for_all
        self._events, self._wake, self._scheduled = collections.deque(), asyncio.Event(), False
        self._open = set()

    def listener(self, index):
        """The `notify` of a request."""
        self._open.add(index)

        def notify(event):
            self._events.append((index, event))
            ends = isinstance(event, (Finished, RequestError))
            if (self._wakes_for_all or ends) and not self._scheduled:
                self._scheduled = True
                self._loop.call_soon_threadsafe(self._wake.set)

        return notify

    def ended(self, index):
        """Nothing more is wanted of a request."""
        self._open.discard(index)

    async def __aiter__(self):
        """Events until every request has ended."""
        while self._open:
            await self._wake.wait()
            self._wake.clear()
            self._scheduled = False  # before the events are taken: who comes after it wakes again
            while self._events:
                index, event = self._events.popleft()
                if isinstance(event, (Finished, RequestError)):
                    self._open.discard(index)
                yield index, event


@contextlib.asynccontextmanager
async def unless_gone(receive):
    """Ends what is within when the client goes.

    Args:
        receive: of the request, whose body has been read.

    Raises:
        RequestError: CANCELLED, then.
    """
    task, gone = asyncio.current_task(), False

    async def watch():
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not gone:
            raise
        raise RequestError("CANCELLED", "the client has gone") from None
    finally:
        watcher.cancel()
