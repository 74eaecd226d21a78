"""Turns: how much of what came is handled in one turn of the loop, so that nobody's flood is all that is done in it.

Each tenant's connections have so many frames together; those beyond wait for the next turn, unread, and their senders
meet TCP's flow control. While the engine has a backlog it is a few: what comes too much then is mostly refused, and the
time of the loop is the engine's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

MANY: Final = 512
"""Frames of a turn, of those that bring something (HEADERS and DATA): a call has two."""
FEW: Final = 32
"""The same while the engine has a backlog."""
WEIGHT: Final = 12
"""A frame counts once more for each 2**12 bytes."""


class Connected(Protocol):
    """A connection."""

    def read_on(self) -> None:
        """Has it handle what waits, as far as its turn goes."""

    def flush(self) -> None:
        """Has it write what it is to say."""

    def abort(self) -> None:
        """Ends it at once."""


class Turns:
    """Whose frames are handled in this turn of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, backlog: Callable[[], bool]) -> None:
        """Nothing came in this turn. `backlog` says whether more waits to run than runs soon."""
        self._loop = loop
        self._backlog = backlog
        self._most = MANY
        self._left: dict[str, int] = {}
        self._waiting: dict[Connected, None] = {}
        self._due: dict[Connected, None] = {}

    def left(self, tenant: str) -> int:
        """How many frames of a tenant may be handled in this turn."""
        if not self._left:
            self._loop.call_soon(self._next)
            self._most = FEW if self._backlog() else MANY
        return self._left.setdefault(tenant, self._most)

    def took(self, tenant: str, left: int) -> None:
        """Notes how many are left of what `left` said."""
        self._left[tenant] = left

    def wait(self, connection: Connected) -> None:
        """Has a connection read on in the next turn, behind those of its tenant that wait already."""
        self._waiting[connection] = None

    def write(self, connection: Connected) -> None:
        """Has what a connection is to say leave at the end of this turn, or of a batch, if that is sooner."""
        if not self._due:
            self._loop.call_soon(self.flush)
        self._due[connection] = None

    def flush(self) -> None:
        """Writes what there is."""
        while self._due:
            due, self._due = self._due, {}
            for connection in due:
                self._each(connection, connection.flush)

    def forget(self, connection: Connected) -> None:
        """It is gone."""
        self._waiting.pop(connection, None)

    def _next(self) -> None:
        """The next turn."""
        self._left = {}
        waiting, self._waiting = self._waiting, {}
        for connection in waiting:
            self._each(connection, connection.read_on)

    def _each(self, connection: Connected, work: Callable[[], None]) -> None:
        """Does one connection's part; one that fails ends alone, and those behind it have their turn."""
        try:
            work()
        except Exception as error:
            self._loop.call_exception_handler({"message": "a connection failed and is ended", "exception": error})
            connection.abort()
