"""What a link's task waits on between two frames."""

from __future__ import annotations

import asyncio
import time


class Wakeup:
    """Wakes one task; a call before it waits counts. An asyncio.Event is for many, and costs several times as much."""

    __slots__ = ("_loop", "_set", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Wakes the task, or spares it its next wait."""
        if self._set:
            return
        self._set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        """Forgets earlier calls."""
        self._set = False

    def wait(self) -> asyncio.Future[None]:
        """Done with the next call, or at once where there was one."""
        self._waiter = waiter = self._loop.create_future()
        if self._set:
            waiter.set_result(None)
        return waiter

    async def rung(self, due: float | None) -> None:
        """Returns with the next call, or when `time.monotonic` is `due`, if that is sooner."""
        if due is None:
            await self.wait()
            return
        timer = self._loop.call_later(max(0.0, due - time.monotonic()), self.set)
        try:
            await self.wait()
        finally:
            timer.cancel()
