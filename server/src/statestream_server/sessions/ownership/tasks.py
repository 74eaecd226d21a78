"""Work that was begun and must end, whoever waits for it: no cancel and no deadline reaches it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from statestream.contract import errors

log = logging.getLogger(__name__)

T = TypeVar("T")


class Tasks:
    """What is under way."""

    def __init__(self) -> None:
        """Nothing is."""
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begins something that goes on to its end."""
        task = asyncio.create_task(work, name="session-work")
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Does something to the end, whoever is cancelled meanwhile."""
        return await asyncio.shield(self.begin(work))

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()  # Who still waits for it hears of it.
        if error is not None and not isinstance(error, errors.StatestreamError):
            log.error("a claim, a delete or a release failed in a way that was not expected", exc_info=error)

    async def finished(self) -> None:
        """Returns when everything that was begun so far has ended."""
        if self._tasks:
            await asyncio.wait([*self._tasks])
