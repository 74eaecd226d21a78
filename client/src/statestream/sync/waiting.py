"""What callers' threads wait on: what differs from the other twin beside the link."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Generic, TypeAlias, TypeVar

import grpc

T = TypeVar("T")

Attempt: TypeAlias = Callable[[], AbstractContextManager[grpc.Channel]]
"""A try of one call, on the channel that it has; where the server could not answer, another is to follow."""

LIVE: tuple[type, ...] = ()
"""What `stream` takes beside iterables."""

Lock = threading.Lock


class Done:
    """What a ticket's caller waits on: a lock, which costs a tenth of a threading.Event.

    Args:
        check: Raises where nobody is there any more who would set a result.
    """

    __slots__ = ("_check", "_lock")

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._lock = threading.Lock()
        self._lock.acquire()

    def done(self) -> bool:
        """Whether `wait` returns at once."""
        return not self._lock.locked()

    def set_result(self, _result: None) -> None:
        """Lets `wait` return."""
        self._lock.release()

    def wait(self) -> None:
        """Returns once it is done; one thread waits, once."""
        # In turns, because a thread that ended on an error of its own would wake nobody.
        while not self._lock.acquire(timeout=1.0):
            self._check()

    def wait_until(self, due: float) -> None:
        """The same, up to a moment of the monotonic clock."""
        self._lock.acquire(timeout=max(0.0, due - time.monotonic()))


def wait_for_all(waits: Sequence[Done], seconds: float) -> None:
    """Returns when all are done, and after so many seconds anyway."""
    due = time.monotonic() + seconds
    for done in waits:
        done.wait_until(due)


def apart(call: Callable[[], T]) -> T:
    """What a call gives that waits."""
    return call()


class Cache(Generic[T]):
    """What is fetched once, by one for all who ask meanwhile, and kept; a failure is not kept."""

    def __init__(self) -> None:
        self._found: dict[Hashable, T] = {}
        self._fetching = threading.Lock()

    def get(self, key: Hashable, fetch: Callable[[], T]) -> T:
        """What is kept under a key; where that is nothing, `fetch` brings it."""
        with self._fetching:
            found = self._found.get(key)
            if found is None:
                found = self._found[key] = fetch()
        return found

    def forget(self, key: Hashable) -> None:
        """Has it fetched again by whoever asks next."""
        self._found.pop(key, None)

    def clear(self) -> None:
        """Forgets everything."""
        self._found.clear()


class Race(Generic[T]):
    """Several that are waited for at once: for the one that was added first, and whatever is done by then."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Done, T]] = []

    def add(self, done: Done, key: T) -> None:
        """Has `next` give a key when something is done."""
        self._waiting.append((done, key))

    def next(self) -> list[T]:
        """The keys of those that are done, of at least one; each once."""
        oldest = self._waiting[0][0]
        oldest.wait()
        oldest.set_result(None)  # Whoever has the key waits, too.
        found = [key for done, key in self._waiting if done.done()]
        self._waiting = [one for one in self._waiting if not one[0].done()]
        return found
