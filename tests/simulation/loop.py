"""An event loop whose time is virtual; its processes can be killed, each between any two callbacks.

What asyncio promises holds within a process: callbacks run in the order in which they were scheduled. What it leaves
open is drawn: how late timers are, how long a process is not run, and how those of different processes interleave.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import random
import zlib
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_BURST = 12
_STILL = 100_000
"""Callbacks at one time: more than any schedule has."""
"""Callbacks of one process that run before another may have its turn."""


class Process:
    """What stands for a process of the operating system: its callbacks, its clocks, its draws.

    Attributes:
        name: What traces call it.
        alive: Whether it runs; what was killed never does again.
        ahead: Seconds by which its wall clock is ahead.
        slept: Seconds that its machine was suspended, which only a clock that counts them shows.
    """

    def __init__(self, loop: Loop, name: str) -> None:
        self.loop = loop
        self.name = name
        self.alive = True
        self.ahead = 0.0
        self.slept = 0.0
        self.ready = deque[asyncio.Handle]()
        self.tasks = list[asyncio.Task[Any]]()
        self.stalled = False
        self.doomed: int | None = None
        """Callbacks until it is killed."""
        self.on_death = list[Callable[[], None]]()
        self.context = contextvars.copy_context()
        self.context.run(RUNNING.set, self)

    def create(self, work: Coroutine[Any, Any, T], name: str = "main") -> asyncio.Task[T]:
        """Runs something in it."""
        return self.loop.create_task(work, name=name, context=self.context.copy())

    def kill(self) -> None:
        """Nothing of it runs any more."""
        if self.alive:
            self.alive = False
            self.loop.trace("killed", self.name)
            for tell in self.on_death:
                tell()

    def stall(self, seconds: float) -> None:
        """It does not run for some time, like one that is stopped or waits for a processor."""
        if not self.stalled and seconds > 0:
            self.stalled = True
            self.loop.at(self.loop.time() + seconds, self._go_on, context=NOWHERE)

    def _go_on(self) -> None:
        self.stalled = False
        if self.ready and self.alive:
            self.loop.busy.append(self)


RUNNING: contextvars.ContextVar[Process] = contextvars.ContextVar("running")
"""The process whose code runs."""
NOWHERE = contextvars.Context()
"""Of what belongs to no process: the network, the faults."""


class Loop(asyncio.BaseEventLoop):
    """The loop.

    Attributes:
        draw: All chance, but for what processes draw themselves.
        errors: What the loop was told that went wrong.
        digest: Of everything that was traced.
        callbacks: How many ran.
    """

    def __init__(self, seed: int, *, jitter: float, stalls: float, log: list[str] | None = None) -> None:
        """Timers are up to `jitter` seconds late; `stalls` says how often a process does not run for a moment."""
        super().__init__()
        self.draw = random.Random(seed)
        self.own = random.Random(seed ^ 0x5EED)
        self.errors = list[str]()
        self.digest = 0
        self.callbacks = 0
        self.spent = 0.0
        """Seconds that were measured while no time passed."""
        self.log = log
        self.busy = list[Process]()
        """Processes that have something to run, each once."""
        self.everywhere = Process(self, "world")
        self._now = 0.0
        self._jitter = jitter
        self._stalls = stalls
        self._heap: list[tuple[float, int, asyncio.Handle]] = []
        self._number = 0
        self._over = False
        self._still = 0
        """Callbacks since the time went on."""
        self.set_task_factory(_made)
        self.set_exception_handler(lambda _, told: self.errors.append(_words(told)))

    def trace(self, *words: object) -> None:
        """Notes what happens; the digest tells two runs apart."""
        line = f"{self._now:.6f} " + " ".join(map(str, words))
        self.digest = zlib.crc32(line.encode(), self.digest)
        if self.log is not None:
            self.log.append(line)

    def time(self) -> float:
        """Seconds since the beginning."""
        return self._now

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        """Runs it after what its process has to run before."""
        handle = asyncio.Handle(callback, args, self, context)
        self._put(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """Runs it at that time or somewhat later."""
        if self._jitter and self.draw.random() < 0.5:
            when = max(when, self._now) + self.draw.random() * self._jitter
        return self.at(when, callback, *args, context=context)

    def at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        """Runs it at that very time."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._number += 1
        heapq.heappush(self._heap, (when, self._number, timer))
        return timer

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Runs it as a thread would: at once or after a while, and not while its process is stopped."""
        future: asyncio.Future[T] = self.create_future()

        def run() -> None:
            try:
                result = func(*args)
            except Exception as error:
                if not future.cancelled():
                    future.set_exception(error)
            else:
                if not future.cancelled():
                    future.set_result(result)

        self.at(self._now + self.draw.choice((0.0, 0.001, 0.02)), run)
        return future

    def end(self) -> None:
        """Lets go of everything; what is closed now schedules nothing."""
        self._over = True
        for process in dict.fromkeys(task_process for task_process in self._processes):
            for task in process.tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    with contextlib.suppress(BaseException):
                        coroutine: Any = task.get_coro()
                        coroutine.close()
        self._heap.clear()
        self.close()

    def process(self, name: str) -> Process:
        """Begins one."""
        process = Process(self, name)
        self._processes.append(process)
        return process

    # What BaseEventLoop asks of a loop.

    def _run_once(self) -> None:
        busy = self.busy
        if not busy:
            self._advance()
            return
        process = busy[int(self.draw.random() * len(busy))] if len(busy) > 1 else busy[0]
        ready = process.ready
        for _ in range(1 + int(self.draw.random() * _BURST) if len(busy) > 1 else _BURST):
            if not ready:
                break
            handle = ready.popleft()
            if handle._cancelled:
                continue
            self.callbacks += 1
            self._still += 1
            if self._still > _STILL:
                raise RuntimeError(f"{process.name} runs for ever at {self._now:.6f}: {handle!r}")
            handle._run()
            if process.doomed is not None:
                process.doomed -= 1
                if process.doomed <= 0:
                    process.kill()
            if not process.alive or process.stalled:
                break
        if not ready or not process.alive or process.stalled:
            busy.remove(process)
        elif self._stalls and self.draw.random() < self._stalls and process is not self.everywhere:
            busy.remove(process)
            process.stall(self.draw.choice((0.0005, 0.003, 0.03, 0.3)))
        if self._heap and self._heap[0][0] <= self._now:
            self._advance()

    def _advance(self) -> None:
        heap = self._heap
        while heap and heap[0][2]._cancelled:
            heapq.heappop(heap)
        if not heap:
            raise RuntimeError("nothing will ever happen any more")
        if heap[0][0] > self._now:
            self._now, self._still = heap[0][0], 0
        while heap and heap[0][0] <= self._now:
            handle = heapq.heappop(heap)[2]
            if not handle._cancelled:
                self._put(handle)

    def _put(self, handle: asyncio.Handle) -> None:
        if self._over:
            return
        process = handle._context.get(RUNNING) or self.everywhere  # type: ignore[attr-defined]
        if process.alive:
            if not process.ready and not process.stalled and process not in self.busy:
                self.busy.append(process)
            process.ready.append(handle)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It stays where it is until its time has come."""

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps."""

    @property
    def _processes(self) -> list[Process]:
        found: list[Process] | None = self.__dict__.get("_all")
        if found is None:
            found = self.__dict__["_all"] = []
        return found


def _made(loop: Any, work: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, name=name, context=context)
    process = (context or contextvars.copy_context()).get(RUNNING)
    if process is not None:
        # What is killed is kept: were it freed, its `finally` would run.
        process.tasks.append(task)
    return task


def _words(told: dict[str, Any]) -> str:
    error = told.get("exception")
    return f"{told.get('message')}: {error!r}" if error is not None else str(told.get("message"))
