"""What of frames is too much: a budget of each connection that what brings nothing costs of, and that time refills."""

from __future__ import annotations

from time import monotonic
from typing import Final

from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError

MOST_STREAMS: Final = 1024
"""Calls of one connection at a time; those beyond are refused (REFUSED_STREAM), which clients take as "later"."""
STREAM_WINDOW: Final = 64 << 10
"""Bytes that may come on a stream before they are taken; as many for each stream are a connection's most."""
PROMISES: Final = 64 << 20
"""Bytes that the long messages of a connection may have beyond it, together."""
WIDE: Final = 4 << 20
"""Bytes that a stream keeps of them at most, once it had long messages, so that the next ones need not ask."""
WIDE_TOGETHER: Final = 16 << 20
"""The same of all streams of a connection."""
HEADER_LIST: Final = 16 << 10
"""Bytes of a header list, with 32 for each field (RFC 9113 §6.5.2); a call with more is refused."""
HEADER_MOST: Final = 64 << 10
"""Beyond it decoding stops, and with it the connection: what a few bytes may be blown up to (RFC 7541 §7)."""
BLOCK_MOST: Final = 64 << 10
"""Bytes of a header block on the wire, over all its CONTINUATION frames."""
MOST_SETTINGS: Final = 32
"""Kinds of settings that are kept of a client."""
PREFACE_SECONDS: Final = 10.0
"""How long a connection may take to bring its preface and first SETTINGS."""
QUIET_SECONDS: Final = 120.0
"""A connection that brought nothing for so long is asked whether it is there."""
ANSWER_SECONDS: Final = 20.0
"""How long it has to answer; then it is closed."""


class TooMuch(ProtocolError):
    """More frames, or longer ones, than a client in its right mind sends (RFC 9113 §10.5)."""

    error_code = ErrorCodes.ENHANCE_YOUR_CALM


class Budget:
    """How much of something may come: `most` at once, `each_second` later on.

    What is taken is only counted; the clock is looked at when all is spent.
    """

    __slots__ = ("_each_second", "_filled", "_most", "left")

    def __init__(self, most: int, each_second: float) -> None:
        """All of it is left."""
        self.left = float(most)
        self._most = most
        self._each_second = each_second
        self._filled = monotonic()

    def give(self) -> None:
        """Something good came: one more is left."""
        if self.left < self._most:
            self.left += 1

    def take(self, what: str, cost: float = 1) -> None:
        """Takes of it.

        Raises:
            TooMuch: There is not so much left; `what` came too often.
        """
        self.left -= cost
        if self.left >= 0:
            return
        now = monotonic()
        self.left = min(self._most, self.left + (now - self._filled) * self._each_second)
        self._filled = now
        if self.left < 0:
            raise TooMuch(f"too many {what}: at most {self._most} at once and {self._each_second:g} a second")
