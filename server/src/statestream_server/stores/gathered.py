"""Calls that wait for a store's thread at the same time: the first that gets there does what all of them ask for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Final, Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")

_FEW: Final = 64
"""Things that one call asks for at most so that others are done with it: more are worth a transaction of their own."""


class Call(Generic[A, B]):
    """One call: what it asks for, and what came of it.

    Attributes:
        asked: What it asks for, one by one.
        answers: As many answers, once it is done.
        error: Why it failed, where it did.
    """

    __slots__ = ("answers", "asked", "error")

    def __init__(self, asked: Sequence[A]) -> None:
        """It waits."""
        self.asked = asked
        self.answers: Sequence[B] | None = None
        self.error: Exception | None = None


class Gathered(Generic[A, B]):
    """Calls that wait; put in by callers on any thread, done by one."""

    def __init__(self) -> None:
        """None."""
        self._waiting = deque[Call[A, B]]()

    def put(self, asked: Sequence[A]) -> Call[A, B]:
        """A call that waits from now on; `done` is to follow on the thread, or `forget`."""
        call = Call[A, B](asked)
        if len(asked) <= _FEW:
            self._waiting.append(call)
        return call

    def forget(self, call: Call[A, B]) -> None:
        """A call that nobody waits for any more is not done, where nothing has begun it."""
        with suppress(ValueError):
            self._waiting.remove(call)

    def done(self, call: Call[A, B], work: Callable[[Sequence[A]], Sequence[B]]) -> Sequence[B]:
        """What came of a call; does it, with all that wait, where none before has done it.

        What `work` did has to stand for good when it returns: others are told then.

        Raises:
            CancelledError: It was forgotten before anything began it.
            Exception: What `work` raised; for all that it did together.
        """
        if call.answers is None and call.error is None:
            calls = [call] if len(call.asked) > _FEW else self._taken()
            if calls:
                self._do(calls, work)
        if call.error is not None:
            raise call.error
        if call.answers is None:
            raise CancelledError("nobody waits for this call any more; it was not done")
        return call.answers

    def _taken(self) -> list[Call[A, B]]:
        taken = list[Call[A, B]]()
        with suppress(IndexError):
            while True:
                taken.append(self._waiting.popleft())
        return taken

    @staticmethod
    def _do(calls: Sequence[Call[A, B]], work: Callable[[Sequence[A]], Sequence[B]]) -> None:
        try:
            answers = work([each for call in calls for each in call.asked])
        except Exception as error:
            for call in calls:
                call.error = error
            return
        end = 0
        for call in calls:
            begin, end = end, end + len(call.asked)
            call.answers = answers[begin:end]
