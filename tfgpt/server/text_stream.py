"""Text as its tokens come: whole characters, and nothing of a string that is to end it."""

from __future__ import annotations

import codecs


class TextStream:
    """Turns tokens into text.

    Args:
        stops: strings that end the text where the first of them begins.

    Attributes:
        stopped: whether one of them came; what follows is ignored.

    Example:
        >>> stream = TextStream(["end"])
        >>> [stream.push(piece) for piece in (b"caf", b"\\xc3", b"\\xa9 e", b"nd of it")], stream.stopped
        (['caf', '', 'é ', ''], True)
    """

    def __init__(self, stops=()):
        self._stops = [stop for stop in stops if stop]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def push(self, piece):
        """The text that a token's bytes make certain."""
        return self._take(self._decoder.decode(piece))

    def finish(self):
        """What was held back, once no more tokens come."""
        text = self._take(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return text + held

    def _take(self, text):
        if self.stopped:
            return ""
        self._held += text
        found = [place for place in (self._held.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        certain = len(self._held) - keep
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def _overlap(self, stop):
        """How many characters at the end may be the beginning of a stop string."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)
