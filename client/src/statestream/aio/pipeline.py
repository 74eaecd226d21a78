"""Several operations of one caller under way at a time, their answers in order: what `stream` is made of."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sized
from typing import Any, Protocol, TypeVar

from statestream.aio.waiting import Done
from statestream.progress import Progress, reporting

T = TypeVar("T")


class UnderWay(Protocol):
    """An operation that was submitted."""

    def pending(self) -> Done | None:  # asyncio only
        """What it waits for next; None when it is done."""

    async def answer(self) -> Any:
        """Waits until it is done; its outputs, or raises its error."""

    def forget(self) -> None:
        """Stops caring for it."""


def pipeline(items: Iterable[T] | AsyncIterable[T], send: Callable[[T], UnderWay], most: int) -> AsyncIterator[Any]:
    """Sends items and yields their answers in order; at most `most` are under way.

    Ends with the first error: of an answer, of an item that cannot be sent, of the source; each is raised in its turn.
    What is under way when it ends is forgotten.
    """
    if isinstance(items, AsyncIterable):  # asyncio only
        return _live(aiter(items), send, most)
    return _plain(items, send, most)


def counted(answers: AsyncIterator[T], progress: Progress, what: str, items: object, unit: str) -> AsyncIterator[T]:
    """The same answers; how many there were is told where somebody wants to know.

    Args:
        answers: Those.
        progress: Who wants to know.
        what: What is done.
        items: What the answers are to; there are as many as that has, where it says so.
        unit: What is counted.
    """
    if progress is False:
        return answers
    return _counted(answers, progress, what, len(items) if isinstance(items, Sized) else None, unit)


async def _counted(answers: Any, progress: Progress, what: str, total: int | None, unit: str) -> AsyncIterator[Any]:
    numbers = itertools.count(1)
    with reporting(progress, what, total, unit) as tell:
        try:
            async for answer in answers:
                if tell is not None:
                    tell(next(numbers))
                yield answer
        finally:
            await answers.aclose()


async def _plain(items: Iterable[T], send: Callable[[T], UnderWay], most: int) -> AsyncIterator[Any]:
    under_way: deque[UnderWay] = deque()
    failure: Exception | None = None
    try:
        source = iter(items)
        while True:
            try:
                under_way.append(send(next(source)))
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            if len(under_way) >= most:
                yield await _oldest(under_way)
        while under_way:
            yield await _oldest(under_way)
        if failure is not None:
            raise failure
    finally:
        _forget(under_way)


async def _live(  # asyncio only
    items: AsyncIterator[T], send: Callable[[T], UnderWay], most: int
) -> AsyncIterator[Any]:
    """Takes items as they come and yields answers as they come, neither waiting for the other."""
    under_way: deque[UnderWay] = deque()
    end = object()
    pull: asyncio.Future[Any] | None = None
    failure: Exception | None = None
    more = True
    try:
        while more or under_way:
            if more and pull is None and len(under_way) < most:
                pull = asyncio.ensure_future(anext(items, end))
            pending = under_way[0].pending() if under_way else None
            waits = [future for future in (pending, pull) if future is not None]
            if waits:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if pull is not None and pull.done():
                pulled, pull = pull, None
                try:
                    if pulled.result() is end:
                        more = False
                    else:
                        under_way.append(send(pulled.result()))
                except Exception as error:
                    failure, more = error, False
            while under_way and under_way[0].pending() is None:
                yield await _oldest(under_way)
        if failure is not None:
            raise failure
    finally:
        if pull is not None:
            pull.cancel()
        _forget(under_way)


async def _oldest(under_way: deque[UnderWay]) -> Any:
    answer = await under_way[0].answer()
    under_way.popleft()
    return answer


def _forget(under_way: deque[UnderWay]) -> None:
    for operation in reversed(under_way):
        operation.forget()
