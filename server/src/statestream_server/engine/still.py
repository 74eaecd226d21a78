"""Still: who may touch the slabs, the loop between two batches or the thread while it runs one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Still:
    """Entered on the loop by who reads or writes slabs, and does not await inside: so all wait for the thread alone.

    When the thread is done all who wait go on, in the order in which they came and before its next batch. With a lock
    that batch would wait behind each of them.
    """

    def __init__(self) -> None:
        """The thread is idle."""
        self._idle = asyncio.Event()
        self._idle.set()

    async def __aenter__(self) -> None:
        while not self._idle.is_set():
            await self._idle.wait()

    async def __aexit__(self, *_: object) -> None:
        pass

    @contextmanager
    def on_thread(self) -> Iterator[None]:
        """The thread has them meanwhile."""
        self._idle.clear()
        try:
            yield
        finally:
            self._idle.set()
