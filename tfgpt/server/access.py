"""Who may ask: bearer tokens (RFC 6750), compared in a time that does not tell how much of one was right."""

from __future__ import annotations

import hmac
import pathlib

from tfgpt.errors import UserError
from tfgpt.server.status import RequestError


class Access:
    """Lets requests through.

    Args:
        tokens: those that are valid; with none, everyone may ask.
    """

    def __init__(self, tokens=()):
        self._tokens = [token.encode("ascii") for token in tokens]

    @classmethod
    def from_file(cls, path):
        """Reads a token a line; None as path lets everyone ask.

        Raises:
            UserError: if the file holds none.
        """
        if path is None:
            return cls()
        try:
            tokens = pathlib.Path(path).read_text(encoding="ascii").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read, expected a token of printable ASCII a line: {error}") from error
        tokens = [token.strip() for token in tokens if token.strip()]
        if not tokens or not all(token.isprintable() and " " not in token for token in tokens):
            raise UserError(f"{path} holds no tokens, expected one of printable ASCII without spaces a line")
        return cls(tokens)

    def check(self, authorization):
        """Raises unless a request may be answered.

        Args:
            authorization: bytes of its Authorization header, or None.

        Raises:
            RequestError: UNAUTHENTICATED.
        """
        if not self._tokens:
            return
        scheme, _, token = (authorization or b"").partition(b" ")
        # All of them are compared, whichever matches.
        matches = [hmac.compare_digest(token.strip(), known) for known in self._tokens]
        if scheme.lower() != b"bearer" or not any(matches):
            raise RequestError(
                "UNAUTHENTICATED", "the request has no valid token, expected Authorization: Bearer TOKEN"
            )
