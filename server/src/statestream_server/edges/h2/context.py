"""What a call is to a servicer: what grpcio's ServicerContext offers of it, beside its messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from statestream_server.edges.h2.heads import Head, Metadata

if TYPE_CHECKING:
    from statestream_server.edges.h2.connection import Connection


class Context:
    """A call's status, deadline and caller."""

    __slots__ = ("_callbacks", "_code", "_connection", "_details", "_head", "_trailing", "_until", "over")

    def __init__(self, connection: Connection, head: Head) -> None:
        """A call that began with `head`, and whose status is OK until somebody says another."""
        self.over = False  # Whether all is said but what waits for room.
        self._connection = connection
        self._head = head
        self._until: float | None = None
        self._code, self._details = grpc.StatusCode.OK, ""
        self._trailing: Metadata = ()
        self._callbacks: list[Callable[[Any], None]] | None = None

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """Ends the call with a status.

        Raises:
            grpc.aio.AbortError: Always.
        """
        if code is grpc.StatusCode.OK:
            code, details = grpc.StatusCode.UNKNOWN, "a call was aborted with OK"
        self._code, self._details, self._trailing = code, details, trailing_metadata
        raise grpc.aio.AbortError

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """Ends the call with a status.

        Raises:
            grpc.aio.AbortError: Always.
        """
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def invocation_metadata(self) -> Metadata:
        """What the caller sent beside its messages."""
        return self._head.metadata

    def peer(self) -> str:
        """Who calls, as grpcio writes it."""
        return self._connection.peer

    def time_remaining(self) -> float | None:
        """Seconds until it is to be over."""
        return None if self._until is None else max(0.0, self._until - self._connection.loop.time())

    def cancelled(self) -> bool:
        """Whether the caller has given it up."""
        return self.over and self._code is grpc.StatusCode.CANCELLED

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Calls something when it is over."""
        self._callbacks = [*(self._callbacks or ()), callback]
