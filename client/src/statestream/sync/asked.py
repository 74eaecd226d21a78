"""What callers' threads wait on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from statestream.core import Ticket

K = TypeVar("K", bound=Ticket)


class Done:
    """What a caller's thread waits on: a lock, which costs a tenth of a threading.Event."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def done(self) -> bool:
        """Whether `wait` returns at once."""
        return not self._lock.locked()

    def set_result(self, _result: None) -> None:
        """Lets `wait` return."""
        self._lock.release()

    def wait(self, timeout: float) -> bool:
        """Returns True once it is done, False after so many seconds; one thread waits, and does so until it is done."""
        return self._lock.acquire(timeout=timeout)


class Asked(Generic[K]):
    """A ticket that a core is asked to make.

    Attributes:
        done: Waits until the ticket is done, or could not be made.
    """

    __slots__ = ("_begun", "_failure", "_make", "_ticket", "done")

    def __init__(self, make: Callable[[], K]) -> None:
        self.done = Done()
        self._make = make
        self._begun = False
        self._ticket: K | None = None
        self._failure: Exception | None = None

    def begin(self) -> None:
        """Makes the ticket, where the core may be touched; a second time does nothing."""
        if self._begun:
            return
        self._begun = True
        try:
            ticket = self._ticket = self._make()
        except Exception as error:
            self._failure = error
            self.done.set_result(None)
            return
        if ticket.done:
            self.done.set_result(None)
        else:
            ticket.waiter = self.done

    def ticket(self) -> K:
        """The ticket, once it is done; raises what went wrong with the whole of it."""
        if self._failure is not None:
            raise self._failure
        assert self._ticket is not None
        if self._ticket.error is not None:
            raise self._ticket.error
        return self._ticket

    def forget(self, cancel: Callable[[Ticket], None]) -> None:
        """Has the ticket cancelled, where one was made and is not done."""
        if self._ticket is not None and not self._ticket.done:
            cancel(self._ticket)
