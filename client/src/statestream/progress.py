"""How far long calls are: told to a function of the caller's, or drawn as a bar, in a terminal or a notebook."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final, TypeAlias

Progress: TypeAlias = bool | Callable[[int, int | None], object]
"""True for a bar; or what is called with how many are done and how many there are, None where nobody knows."""

Tell: TypeAlias = Callable[[int], None]
"""Is told how many are done."""

_EVERY: Final = 0.1
"""Seconds from one look of a bar to the next."""
_FIRST: Final = 16
"""Rows that are sent first."""


def check_progress(progress: object) -> None:
    """Checks what a caller passed, and that what draws a bar is installed.

    Raises:
        TypeError: It is neither a bool nor a function, or a coroutine function, which nobody would await.
        ImportError: A bar is wanted, and the library that draws it is not installed; says how to get it.
    """
    if progress is False:
        return
    if progress is True:
        _library()
    elif not callable(progress):
        raise TypeError(
            f"progress is {type(progress).__name__}; expected True for a bar, or a function of how many are done and"
            " how many there are"
        )
    elif asyncio.iscoroutinefunction(progress):
        raise TypeError("progress is a coroutine function, which is not awaited; expected a plain function")


@contextmanager
def reporting(progress: Progress, what: str, total: int | None, unit: str) -> Iterator[Tell | None]:
    """Gives what is to be told how many are done; None where nobody wants to know.

    A bar ends with the block, however that ends; where it was stopped the bar says so. A function is called with 0
    first.

    Args:
        progress: Who wants to know.
        what: What is done, for a bar.
        total: How many there are; None where nobody knows.
        unit: What is counted.
    """
    if progress is False:
        yield None
    elif progress is True:
        bar = _Bar(what, total, unit)
        try:
            bar.begin()
            yield bar.tell
        except BaseException:
            bar.end(stopped=True)
            raise
        bar.end(stopped=False)
    else:
        told, last = progress, 0
        told(0, total)

        def tell(done: int) -> None:
            nonlocal last
            if done != last:
                last = done
                told(done, total)

        yield tell


def pieces(rows: int, size: int, most: int) -> Iterator[tuple[int, int]]:
    """From where to where rows are sent at a time, when somebody wants to know how many are done.

    Few at first; twice as many for as long as they take less time than a bar stands still.

    Args:
        rows: How many there are; none are cut where there is none.
        size: The bytes of all.
        most: The bytes that a server takes at once, of which half is used; 0 for any.
    """
    fit = max(1, most // 2 * rows // max(1, size)) if most else rows
    low, count = 0, _FIRST
    while low < rows:
        high, began = min(rows, low + min(count, fit)), time.monotonic()
        yield low, high
        low = high
        if time.monotonic() - began < _EVERY:
            count *= 2


def _library() -> None:
    if find_spec("rich") is None:
        raise ImportError(
            "progress=True draws a bar with rich, which is not installed: pip install 'statestream[progress]', or pass"
            " a function of how many are done and how many there are",
            name="rich",
        )
    from rich.console import Console

    if Console().is_jupyter and find_spec("ipywidgets") is None:
        raise ImportError(
            "progress=True draws a bar in a notebook with ipywidgets, which is not installed: pip install"
            " 'statestream[progress]', or pass a function of how many are done and how many there are",
            name="ipywidgets",
        )


class _Board:
    """Where the bars of this process stand below each other: two that drew by themselves would draw over each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars: set[_Bar] = set()
        self._drawn: Any = None

    def add(self, bar: _Bar) -> tuple[Any, Any]:
        """What draws, and the bar's number there."""
        with self._lock:
            self._bars.add(bar)
            if self._drawn is None:
                self._drawn = _drawn()
            task = self._drawn.add_task(bar.what, total=bar.total, count=bar.count())
            self._drawn.start()
            return self._drawn, task

    def remove(self, bar: _Bar) -> None:
        """Takes a bar away; with the last one the drawing ends, and leaves the terminal as it was."""
        with self._lock:
            self._bars.discard(bar)
            if not self._bars and self._drawn is not None:
                drawn, self._drawn = self._drawn, None
                drawn.stop()


_BOARD: Final = _Board()


class _Bar:
    """A bar; drawn by the thread that tells, a few times a second, so that none of its own runs."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self.what = what
        self.total = total
        self._unit = unit
        self._done = 0
        self._drawn: Any = None
        self._task: Any = None
        self._due = 0.0

    def begin(self) -> None:
        self._drawn, self._task = _BOARD.add(self)

    def tell(self, done: int) -> None:
        self._done = done
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _EVERY
            self._drawn.update(self._task, completed=done, count=self.count(), refresh=True)

    def count(self, ending: str = "") -> str:
        of = "" if self.total is None else f"/{self.total:,}"
        return f"{self._done:,}{of} {self._unit}{ending}"

    def end(self, *, stopped: bool) -> None:
        try:
            if self._drawn is not None:
                ending = ", stopped" if stopped else ""
                total = self._done if self.total is None and not stopped else self.total
                self._drawn.update(self._task, completed=self._done, total=total, count=self.count(ending))
                self._drawn.stop_task(self._task)
                self._drawn.refresh()
        finally:
            _BOARD.remove(self)


def _drawn() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Drawn

    console = Console(stderr=True)
    return Drawn(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
        # What is printed meanwhile goes above the bar where both are on one terminal; into a file it goes as ever.
        redirect_stdout=console.is_terminal and not console.is_jupyter and sys.stdout.isatty(),
        redirect_stderr=console.is_terminal and not console.is_jupyter,
    )
