"""Calls about sessions that are open here: forks, snapshots, forecasts. Each tried once their steps are answered."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import grpc

from statestream.aio.link import Link
from statestream.aio.together import perform
from statestream.aio.waiting import Attempt
from statestream.calls import Attempts, check_control
from statestream.contract.errors import NotOwner, SessionMoved
from statestream.contract.tensors import Ints

Remedy: TypeAlias = Callable[[NotOwner], Awaitable[None]]
"""What helps a call that reached another server than the one that has its session."""


class Copying:
    """Sessions of one shard that a call is about."""

    def __init__(self, link: Link, handles: Ints, submit: Callable[[Callable[[], object]], None]) -> None:
        """Sessions by their handles; `submit` has the core begin something, unless they are closed."""
        self._link = link
        self._handles = handles
        self._submit = submit

    def attempts(self, request: Any, budget: Attempts) -> Attempt:
        """The tries of a call: each once the sessions' steps are answered, and after a remedy, if need be.

        The request names the epochs under which they are open here: nobody else's history is what is meant.
        """
        return partial(self._attempt, request, self._link.attempts(budget), iter(self._remedies()))

    @contextlib.asynccontextmanager
    async def _attempt(
        self, request: Any, attempt: Attempt, remedies: Iterator[Remedy]
    ) -> AsyncIterator[grpc.aio.Channel]:
        await self._settle()
        epochs = self._stamp(request)
        try:
            async with attempt() as channel:
                yield channel
        except NotOwner as elsewhere:
            remedy = next(remedies, None)
            if remedy is None:
                raise
            await remedy(elsewhere)
        except SessionMoved:
            await self._settle()  # Tells where a session failed. Where it was opened again, the call is made again.
            if epochs == self._stamp(request):
                raise

    def _stamp(self, request: Any) -> list[int]:
        """Names the sessions' epochs in a request."""
        epochs = self._link.core.table.epoch[self._handles]
        if len(epochs) == 1:
            request.epoch = epochs.item(0)
        else:
            request.sessions.epochs = epochs.astype("<u8").tobytes()
        found: list[int] = epochs.tolist()
        return found

    def _remedies(self) -> tuple[Remedy, ...]:
        """First this, then that.

        Someone else may have opened a session elsewhere: it is claimed back. Or a proxy divides its work anew, and
        calls go elsewhere than the stream does: another stream follows them.
        """
        stream = self._link.state.streams

        async def follow(_elsewhere: NotOwner) -> None:
            await self._link.renew(stream)

        return self._claim, follow

    async def _claim(self, elsewhere: NotOwner) -> None:
        """Opens the sessions again on the stream, which moves them to the server that the stream goes to."""
        for handle in self._handles.tolist():
            self._link.do(partial(self._link.core.opens.left, handle, elsewhere, time.monotonic()))

    async def _settle(self) -> None:
        """Waits until everything submitted before is answered."""
        ticket = await perform(self._link, lambda: self._link.core.settle(self._handles), self._submit)
        check_control(ticket.errors, self._link.core.table.ids.__getitem__)
