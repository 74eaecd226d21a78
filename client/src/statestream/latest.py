"""Latest: live steps that wait to be sent; the oldest go where too many wait, and those that wait too long."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

from statestream.arguments import check_seconds, check_whole

_NOTHING: Final = object()


class Latest:
    """What a live signal says, for `stream` of a session or a pool: late steps are useless, so they are not sent.

    Whoever hears the signal puts steps in, from any thread; `session.stream(latest)` takes them out as fast as they are
    answered, in both twins. Where more than `most` wait, the oldest goes; what waited for longer than `deadline` goes
    when its turn comes. What was taken out has its position and is applied like any other step, over breaks of the
    connection too: nothing that may have been sent is ever dropped. A stream has one step at a time under way, or as
    many as its `ahead` says.

    What was dropped leaves no output. The outputs that come are those of the steps that `on_drop` did not hear of, in
    their order.

    Args:
        most: How many steps may wait.
        deadline: Seconds that a step may wait; None for as long as it takes.
        on_drop: Hears of each that was dropped: its number, as `put` gave it, and the step. It is called by whoever put
            or takes a step, and is not to wait.
    """

    def __init__(
        self,
        most: int = 8,
        *,
        deadline: float | None = None,
        on_drop: Callable[[int, Any], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing waits."""
        self._most = check_whole("most", most)
        self._deadline = check_seconds("deadline", deadline) if deadline is not None else None
        self._on_drop = on_drop
        self._clock = clock
        self._room = threading.Condition()
        self._waiting = deque[tuple[int, float, Any]]()
        self._takers = list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]]()
        self._next = 0
        self._closed = False
        self.overrun = 0
        """Steps that were dropped because too many waited."""
        self.late = 0
        """Steps that were dropped because they waited too long."""

    @property
    def dropped(self) -> int:
        """Steps that were dropped."""
        return self.overrun + self.late

    @property
    def waiting(self) -> int:
        """Steps that wait."""
        return len(self._waiting)

    def put(self, x: Any) -> int:
        """Has a step wait to be sent; what `step` takes. It does not wait, and x is not copied.

        Returns:
            Its number: they count from 0.

        Raises:
            ValueError: It is closed.
        """
        gone = list[tuple[int, float, Any]]()
        with self._room:
            if self._closed:
                raise ValueError("the steps are closed; nothing can be put any more")
            number, self._next = self._next, self._next + 1
            self._waiting.append((number, self._clock(), x))
            while len(self._waiting) > self._most:
                gone.append(self._waiting.popleft())
            self.overrun += len(gone)
            self._wake()
        self._tell(gone)
        return number

    def close(self) -> None:
        """Nothing comes any more: the stream ends behind what waits."""
        with self._room:
            self._closed = True
            self._wake()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The oldest step that waits and is not late; waits for one."""
        while True:
            with self._room:
                found, gone = self._take()
                if found is _NOTHING and not gone:
                    if self._closed:
                        raise StopIteration
                    self._room.wait()
            self._tell(gone)
            if found is not _NOTHING:
                return found

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        """The same on a loop. When cancelled, nothing is taken."""
        while True:
            taker: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None
            with self._room:
                found, gone = self._take()
                if found is _NOTHING and not gone:
                    if self._closed:
                        raise StopAsyncIteration
                    loop = asyncio.get_running_loop()
                    taker = loop, loop.create_future()
                    self._takers.append(taker)
            self._tell(gone)
            if found is not _NOTHING:
                return found
            if taker is not None:
                try:
                    await taker[1]
                finally:
                    with self._room, contextlib.suppress(ValueError):
                        self._takers.remove(taker)

    def _take(self) -> tuple[Any, list[tuple[int, float, Any]]]:
        """The oldest step that is not late, or nothing, and those that are."""
        gone, found = list[tuple[int, float, Any]](), _NOTHING
        since = self._clock() - self._deadline if self._deadline is not None else None
        while self._waiting:
            first = self._waiting.popleft()
            if since is None or first[1] >= since:
                found = first[2]
                break
            gone.append(first)
        self.late += len(gone)
        return found, gone

    def _wake(self) -> None:
        self._room.notify_all()
        takers, self._takers = self._takers, []
        for loop, taker in takers:
            with contextlib.suppress(RuntimeError):  # A loop that is closed waits for nothing.
                loop.call_soon_threadsafe(_resolve, taker)

    def _tell(self, gone: list[tuple[int, float, Any]]) -> None:
        if self._on_drop is not None:
            for number, _, x in gone:
                self._on_drop(number, x)


def _resolve(taker: asyncio.Future[None]) -> None:
    if not taker.done():
        taker.set_result(None)
