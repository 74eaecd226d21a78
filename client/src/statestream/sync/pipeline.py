# Generated from statestream/aio/pipeline.py by `make twins`; change that one.
"""Several operations of one caller under way at a time, their answers in order: what `stream` is made of."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Protocol, TypeVar

from statestream.progress import Progress, reporting

T = TypeVar("T")


class UnderWay(Protocol):
    """An operation that was submitted."""

    def answer(self) -> Any:
        """Waits until it is done; its outputs, or raises its error."""

    def forget(self) -> None:
        """Stops caring for it."""


def pipeline(items: Iterable[T], send: Callable[[T], UnderWay], most: int) -> Iterator[Any]:
    """Sends items and yields their answers in order; at most `most` are under way.

    Ends with the first error: of an answer, of an item that cannot be sent, of the source; each is raised in its turn.
    What is under way when it ends is forgotten.
    """
    return _plain(items, send, most)


def counted(answers: Iterator[T], progress: Progress, what: str, items: object, unit: str) -> Iterator[T]:
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


def _counted(answers: Any, progress: Progress, what: str, total: int | None, unit: str) -> Iterator[Any]:
    numbers = itertools.count(1)
    with reporting(progress, what, total, unit) as tell:
        try:
            for answer in answers:
                if tell is not None:
                    tell(next(numbers))
                yield answer
        finally:
            answers.close()


def _plain(items: Iterable[T], send: Callable[[T], UnderWay], most: int) -> Iterator[Any]:
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
                yield _oldest(under_way)
        while under_way:
            yield _oldest(under_way)
        if failure is not None:
            raise failure
    finally:
        _forget(under_way)


def _oldest(under_way: deque[UnderWay]) -> Any:
    answer = under_way[0].answer()
    under_way.popleft()
    return answer


def _forget(under_way: deque[UnderWay]) -> None:
    for operation in reversed(under_way):
        operation.forget()
