"""What a stream says: a queue of messages, how much of it waits for a slow reader, errors gathered by frame."""

from __future__ import annotations

import asyncio
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator
from functools import partial
from time import monotonic
from typing import Any, Final, TypeAlias

import grpc

from statestream.contract import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1.tensor_pb2 import RowError
from statestream_server.arrays import Array, Positions
from statestream_server.edges.grpc import wire
from statestream_server.edges.grpc.failures import Context
from statestream_server.edges.grpc.readers import Reading
from statestream_server.lag import TurnLoad
from statestream_server.refusals import recent
from statestream_server.sessions.admission.accounts import Account, Window
from statestream_server.sessions.admission.chunks import Refusal

MOST_ERRORS = 512
"""Errors in one message."""
ERROR_BYTES = 320
"""About what an error has."""
_MOST_BYTES = 8 << 20
"""Bytes that may wait for a slow reader before its stream is no longer read."""

_IN_ORDER: Final = -1
"""In place of a size: a source that nothing overtakes."""

_Made: TypeAlias = Callable[[], pb.StreamResponse] | bytes
_Entry: TypeAlias = tuple[_Made | Iterator[pb.StreamResponse], int, Window | None, int]
"""What makes a message, or is one, or makes several; about how many bytes it has; the window and what counts of it."""


