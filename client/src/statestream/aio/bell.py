"""What a link's task waits on between two frames."""

from __future__ import annotations

import asyncio


class Bell:
    """Wakes one task; a ring before it waits counts. An asyncio.Event is for many, and costs several times as much."""

    __slots__ = ("_loop", "_rung", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._rung = False
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wakes the task, or spares it its next wait."""
        if self._rung:
            return
        self._rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def silence(self) -> None:
        """Forgets earlier rings."""
        self._rung = False

    def wait(self) -> asyncio.Future[None]:
        """Done with the next ring, or at once where it has rung."""
        self._waiter = waiter = self._loop.create_future()
        if self._rung:
            waiter.set_result(None)
        return waiter
