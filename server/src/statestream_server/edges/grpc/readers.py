"""Readers: who is written to, how long each has taken nothing, and the end of calls whose reader takes nothing at all.

gRPC's flow control lets a write wait for its reader for ever, with all that the call holds. A deadline around each
write would cost every message a timer; so each call notes when its write began, and one timer looks at all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from statestream.contract import errors

_LOOKS = 8
"""How often, within the time that a reader has, all of them are looked at."""


class Reading:
    """One call that is written to.

    Attributes:
        since: When the write under way began, by `time.monotonic`; None while none is.
        late: Whether the call was cancelled because of its reader.
    """

    __slots__ = ("late", "since", "task")

    def __init__(self, task: asyncio.Task[object]) -> None:
        """A call that is served by `task`; nothing is being written."""
        self.since: float | None = None
        self.late = False
        self.task = task


class Readers:
    """The calls of a server that are written to."""

    def __init__(self, timeout: float) -> None:
        """Nobody is written to; a write may take `timeout` seconds."""
        self.timeout = timeout
        self._readings: set[Reading] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._readings)

    @contextmanager
    def follow(self) -> Iterator[Reading]:
        """Watches the writes of the running task: one that takes too long cancels it, and leaves here as SlowReader.

        Raises:
            SlowReader: A write took more than `timeout` seconds.
        """
        task = asyncio.current_task()
        assert task is not None
        reading = Reading(task)
        self._readings.add(reading)
        self._look_later()
        try:
            yield reading
        except asyncio.CancelledError:
            if not reading.late:
                raise
            task.uncancel()
            raise errors.SlowReader(
                f"nothing of the answer was read for {self.timeout:g} s, so the server gave up what it held for it;"
                " read as it comes, or ask again for less at a time"
            ) from None
        finally:
            self._readings.discard(reading)

    def look(self, now: float) -> None:
        """Cancels the calls whose write has taken too long."""
        for reading in self._readings:
            if reading.since is not None and now - reading.since > self.timeout and not reading.late:
                reading.late = True
                reading.task.cancel()

    def _look_later(self) -> None:
        if self._timer is None and self._readings:
            self._timer = asyncio.get_running_loop().call_later(self.timeout / _LOOKS, self._due)

    def _due(self) -> None:
        self._timer = None
        self.look(monotonic())
        self._look_later()
