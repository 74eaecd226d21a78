"""Frames of one stream that wait for the store, a version or a claim, and the frames that must wait behind them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from statestream.v1 import inference_pb2 as pb

_MOST_BYTES = 1 << 20
"""Bytes of frames that may wait before the stream is no longer read."""
_ASIDE = ("open", "close")
"""What is always answered beside the reader: it asks the store."""

Answer = Callable[[pb.StreamRequest], Awaitable[None]]
"""Answers a frame."""


class Apart:
    """Keeps the order of each session while the stream goes on with others: its reader waits for no frame.

    A frame that names a handle, or opens an id, of a frame that still waits, waits behind it, all of it; what names one
    of its own then waits behind both. Everything else passes by.
    """

    def __init__(self, answer: Answer, waits: Callable[[pb.StreamRequest], bool]) -> None:
        """Nothing waits; `waits` tells whether the answer to a frame would have to."""
        self._answer = answer
        self._waits = waits
        self.waiting: dict[asyncio.Task[None], set[int | str]] = {}
        """The frames that wait, and what they name."""
        self._bytes = 0

    async def take(self, request: pb.StreamRequest) -> None:
        """Answers a frame, or has it wait; returns when the next one may come."""
        named, before = set[int | str](), list[asyncio.Task[None]]()
        if self.waiting:
            named = _named(request)
            before = [task for task, others in self.waiting.items() if not named.isdisjoint(others)]
            # Its handles may stand for ids, and ids for handles, that only those before it name.
            named = named.union(*map(self.waiting.__getitem__, before))
        if not before and request.WhichOneof("request") not in _ASIDE and not self._waits(request):
            await self._answer(request)
            return
        self._begin(request, named or _named(request), before)
        # One that is large by itself holds nobody up.
        while self._bytes > _MOST_BYTES and len(self.waiting) > 1:
            await asyncio.wait([*self.waiting], return_when=asyncio.FIRST_COMPLETED)

    async def settled(self) -> None:
        """Returns when nothing waits any more."""
        while self.waiting:
            await asyncio.wait([*self.waiting])

    def cancel(self) -> None:
        """Drops everything that waits."""
        for task in self.waiting:
            task.cancel()

    def _begin(self, request: pb.StreamRequest, named: set[int | str], before: Sequence[asyncio.Task[None]]) -> None:
        size = request.ByteSize()

        async def answer() -> None:
            if before:
                await asyncio.wait(before)
            await self._answer(request)

        def ended(task: asyncio.Task[None]) -> None:
            del self.waiting[task]
            self._bytes -= size

        task = asyncio.create_task(answer(), name="stream-apart")
        self.waiting[task] = named
        self._bytes += size
        task.add_done_callback(ended)


def _named(request: pb.StreamRequest) -> set[int | str]:
    """The handles that a frame is about, as far as they can be read, and the ids that it opens."""
    frame = getattr(request, request.WhichOneof("request") or "ack")
    named: set[int | str] = set(np.frombuffer(frame.handles[: len(frame.handles) // 4 * 4], "<u4").tolist())
    return named | set(request.open.ids)
