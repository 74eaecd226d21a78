"""What a core is asked to make, as its caller knows it, who may be interrupted at any line or await."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from statestream.contract.errors import StatestreamError
from statestream.core import Ticket
from statestream.core.tickets import Waiter

K = TypeVar("K", bound=Ticket)
D = TypeVar("D", bound=Waiter)


class Asked(Generic[K, D]):
    """A ticket that a core is asked to make.

    Args:
        make: Makes it, or raises.
        done: Done when the ticket is, or could not be made.
    """

    __slots__ = ("_begun", "_failure", "_make", "_ticket", "done")

    def __init__(self, make: Callable[[], K], done: D) -> None:
        self.done = done
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

    def answer(self) -> K | StatestreamError:
        """The ticket, once it is done, or what went wrong with the whole of it."""
        if isinstance(self._failure, StatestreamError):
            return self._failure
        if self._failure is not None:
            raise self._failure
        assert self._ticket is not None
        return self._ticket.error or self._ticket

    def forget(self, cancel: Callable[[Ticket], None]) -> None:
        """Has the ticket cancelled, where one was made and is not done."""
        if self._ticket is not None and not self._ticket.done:
            cancel(self._ticket)
