"""Opens of one stream that wait until a version is loaded, and the frames that must wait behind them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from statestream.v1 import inference_pb2 as pb

_MOST_BYTES = 1 << 20
"""Bytes of frames that may wait, such opens among them, before the stream is no longer read."""

Answer = Callable[[pb.StreamRequest, Callable[[], None]], Awaitable[None]]
"""Answers a frame; calls the function before it waits for a version."""


class Apart:
    """Keeps the order of each session while the stream goes on with others.

    A frame that names a handle, or opens an id, of a frame that still waits, waits behind it, all of it; what names one
    of its own then waits behind both. Everything else passes by.
    """

    def __init__(self, answer: Answer) -> None:
        """Nothing waits."""
        self._answer = answer
        self._waiting: dict[asyncio.Task[None], set[int | str]] = {}
        self._bytes = 0

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._waiting)

    async def take(self, request: pb.StreamRequest) -> None:
        """Answers a frame, or has it wait; returns when the next one may come."""
        if self._waiting:
            named = _named(request)
            before = [task for task, others in self._waiting.items() if not named.isdisjoint(others)]
            if before:
                # Its handles may stand for ids, and ids for handles, that only those before it name.
                self._begin(request, named.union(*map(self._waiting.__getitem__, before)), before, _nothing)
                await self._room()
                return
        if not request.HasField("open"):
            await self._answer(request, _nothing)
            return
        loads: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def loading() -> None:
            if not loads.done():
                loads.set_result(None)

        task = self._begin(request, _named(request), [], loading)
        await asyncio.wait((task, loads), return_when=asyncio.FIRST_COMPLETED)
        await self._room()

    async def settled(self) -> None:
        """Returns when nothing waits any more."""
        while self._waiting:
            await asyncio.wait([*self._waiting])

    def cancel(self) -> None:
        """Drops everything that waits."""
        for task in self._waiting:
            task.cancel()

    async def _room(self) -> None:
        """Returns when little enough waits that the stream may be read on."""
        while self._bytes > _MOST_BYTES:
            await asyncio.wait([*self._waiting], return_when=asyncio.FIRST_COMPLETED)

    def _begin(
        self,
        request: pb.StreamRequest,
        named: set[int | str],
        before: Sequence[asyncio.Task[None]],
        loading: Callable[[], None],
    ) -> asyncio.Task[None]:
        size = request.ByteSize()

        async def answer() -> None:
            if before:
                await asyncio.wait(before)
            await self._answer(request, loading)

        def ended(task: asyncio.Task[None]) -> None:
            del self._waiting[task]
            self._bytes -= size

        task = asyncio.create_task(answer(), name="stream-apart")
        self._waiting[task] = named
        self._bytes += size
        task.add_done_callback(ended)
        return task


def _nothing() -> None:
    pass


def _named(request: pb.StreamRequest) -> set[int | str]:
    """The handles that a frame is about, as far as they can be read, and the ids that it opens."""
    frame = getattr(request, request.WhichOneof("request") or "ack")
    named: set[int | str] = set(np.frombuffer(frame.handles[: len(frame.handles) // 4 * 4], "<u4").tolist())
    return named | set(request.open.ids)
