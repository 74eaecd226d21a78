"""One connected stream: frames in, frames out. The rules of chunks and sessions live in the middle.

Frames are handled in the order they come, but for those that wait, and what names the same sessions (parked.py). A
frame that cannot be read is answered by `refused` and changes nothing. The reader waits for no frame. It stops where
too much is under way (accounts.py), and while what it said is not read, so that what waits stays bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from google.protobuf import duration_pb2

from statestream.contract import errors
from statestream.v1 import inference_pb2 as pb
from statestream_server.arrays import Array, Ints, Positions
from statestream_server.edges.grpc import wire
from statestream_server.edges.grpc.bindings import Bindings
from statestream_server.edges.grpc.caps import Caps
from statestream_server.edges.grpc.chunk_frames import ChunkFrames
from statestream_server.edges.grpc.closings import Closings
from statestream_server.edges.grpc.decoding import Unreadable, decoder
from statestream_server.edges.grpc.failures import Context, begin, told
from statestream_server.edges.grpc.handles import read_handles
from statestream_server.edges.grpc.open_frames import OpenFrames
from statestream_server.edges.grpc.outbox import Outbox
from statestream_server.edges.grpc.parked import Parked
from statestream_server.edges.grpc.predict_frames import PredictFrames
from statestream_server.edges.grpc.readers import Reading
from statestream_server.edges.grpc.singles import Singles
from statestream_server.engine.table import Table
from statestream_server.refusals import recent
from statestream_server.server import Server
from statestream_server.sessions.ownership.streams import Sleeper

if TYPE_CHECKING:
    from statestream_server.tracing import Tracing

_decode: Callable[[bytes], Any] = decoder(pb.StreamRequest)


class Stream:
    """A stream's handles, its reader and its writer."""

    def __init__(self, server: Server, context: Context, reading: Reading, caps: Caps) -> None:
        """A stream without sessions; `reading` is told how its reader gets on, `caps` is what a frame may have."""
        self.ended = asyncio.Event()
        """Set when the stream is over."""
        self._server, self._tracing = server, server.tracing
        self._context = context
        self._caps = caps
        self._number = server.streams.join(self)
        self._accounts = server.accounts
        self._account = self._accounts.open()
        """What is under way; the stream is read as long as that is not too much."""
        self._outbox = Outbox(context, reading, self._account, server.turns)
        self._bindings = Bindings(server, self._number, self._outbox)
        self._handles = self._bindings.handles
        self._singles = Singles(server, self._handles, self._outbox, self._account)
        self._chunks = ChunkFrames(server, self._bindings, self._outbox, self._account, self._singles.window)
        self._opens = OpenFrames(server, self._bindings, self._outbox)
        self._closings = Closings(server, self._bindings, self._outbox, self._account, self._refuse)
        self._predictions = PredictFrames(server, self._outbox, self._account)
        self._last_frame = 0
        self._parked = Parked(self._answer_now, self._answer, self._account)

    async def serve(self) -> None:
        """Reads until the client half-closes, then answers what is left; however it ends, nothing is left of it."""
        try:
            await begin(self._context)
            await self._read()
        finally:
            # Nothing is awaited here: a call may be cancelled twice.
            self._parked.cancel()
            self._closings.cancel()
            self._predictions.cancel()
            self._server.streams.leave(self._number, self._server.checkpointer.tables())
            self.ended.set()

    async def _read(self) -> None:
        writer = asyncio.create_task(self._outbox.write(), name="stream-writer")
        try:
            take = self._take if self._tracing is None else self._traced(self._tracing)
            while await feed(self._context, take):
                if self._outbox.full:
                    await self._outbox.room()
                if self._accounts.held > self._accounts.most:
                    await self._account.room()
            await self._parked.settled()
            await self._predictions.settled()
            self._server.coalescer.empty()
            for rows in self._open_rows():
                await self._server.engine.settled(*rows)
            await self._closings.settled()
            await self._server.checkpointer.released()
            self._outbox.end()
            await writer
        finally:
            # Whoever ends the call now finds nothing of it that writes.
            writer.cancel()
            await asyncio.wait([writer])
            if not writer.cancelled():
                writer.exception()  # A write failed because the client is gone; reading tells.

    @property
    def handles(self) -> int:
        """How many handles stand for a session."""
        return len(self._handles)

    # What the middle tells the stream.

    def sleepers(self) -> list[Sleeper]:
        """Sessions that left memory and are its own."""
        return [*self._handles.asleep.values()]

    def lost(self, handle: int, error: errors.StatestreamError) -> None:
        """A session left the stream."""
        self._bindings.lost(handle, error)

    def sleeper(self, handle: int) -> Sleeper | None:
        """What sleeps under a handle."""
        return self._handles.asleep.get(handle)

    def asleep(self, handle: int, sleeper: Sleeper) -> None:
        """A session left memory; its next use brings it back."""
        self._handles.sleep(handle, sleeper)

    def unloaded(self, table: Table) -> None:
        """A version of a model is gone; its memory must not wait for this stream to end."""
        self._handles.forget(table)
        self._singles.forget(table)

    def durable(self, handles: Array, positions: Positions) -> None:
        """Positions became durable."""
        frame = pb.DurableFrame(
            handles=handles.astype("<u4").tobytes(), durable_positions=positions.astype("<u8").tobytes()
        )
        self._outbox.put(pb.StreamResponse(durable=frame))

    def move(self, handles: Array, *, sleepers: bool) -> None:
        """Sessions are to be taken elsewhere."""
        if sleepers and self._handles.asleep:
            handles = np.concatenate([handles, np.fromiter(self._handles.asleep, np.uint32)])
        self._outbox.put(pb.StreamResponse(move=pb.MoveFrame(handles=handles.astype("<u4").tobytes())))

    def leave(self, grace: float) -> None:
        """The server is about to leave."""
        duration = duration_pb2.Duration()
        duration.FromNanoseconds(int(grace * 1e9))
        self._outbox.put(pb.StreamResponse(go_away=pb.GoAwayFrame(grace=duration)))

    # The reader.

    def _take(self, data: bytes) -> bool:
        """Handles a frame; whether the next may come: False where there is too much, then wait."""
        if not self._parked.waiting and (frame := self._singles.take(data, self._last_frame)):
            self._last_frame = frame
        else:
            self._take_decoded(_decode(data), data)
        return not self._outbox.full and self._accounts.held <= self._accounts.most

    def _take_decoded(self, request: pb.StreamRequest | Unreadable, data: bytes) -> None:
        if isinstance(request, Unreadable):
            self._refuse(request.frame, request.error)
        elif not self._parked.waiting and self._singles.take_decoded(request, data, self._last_frame):
            self._last_frame = request.frame
        else:
            self._handle(request)

    def _traced(self, tracing: Tracing) -> Callable[[Any], bool]:
        """Handles frames, each of which has a span under that of the stream."""
        stream = tracing.current()

        def take(data: bytes) -> bool:
            request = _decode(data)
            kind = "unreadable" if isinstance(request, Unreadable) else request.WhichOneof("request") or "empty"
            with tracing.frame(request.frame, kind, stream):
                self._take_decoded(request, data)
            return not self._outbox.full and self._accounts.held <= self._accounts.most

        return take

    def _handle(self, request: pb.StreamRequest) -> None:
        kind = request.WhichOneof("request")
        if request.frame <= self._last_frame and kind != "part":
            self._refuse(
                request.frame,
                errors.BadFrame(
                    f"frame {request.frame} came after frame {self._last_frame}; numbers must rise, from 1",
                    metadata={"field": "frame"},
                ),
            )
            return
        self._last_frame = max(request.frame, self._last_frame)
        try:
            self._caps.check_frame(request)
            if kind == "predict":
                self._predictions.take(request.frame, request.predict)
                return
            if kind == "part":
                self._predictions.part(request.frame, request.part)
                return
        except Exception as error:
            self._refuse(request.frame, error)
            return
        if kind == "ack" and self._parked.waiting and self._acked(request):
            return
        self._parked.take(request)

    def _waits(self, request: pb.StreamRequest) -> bool:
        """Whether a frame names sessions that sleep, or that somebody is about to claim."""
        asleep = self._handles.asleep
        if not asleep and not self._server.sessions.turns:
            return False
        frame = getattr(request, request.WhichOneof("request") or "ack")
        handles = np.frombuffer(frame.handles[: len(frame.handles) // 4 * 4], "<u4")
        if asleep and not asleep.keys().isdisjoint(handles.tolist()):
            return True
        return any(table.claiming[rows].any() for table, rows, _ in self._handles.resolve(handles))

    def _answer_now(self, request: pb.StreamRequest) -> bool:
        """Answers a frame; False where that would have to wait: then nothing of it is done."""
        if self._waits(request):
            return False
        try:
            kind = request.WhichOneof("request")
            self._server.coalescer.empty()
            if kind == "chunk":
                return self._chunks.take_now(request.frame, request.chunk)
            if kind == "ack":
                self._acknowledge(*self._acks(request.ack))
            elif kind == "flush":
                self._closings.begin(request.frame, request.flush)
            else:
                raise errors.BadFrame(
                    "the frame is empty; expected open, chunk, ack, close, flush or predict",
                    metadata={"field": "request"},
                )
        except Exception as error:
            self._refuse(request.frame, error)
        return True

    async def _answer(self, request: pb.StreamRequest) -> None:
        """Answers a frame, beside the reader."""
        try:
            kind = request.WhichOneof("request")
            self._server.coalescer.empty()
            if kind == "chunk":
                await self._chunks.take(request.frame, request.chunk)
            elif kind == "open":
                await self._opens.take(request.frame, request.open)
            elif kind == "ack":
                handles, acked = self._acks(request.ack)
                await self._bindings.wake(handles)
                self._acknowledge(handles, acked)
            elif kind == "close":
                await self._closings.close(request.frame, request.close, self._number)
            else:
                self._closings.begin(request.frame, request.flush)
        except Exception as error:
            self._refuse(request.frame, error)

    def _refuse(self, frame: int, error: Exception) -> None:
        said = told(error, "on this frame", {"request": f"frame {frame}"})
        recent.note(said)
        status = errors.to_status(said)
        self._outbox.put(pb.StreamResponse(frame=frame, refused=pb.RefusedFrame(status=status)))

    def _acked(self, request: pb.StreamRequest) -> bool:
        """Frees replies at once although other frames wait; whether none of the sessions sleeps, or is being claimed.

        The frames that wait may wait for the very room that this makes, and what was answered is no affair of theirs.
        """
        try:
            handles, acked = self._acks(request.ack)
        except errors.BadFrame as error:
            self._refuse(request.frame, error)
            return True
        for table, rows, places in self._handles.resolve(handles):
            still = ~table.claiming[rows]
            self._server.intake.acknowledge(table, rows[still], acked[places[still]])
        return not self._waits(request)

    @staticmethod
    def _acks(request: pb.AckFrame) -> tuple[Array, Positions]:
        handles = read_handles(request.handles)
        return handles, wire.column(request.acked_positions, "<u8", len(handles), "acked_positions")

    def _acknowledge(self, handles: Array, acked: Positions) -> None:
        for table, rows, places in self._handles.resolve(handles):
            self._server.intake.acknowledge(table, rows, acked[places])

    def _open_rows(self) -> list[tuple[Table, Ints]]:
        return [(table, np.flatnonzero(table.owner == self._number)) for table in self._handles.tables]


async def feed(context: Context, take: Callable[[Any], bool]) -> bool:
    """Has `take` handle the messages of a call as they come, until it says that it wants no more for now.

    An edge that can has it handle each where it arrives, without a task that wakes for it.

    Returns:
        Whether more may come: False once the client has half-closed.
    """
    if (fed := getattr(context, "feed", None)) is not None:
        return bool(await fed(take))
    while (message := await context.read()) is not grpc.aio.EOF:
        if not take(message):
            return True
    return False
