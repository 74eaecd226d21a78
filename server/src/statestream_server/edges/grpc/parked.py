"""Frames of one stream that wait for the store, a version, a claim or a chunk, and those that must wait behind them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np

from statestream.v1 import inference_pb2 as pb
from statestream_server.sessions.admission.accounts import Account

_ASIDE = ("open", "close")
"""What is always answered beside the reader: it asks the store."""
FRAME_BYTES = 4096
"""What a frame that waits has beside its bytes: a message, a task."""
NAME_BYTES = 128
"""What each handle and id has that such frames name."""

Answer = Callable[[pb.StreamRequest], Awaitable[None]]
"""Answers a frame, whatever it has to wait for."""


@dataclass(eq=False, slots=True)
class _Line:
    """Frames that wait one behind the other, because each names what one before it names."""

    last: asyncio.Task[None] | None = None
    names: list[int | str] = field(default_factory=list)


class Parked:
    """Keeps the order of each session while the stream goes on with others: its reader waits for no frame.

    A frame that names a handle, or opens an id, of a frame that still waits, waits behind it, all of it; what names one
    of its own then waits behind both, since handles may stand for ids that only those before name. Everything else
    passes by. What waits is under way: it counts in the stream's account, which bounds it.
    """

    def __init__(self, answer_now: Callable[[pb.StreamRequest], bool], answer: Answer, account: Account) -> None:
        """Nothing waits; `answer_now` answers a frame, or tells that this has to wait, and changes nothing."""
        self.waiting: set[asyncio.Task[None]] = set()
        """The frames that wait."""
        self._answer_now = answer_now
        self._answer = answer
        self._account = account
        self._lines: dict[int | str, _Line] = {}
        """By every name that a frame has which waits."""

    def take(self, request: pb.StreamRequest) -> None:
        """Answers a frame, or has it wait."""
        named, lines = set[int | str](), set[_Line]()
        if self.waiting:
            named = _named(request)
            lines = {self._lines[name] for name in named & self._lines.keys()}
        if lines or request.WhichOneof("request") in _ASIDE or not self._answer_now(request):
            self._begin(request, named or _named(request), lines)

    async def settled(self) -> None:
        """Returns when nothing waits any more."""
        while self.waiting:
            await asyncio.wait([*self.waiting])

    def cancel(self) -> None:
        """Drops everything that waits."""
        for task in self.waiting:
            task.cancel()

    def _begin(self, request: pb.StreamRequest, named: set[int | str], lines: set[_Line]) -> None:
        before = [line.last for line in lines if line.last is not None]
        line = self._joined(named, lines)
        size = request.ByteSize() + FRAME_BYTES
        self._account.take(size)

        async def answer() -> None:
            if before:
                await asyncio.wait(before)
            await self._answer(request)

        def ended(task: asyncio.Task[None]) -> None:
            self.waiting.discard(task)
            self._account.give(size)
            if line.last is task:  # Those before it have ended, too.
                for name in line.names:
                    del self._lines[name]
                self._account.give(NAME_BYTES * len(line.names))

        task = line.last = asyncio.create_task(answer(), name="stream-parked")
        self.waiting.add(task)
        task.add_done_callback(ended)

    def _joined(self, named: set[int | str], lines: set[_Line]) -> _Line:
        """One line of several, the longest, with more names."""
        line = max(lines, key=lambda line: len(line.names), default=None) or _Line()
        for other in lines - {line}:
            line.names += other.names
            self._lines.update(dict.fromkeys(other.names, line))
            other.names = []
        new = named - self._lines.keys()
        line.names += new
        self._lines.update(dict.fromkeys(new, line))
        self._account.take(NAME_BYTES * len(new))
        return line


def _named(request: pb.StreamRequest) -> set[int | str]:
    """The handles that a frame is about, as far as they can be read, and the ids that it opens."""
    frame = getattr(request, request.WhichOneof("request") or "ack")
    named: set[int | str] = set(np.frombuffer(frame.handles[: len(frame.handles) // 4 * 4], "<u4").tolist())
    return named | set(request.open.ids)
