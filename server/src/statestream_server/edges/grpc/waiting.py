"""Waiting: a call whose task waits for what a direct call would be told; see `chain.Direct`."""

from __future__ import annotations

import asyncio
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

M = TypeVar("M")


class Waiting(Generic[M]):
    """A call of an edge that serves each by a task."""

    __slots__ = ("message",)

    def __init__(self) -> None:
        """Nothing was said."""
        self.message: asyncio.Future[M] = asyncio.get_running_loop().create_future()
        """The answer; cancelled where the call is."""

    @property
    def over(self) -> bool:
        """Whether it is answered, refused or cancelled."""
        return self.message.done()

    def answer(self, message: Any) -> None:
        """Ends it with a copy of a message, or with what is bytes already."""
        if not self.message.done():
            if isinstance(message, Message):
                copy = type(message)()
                copy.CopyFrom(message)
                message = copy
            self.message.set_result(message)

    def fail(self, error: Exception) -> None:
        """Ends it with an error."""
        if not self.message.done():
            self.message.set_exception(error)