class Outbox:
    """The messages of one stream, in order; what there is more of comes from sources, as the reader takes it."""

    def __init__(self, context: Context, reading: Reading, account: Account, turns: TurnLoad) -> None:
        """Nothing waits; `reading` is told when a write begins and ends, `account` of the bytes that wait."""
        self.nbytes = 0
        """Bytes that wait. Those of large answers are views of what the reply window keeps."""
        self._context = context
        self._reading = reading
        self._account = account
        self._turns = turns
        self._messages: deque[_Entry] = deque()
        self._sources: deque[Iterator[pb.StreamResponse]] = deque()
        self._alternate = False
        self._more: asyncio.Future[None] | None = None
        self._pulls = False
        """Whether the edge draws by itself."""
        self._say: Callable[[bytes], bool] | None = None
        """Writes a message at once where the edge can, and says whether it did."""
        self._begun: tuple[Coroutine[Any, Any, object], asyncio.Future[object]] | None = None
        """A write that `put_bytes` began, and what it waits for, until the writer has seen to it."""
        self._drawn = 0
        """What the message counted that is being written."""
        self._ended = False
        self.full = False
        """Whether the reader is so far behind that its stream is not to be read on; then wait for `room`."""
        self._room = asyncio.Event()
        self._room.set()
        self._errors: list[tuple[int, Array, Positions, Refusal]] = []
        self._notices: list[RowError] = []

    async def write(self) -> None:
        """Writes messages until `end`. Where it is cancelled, what waits is dropped; gRPC ends the write under way."""
        pull = getattr(self._context, "pull", None)
        try:
            if pull is not None:
                self._pulls, self._say = True, getattr(self._context, "say", None)
                await pull(self.draw, self._reading)
                return
            write, reading = self._context.write, self._reading
            while (message := self.draw()) is not grpc.aio.EOF:
                if message is None:
                    self._more = asyncio.get_running_loop().create_future()
                    await self._more
                    if self._begun is not None:
                        await _rest(*self._begun)
                        self._begun = reading.since = None
                    continue
                reading.since = monotonic()
                await write(message)
                reading.since = None
        finally:
            self._ended, self._say = True, None
            if self._begun is not None:
                writing, waits = self._begun
                waits.cancel()  # What becomes of it is nobody's now.
                writing.close()
            left, self._messages = self._messages, deque()
            self._sources.clear()
            for _, _, window, cost in left:
                if cost:
                    self._account.give(cost, window)
            self._written(self.nbytes)

    async def room(self) -> None:
        """Returns when the reader is not far behind."""
        await self._room.wait()

    def put(self, message: pb.StreamResponse) -> None:
        """Sends a message."""
        self.put_later(lambda: message, message.ByteSize())

    def put_later(self, make: _Made, size: int, window: Window | None = None, cost: int = 0) -> None:
        """Sends a message of about so many bytes that is made when its turn has come, unless it is bytes already.

        An answer to chunks gives back the `cost` that they have had of their `window`, just before it is written: the
        client, who counts until it has it, may have sent the next ones by the time the write is over.
        """
        if self._ended:  # Nobody writes any more.
            if cost:
                self._account.give(cost, window)
            return
        if window is None and size:
            cost = size
            self._account.take(cost)
        self.nbytes += size
        if self.nbytes > _MOST_BYTES:
            self.full = True
            self._room.clear()
        self._messages.append((make, size, window, cost))
        # As in `_rouse`: this is each answer's way.
        if self._pulls:
            self._context.rouse()  # type: ignore[attr-defined]
        elif self._more is not None and not self._more.done():
            self._more.set_result(None)

    def put_bytes(self, message: bytes, window: Window, cost: int, *, alone: bool = False) -> None:
        """Sends an answer to chunks that is made already, at once where nothing waits and the edge can.

        One that is not the only answer of its moment (`alone`) costs less through the writer, where that is a task.
        """
        if (
            not self._messages
            and not self._sources
            and (self._say(message) if self._say is not None else alone and self._begin(message))
        ):
            self._account.give(cost, window)
        else:
            self.put_later(message, len(message), window, cost)

    def _begin(self, message: bytes) -> bool:
        """Begins to write, where the writer waits for something to write: not in the next turn of the loop only."""
        if self._more is None or self._more.done():
            return False
        writing = self._context.write(message)
        try:
            waits = writing.send(None)
        except StopIteration:
            return True
        except Exception:
            return False  # The call is over: the writer meets it, too.
        self._begun, self._reading.since = (writing, waits), monotonic()
        self._more.set_result(None)
        return True

    def put_from(self, source: Iterator[pb.StreamResponse]) -> None:
        """Sends the messages of a source, behind those that wait now; each is drawn when the one before it is written.

        What is sent meanwhile goes between them.
        """
        if not self._ended:
            self._messages.append((source, 0, None, 0))
            self._rouse()

    def put_behind(self, message: pb.StreamResponse) -> None:
        """Sends a message behind all that waits now, the last of every source too."""
        self.settle()
        self.put_from(iter((message,)))

    def put_in_order(self, source: Iterator[pb.StreamResponse]) -> None:
        """Sends the messages of a source, each drawn when its turn comes; what is sent later comes behind them all.

        For replies to chunks: whoever has the reply to a later chunk of a session acknowledges those before it, too.
        """
        if not self._ended:
            self._messages.append((source, _IN_ORDER, None, 0))
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
            for first in range(0, len(handles), MOST_ERRORS):
                cut = slice(first, first + MOST_ERRORS)
                make = partial(self._refusals, frame, handles[cut], starts[cut], why, first)
                self.put_later(make, ERROR_BYTES * len(handles[cut]))

    def _refusals(self, frame: int, handles: Array, starts: Positions, why: Refusal, first: int) -> pb.StreamResponse:
        """The frame that says why some chunks were not applied; the first of them is at place `first` for `why`."""
        self._turns.note(errors=len(handles))
        if isinstance(why, errors.StatestreamError):
            recent.note(why)
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
        """Lets `write` return once everything is written; nothing is sent any more."""
        self.settle()
        self._ended = True
        self._rouse()

    def draw(self) -> Any:
        """The bytes of the next message, when the one before it has been written.

        None while there is none, EOF after the last.
        """
        self.nbytes -= self._drawn
        self._drawn = 0
        if self.full:
            self._written(0)
        messages, sources = self._messages, self._sources
        while messages or sources:
            if sources and (self._alternate or not messages):
                self._alternate = False
                message = next(sources[0], None)
                if message is not None:
                    return message.SerializeToString()
                sources.popleft()
                continue
            made, size, window, cost = messages[0]
            if isinstance(made, bytes) or callable(made):
                messages.popleft()
                self._alternate = True
                if cost:
                    self._account.give(cost, window)
                self._drawn = size
                return made if isinstance(made, bytes) else made().SerializeToString()
            if size != _IN_ORDER:
                messages.popleft()
                sources.append(made)
                continue
            message = next(made, None)
            if message is not None:
                return message.SerializeToString()
            messages.popleft()
        return grpc.aio.EOF if self._ended else None

    def _written(self, nbytes: int) -> None:
        """Counts bytes that do not wait any more."""
        self.nbytes -= nbytes
        if self.full and self.nbytes <= _MOST_BYTES:
            self.full = False
            self._room.set()

    def _rouse(self) -> None:
        if self._pulls:
            self._context.rouse()  # type: ignore[attr-defined]
        elif self._more is not None and not self._more.done():
            self._more.set_result(None)

    def _soon(self) -> None:
        if not self._errors and not self._notices:
            asyncio.get_running_loop().call_soon(self.settle)


@types.coroutine
def _rest(coroutine: Coroutine[Any, Any, object], waits: Any) -> Generator[Any, Any, None]:
    """The rest of a coroutine that was begun and `waits`."""
    # As the client has it (aio/begun), of which a server imports the contract only.
    while True:
        try:
            try:
                sent = yield waits
            except BaseException as error:
                waits = coroutine.throw(error)
            else:
                waits = coroutine.send(sent)
        except StopIteration:
            return
