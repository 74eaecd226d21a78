# Generated from statestream/aio/pipeline.py by `make twins`; change that one.
"""Several operations of one caller under way at a time, their answers in order: what `stream` is made of."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

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
