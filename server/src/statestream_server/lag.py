"""How promptly the event loop comes round, always on: how late its wake-ups are, and how much it does in one turn.

A turn that takes long holds up every caller. Its time depends on the machine; what was done in it does not, so tests
look at the work and people at the time.
"""

from __future__ import annotations

import asyncio
from typing import Final

EVERY: Final = 0.05
"""Seconds between two looks."""
BUCKETS: Final = 16
"""Lags by powers of two of milliseconds: below 1, 2, 4, … up to 16 s, and above."""
NOTED_ROWS: Final = 64
"""What has fewer rows is not worth a note."""
_SMALL: Final = 1 << 16


class Lag:
    """Wakes up again and again and notes how late it was."""

    def __init__(self) -> None:
        """Nothing was noted; `start` begins."""
        self.counts = [0] * BUCKETS
        """Wake-ups by their lag: index i has those of less than 2**i ms, and not less than the one before."""
        self.total = 0.0
        """Seconds of all lags."""
        self.most = 0.0
        """The longest, in seconds."""
        self._handle: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due = 0.0

    def start(self) -> None:
        """Begins to look."""
        self._loop = asyncio.get_running_loop()
        self._wait(self._loop)

    def stop(self) -> None:
        """Looks no longer."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def note(self, seconds: float) -> None:
        """Notes that a wake-up came so late."""
        late = max(0.0, seconds)
        self.counts[min(int(late * 1e3).bit_length(), BUCKETS - 1)] += 1
        self.total += late
        self.most = max(self.most, late)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + EVERY
        self._handle = loop.call_at(self._due, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self.note(loop.time() - self._due)
        self._wait(loop)


class TurnLoad:
    """The most that was done in one turn of the loop. What is small is not counted, so that single steps cost nothing.

    Attributes:
        rows: Rows of frames, opens and batches.
        errors: Errors that were written.
        nbytes: Bytes of inputs that were taken.
    """

    def __init__(self) -> None:
        """Nothing was done."""
        self.rows = self.errors = self.nbytes = 0
        self._rows = self._errors = self._nbytes = 0
        self._counting = False

    def note(self, rows: int = 0, errors: int = 0, nbytes: int = 0) -> None:
        """Notes what is done in this turn."""
        if rows < NOTED_ROWS and errors < NOTED_ROWS and nbytes < _SMALL:
            return
        if not self._counting:
            self._counting = True
            asyncio.get_running_loop().call_soon(self._over)
        self._rows += rows
        self._errors += errors
        self._nbytes += nbytes

    def forget(self) -> None:
        """Begins anew, for a test that looks at what follows."""
        self.rows = self.errors = self.nbytes = 0

    def _over(self) -> None:
        if self._rows > self.rows:
            self.rows = self._rows
        if self._errors > self.errors:
            self.errors = self._errors
        if self._nbytes > self.nbytes:
            self.nbytes = self._nbytes
        self._rows = self._errors = self._nbytes = 0
        self._counting = False
