"""What a stream says: a queue of messages, how much of it waits for a slow reader, errors gathered by frame."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from statestream import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1.tensor_pb2 import RowError
from statestream_server.arrays import Array, Positions
from statestream_server.lag import Turns
from statestream_server.servicers import wire
from statestream_server.servicers.failures import Context
from statestream_server.sessions.intake import Refusal

_MOST_ERRORS = 512
"""Errors in one message."""
_ERROR_BYTES = 320
"""About what an error has."""
_MOST_BYTES = 8 << 20
"""Bytes that may wait for a slow reader before its stream is no longer read."""


class Outbox:
    """The messages of one stream, in order."""

    def __init__(self, context: Context, turns: Turns) -> None:
        """Nothing waits."""
        self._context = context
        self._turns = turns
        self._messages: deque[tuple[Callable[[], pb.StreamResponse], int]] = deque()
        self._more: asyncio.Future[None] | None = None
        self._ended = False
        self._bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._errors: list[tuple[int, Array, Positions, Refusal]] = []
        self._notices: list[RowError] = []

    async def write(self) -> None:
        """Writes messages until `end`."""
        while True:
            while self._messages:
                make, size = self._messages.popleft()
                await self._context.write(make())
                self._bytes -= size
                if not self._room.is_set() and self._bytes <= _MOST_BYTES:
                    self._room.set()
            if self._ended:
                return
            self._more = asyncio.get_running_loop().create_future()
            await self._more

    @property
    def is_behind(self) -> bool:
        """Whether the reader is so far behind that its stream is not to be read on; then wait for `room`."""
        return self._bytes > _MOST_BYTES

    async def room(self) -> None:
        """Returns when the reader is not far behind."""
        await self._room.wait()

    def put(self, message: pb.StreamResponse) -> None:
        """Sends a message."""
        self.put_later(lambda: message, message.ByteSize())

    def put_later(self, make: Callable[[], pb.StreamResponse], size: int) -> None:
        """Sends a message of about so many bytes that is made when its turn has come."""
        self._bytes += size
        if self._bytes > _MOST_BYTES:
            self._room.clear()
        self._messages.append((make, size))
        self._rouse()

    def refuse(self, frame: int, handles: Array, starts: Positions, why: Refusal) -> None:
        """Sends why chunks were not applied, from the end of this turn of the loop on, in messages of bounded size.

        Each message is made when its turn has come, so that very many rows hold the loop up no longer than few.
        """
        self._soon()
        self._errors.append((frame, handles, starts, why))

    def notice(self, error: RowError) -> None:
        """Sends the notice of a session at the end of this turn of the loop, together with others."""
        self._soon()
        self._notices.append(error)

    def settle(self) -> None:
        """Sends what waits for the end of the turn."""
        # Notices first: they say why, where the error of a frame behind can only say that the handle is gone.
        notices, self._notices = self._notices, []
        if notices:
            self.put(pb.StreamResponse(notice=pb.NoticeFrame(errors=notices)))
        pending, self._errors = self._errors, []
        for frame, handles, starts, why in pending:
            for first in range(0, len(handles), _MOST_ERRORS):
                cut = slice(first, first + _MOST_ERRORS)
                make = partial(self._refusals, frame, handles[cut], starts[cut], why, first)
                self.put_later(make, _ERROR_BYTES * len(handles[cut]))

    def _refusals(self, frame: int, handles: Array, starts: Positions, why: Refusal, first: int) -> pb.StreamResponse:
        """The frame that says why some chunks were not applied; the first of them is at place `first` for `why`."""
        self._turns.note(errors=len(handles))
        if isinstance(why, errors.StatestreamError):
            status = errors.to_status(why)
            rows = [
                RowError(handle=handle, position=start, status=status)
                for handle, start in zip(handles.tolist(), starts.tolist(), strict=True)
            ]
        else:
            rows = [
                wire.row_error(handle, start, why(place))
                for place, (handle, start) in enumerate(zip(handles.tolist(), starts.tolist(), strict=True), first)
            ]
        return pb.StreamResponse(frame=frame, result=pb.ResultFrame(errors=rows))

    def end(self) -> None:
        """Lets `write` return once everything is written."""
        self.settle()
        self._ended = True
        self._rouse()

    def _rouse(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    def _soon(self) -> None:
        if not self._errors and not self._notices:
            asyncio.get_running_loop().call_soon(self.settle)
