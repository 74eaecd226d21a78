"""One connected stream: frames in, frames out. The rules of chunks and sessions live in the middle.

Frames are handled in the order they come, but for those that wait, and what names the same sessions (apart.py). A
frame that cannot be read is answered by `refused` and changes nothing. While a reader is slow, its stream is not read
either, so what waits for it stays bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import grpc
import numpy as np
from google.protobuf import duration_pb2

from statestream.contract import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1.tensor_pb2 import RowError
from statestream_server.arrays import Array, Ints, Positions
from statestream_server.edges.grpc import answers, wire
from statestream_server.edges.grpc.apart import Apart
from statestream_server.edges.grpc.caps import Caps
from statestream_server.edges.grpc.chunk_frames import ChunkFrames
from statestream_server.edges.grpc.decoding import Unreadable
from statestream_server.edges.grpc.failures import Context, told
from statestream_server.edges.grpc.handles import (
    UNKNOWN,
    Handles,
    check_distinct,
    read_handles,
    unknown_places,
)
from statestream_server.edges.grpc.outbox import Outbox
from statestream_server.edges.grpc.readers import Reading
from statestream_server.engine.replies import Kept
from statestream_server.engine.table import Table
from statestream_server.server import Server
from statestream_server.sessions.ownership.openings import Opened, Opening, check_ids, check_initial_states
from statestream_server.sessions.ownership.peers import Sleeper
from statestream_server.settings import Durability

_OPENED = 4096
"""Sessions of one frame that are opened at a time."""
_FLUSH_BYTES = 64 << 10
"""What a flush counts as while it is under way, beside its handles: the frames that wait behind the store are few."""

_OVERTAKEN: Final = errors.SessionMoved(
    "a newer writer opened the session meanwhile; open it again only if you mean to take it back"
)


class Stream:
    """A stream's handles, its reader and its writer."""

    def __init__(self, server: Server, context: Context, reading: Reading, caps: Caps) -> None:
        """A stream without sessions; `reading` is told how its reader gets on, `caps` is what a frame may have."""
        self.ended = asyncio.Event()
        """Set when the stream is over."""
        self._server = server
        self._context = context
        self._caps = caps
        self._number = server.peers.join(self)
        self._handles = Handles()
        self._account = server.accounts.open()
        """What is under way; the stream is read as long as that is not too much."""
        self._outbox = Outbox(context, reading, self._account, server.turns)
        self._chunks = ChunkFrames(server, self._handles, self._outbox, self._account, self._wake)
        self._last_frame = 0
        self._flushes: set[asyncio.Task[None]] = set()
        self._apart = Apart(self._answer, self._waits)

    async def serve(self) -> None:
        """Reads until the client half-closes, then answers what is left."""
        # By itself: an error that meets the first message on its way would send it once more.
        await self._context.send_initial_metadata(())
        writer = asyncio.create_task(self._outbox.write(), name="stream-writer")
        try:
            while (request := await self._context.read()) is not grpc.aio.EOF:
                if isinstance(request, Unreadable):
                    self._refuse(request.frame, request.error)
                elif self._apart or not self._take_single(request):
                    await self._handle(request)
                if self._outbox.is_behind:
                    await self._outbox.room()
                if self._account.is_over:
                    await self._account.room()
            await self._apart.settled()
            self._server.tray.empty()
            for rows in self._open_rows():
                await self._server.engine.settled(*rows)
            await asyncio.gather(*self._flushes)
            await self._server.saver.released()
            self._outbox.end()
            await writer
        finally:
            # Whoever ends the call now finds nothing of it that writes.
            writer.cancel()
            await asyncio.wait([writer])
            if not writer.cancelled():
                writer.exception()  # A write failed because the client is gone; reading tells.
            self._apart.cancel()
            for task in self._flushes:
                task.cancel()
            self._server.peers.leave(self._number, self._server.saver.tables())
            self.ended.set()

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
        self._handles.free(np.asarray([handle]))
        self._outbox.notice(wire.row_error(handle, 0, error))

    def sleeper(self, handle: int) -> Sleeper | None:
        """What sleeps under a handle."""
        return self._handles.asleep.get(handle)

    def asleep(self, handle: int, sleeper: Sleeper) -> None:
        """A session left memory; its next use brings it back."""
        self._handles.sleep(handle, sleeper)

    def unloaded(self, table: Table) -> None:
        """A version of a model is gone; its memory must not wait for this stream to end."""
        self._handles.forget(table)
        self._chunks.forget(table)

    def durable(self, handles: Array, positions: Positions) -> None:
        """Positions became durable."""
        frame = pb.DurableFrame(
            handles=handles.astype("<u4").tobytes(), durable_positions=positions.astype("<u8").tobytes()
        )
        self._outbox.put(pb.StreamResponse(durable=frame))

    def leave(self, grace: float) -> None:
        """The server is about to leave."""
        duration = duration_pb2.Duration()
        duration.FromNanoseconds(int(grace * 1e9))
        self._outbox.put(pb.StreamResponse(go_away=pb.GoAwayFrame(grace=duration)))

    # The reader.

    def _take_single(self, request: pb.StreamRequest) -> bool:
        """Takes the frame that comes most often, a single chunk in order, without a coroutine of its own."""
        frame = request.frame
        if frame <= self._last_frame or not request.HasField("chunk"):
            return False
        taken = self._chunks.take_single(frame, request.chunk)
        if taken:
            self._last_frame = frame
        return taken

    async def _handle(self, request: pb.StreamRequest) -> None:
        if request.frame <= self._last_frame:
            self._refuse(
                request.frame,
                errors.BadFrame(
                    f"frame {request.frame} came after frame {self._last_frame}; numbers must rise, from 1",
                    metadata={"field": "frame"},
                ),
            )
            return
        self._last_frame = request.frame
        try:
            self._caps.check_frame(request)
        except errors.StatestreamError as error:
            self._refuse(request.frame, error)
            return
        await self._apart.take(request)

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

    async def _answer(self, request: pb.StreamRequest) -> None:
        """Answers a frame."""
        try:
            kind = request.WhichOneof("request")
            self._server.tray.empty()
            if kind == "chunk":
                await self._chunks.take(request.frame, request.chunk)
            elif kind == "open":
                await self._open(request.frame, request.open)
            elif kind == "ack":
                await self._ack(request.ack)
            elif kind == "close":
                await self._close(request.frame, request.close)
            elif kind == "flush":
                self._flush(request.frame, request.flush)
            else:
                raise errors.BadFrame(
                    "the frame is empty; expected open, chunk, ack, close or flush", metadata={"field": "request"}
                )
        except Exception as error:
            self._refuse(request.frame, error)

    def _refuse(self, frame: int, error: Exception) -> None:
        status = errors.to_status(told(error, "on this frame"))
        self._outbox.put(pb.StreamResponse(frame=frame, refused=pb.RefusedFrame(status=status)))

    async def _open(self, frame: int, request: pb.OpenFrame) -> None:
        """Opens a frame's sessions, a slice at a time, so that others have their turns between two of them."""
        opening = await self._opening(request)
        count = len(opening.ids)
        if count <= _OPENED:
            await self._open_some(frame, opening)
            return
        check_ids(opening.ids)
        slices = (
            opening.some(range(first, min(first + _OPENED, count)), opening.version)
            for first in range(0, count, _OPENED)
        )
        await self._open_some(frame, next(slices))  # Where nothing can be opened, the frame is refused as one.

        async def others() -> None:
            for some in slices:
                await asyncio.sleep(0)
                try:
                    await self._open_some(frame, some)
                except errors.StatestreamError as error:
                    failures = wire.row_errors(np.asarray(some.handles), error)
                    self._outbox.put(pb.StreamResponse(frame=frame, opened=pb.OpenedFrame(errors=failures)))

        # While one is installed here, the store decides on the next.
        async with asyncio.TaskGroup() as group:
            group.create_task(others(), name="stream-open")
            await asyncio.sleep(0)
            group.create_task(others(), name="stream-open")

    async def _open_some(self, frame: int, opening: Opening) -> None:
        self._server.turns.note(len(opening.ids))
        opened, refused = await self._server.sessions.open(opening)
        handles = np.asarray(opening.handles)
        failures = [wire.row_error(int(handles[place]), 0, error) for place, error in refused.items()]
        for whole in opened:
            if opening.replies and self._server.settings.durability == Durability.SYNC:
                # Replies of steps that no record has yet do not leave: the claim before this one waited for it, too.
                try:
                    await self._server.saver.flush(whole.table, whole.rows)
                except errors.StatestreamError as error:
                    failures += wire.row_errors(handles[whole.places], error)
                    self._server.sessions.detach(
                        whole.table, whole.rows[whole.table.binding[whole.rows] == whole.bindings]
                    )
                    continue
            whole = await self._awake(opening, whole, failures)
            # While the others were opened, somebody may have claimed some of these again.
            mine = whole.table.binding[whole.rows] == whole.bindings
            failures += wire.row_errors(handles[whole.places[~mine]], _OVERTAKEN)
            part = whole.some(mine)
            called = handles[part.places]
            self._bind(called, part)
            message = self._opened(called, part, failures)
            # Nobody but this stream can step them or acknowledge: these are the replies that there were with the claim.
            rounds = part.table.replies.kept(part.rows) if opening.replies else []
            if rounds:
                message.kept = _counts(rounds, len(part.rows))
            self._outbox.put(pb.StreamResponse(frame=frame, opened=message))
            if rounds:
                self._outbox.put_from(answers.repeated(frame, part.table, called, part.rows, rounds))
            failures = []
        if failures or not opened:
            self._outbox.put(pb.StreamResponse(frame=frame, opened=pb.OpenedFrame(errors=failures)))

    async def _awake(self, opening: Opening, opened: Opened, failures: list[RowError]) -> Opened:
        """Sessions that were opened, those in memory again that left it before their frame could be answered."""
        asleep = self._handles.asleep
        while True:
            handles = np.asarray(opening.handles)[opened.places]
            away = np.flatnonzero(opened.table.binding[opened.rows] != opened.bindings).tolist()
            sleeping = [
                place
                for place in away
                if (sleeper := asleep.get(int(handles[place]))) is not None
                and sleeper.key.id == opening.ids[int(opened.places[place])]
            ]
            if not sleeping:
                return opened
            called, still = handles[sleeping], np.ones(len(handles), np.bool_)
            try:
                await self._wake(called)
            except errors.StatestreamError as error:
                failures += wire.row_errors(called, error)
                self._handles.free(called)
                still[sleeping] = False
            rows, bindings = opened.rows.copy(), opened.bindings.copy()
            for table, found, places in self._handles.resolve(called):
                at = np.asarray(sleeping)[places]
                rows[at], bindings[at] = found, table.binding[found]
            opened = replace(opened, rows=rows, bindings=bindings).some(still)

    async def _opening(self, request: pb.OpenFrame) -> Opening:
        count = len(request.ids)
        handles = wire.column(request.handles, "<u4", count, "handles")
        check_distinct(handles)
        if len(request.writer) != 16:
            raise errors.BadFrame(f"writer has {len(request.writer)} bytes; expected 16", metadata={"field": "writer"})
        states = None
        if request.initial_states:
            table = await self._server.sessions.table(request.model, request.version)
            names = [spec.input for spec in table.model.signature.states]
            states = wire.named(request.initial_states, names, "initial_states")
            check_initial_states(table, states, count)
        return Opening(
            request.model,
            request.version,
            list(request.ids),
            wire.open_mode(request.mode),
            request.writer,
            request.incarnation,
            wire.optional_column(request.seen_epochs, "<u8", count, "seen_epochs"),
            wire.optional_column(request.replay_positions, "<u8", count, "replay_positions"),
            wire.optional_column(request.acked_positions, "<u8", count, "acked_positions"),
            request.ephemeral,
            states,
            self._number,
            handles,
            request.upgrade,
            request.return_replies,
        )

    def _bind(self, handles: Array, part: Opened) -> None:
        """Binds handles; what they stood for until now is let go without a word."""
        for table, rows, _ in self._handles.resolve(handles):
            self._server.sessions.detach(table, rows[(table is not part.table) | ~np.isin(rows, part.rows)])
        self._handles.bind(handles, part.table, part.rows, part.bindings)

    def _opened(self, handles: Array, part: Opened, failures: list[RowError]) -> pb.OpenedFrame:
        table, rows = part.table, part.rows
        return pb.OpenedFrame(
            version=table.model.version,
            handles=handles.astype("<u4").tobytes(),
            epochs=table.epoch[rows].astype("<u8").tobytes(),
            positions=table.position[rows].astype("<u8").tobytes(),
            durable_positions=table.durable[rows].astype("<u8").tobytes(),
            created=part.created.astype(np.uint8).tobytes(),
            durability=wire.durability(self._server.settings),
            window_bytes=self._server.settings.limits.max_stream_bytes,
            errors=failures,
        )

    async def _wake(self, handles: Array) -> None:
        """Brings back the sessions among `handles` that hibernate."""
        asleep = self._handles.asleep
        if not asleep:
            return
        models = {asleep[handle].key.model for handle in handles.tolist() if handle in asleep}
        for model in models:
            waking = [h for h in handles.tolist() if h in asleep and asleep[h].key.model == model]
            opened, refused = await self._server.waking.wake(
                [asleep[handle] for handle in waking],
                self._number,
                np.asarray(waking, np.uint32),
                keep=[(group.table, group.rows) for group in self._handles.resolve(handles)],
            )
            for part in opened:
                self._bind(np.asarray(waking)[part.places], part)
            for place, error in refused.items():
                self.lost(waking[place], error)

    async def _ack(self, request: pb.AckFrame) -> None:
        handles = read_handles(request.handles)
        acked = wire.column(request.acked_positions, "<u8", len(handles), "acked_positions")
        await self._wake(handles)
        for table, rows, places in self._handles.resolve(handles):
            self._server.intake.acknowledge(table, rows, acked[places])

    async def _close(self, frame: int, request: pb.CloseFrame) -> None:
        handles = read_handles(request.handles)
        await self._wake(handles)
        groups = self._handles.resolve(handles)
        unknown = handles[unknown_places(groups, len(handles))]
        self._server.turns.note(len(handles), errors=len(unknown))
        failures = wire.row_errors(unknown, UNKNOWN)
        for table, rows, places in groups:
            bindings = table.binding[rows]
            await self._server.engine.settled(table, rows)
            mine = table.binding[rows] == bindings
            rows, places = rows[mine], places[mine]
            if request.action == pb.CLOSE_ACTION_DELETE:
                gone = await self._server.deletions.delete(table, rows, asker=self._number)
                unknown = np.concatenate([unknown, handles[places[~gone]]])
                failures += wire.row_errors(handles[places[~gone]], _OVERTAKEN)
            else:
                self._server.sessions.detach(table, rows)
        await self._server.saver.released()
        self._handles.free(handles)
        closed = handles[~np.isin(handles, unknown)] if len(unknown) else handles
        self._outbox.settle()
        frame_closed = pb.ClosedFrame(handles=closed.astype("<u4").tobytes(), errors=failures)
        self._outbox.put(pb.StreamResponse(frame=frame, closed=frame_closed))

    def _flush(self, frame: int, request: pb.FlushFrame) -> None:
        handles = read_handles(request.handles)
        size = _FLUSH_BYTES + len(request.handles)
        task = asyncio.create_task(self._flush_aside(frame, handles), name="stream-flush")
        self._flushes.add(task)
        self._account.take(size)

        def ended(task: asyncio.Task[None]) -> None:
            self._flushes.discard(task)
            self._account.give(size)

        task.add_done_callback(ended)

    async def _flush_aside(self, frame: int, handles: Array) -> None:
        try:
            self._outbox.put(pb.StreamResponse(frame=frame, durable=await self._flushed(handles)))
        except Exception as error:
            self._refuse(frame, error)

    async def _flushed(self, handles: Array) -> pb.DurableFrame:
        done = list[tuple[Array, Positions]]()
        await self._wake(handles)
        groups = self._handles.resolve(handles)
        failures = wire.row_errors(handles[unknown_places(groups, len(handles))], UNKNOWN)
        for table, rows, places in groups:
            try:
                await self._server.engine.settled(table, rows)
                await self._server.saver.flush(table, rows)
                done.append((handles[places], table.durable[rows]))
            except errors.StatestreamError as error:
                failures.extend(wire.row_errors(handles[places], error))
        return pb.DurableFrame(
            handles=b"".join(part.astype("<u4").tobytes() for part, _ in done),
            durable_positions=b"".join(positions.astype("<u8").tobytes() for _, positions in done),
            errors=failures,
        )

    def _open_rows(self) -> list[tuple[Table, Ints]]:
        return [(table, np.flatnonzero(table.owner == self._number)) for table in self._handles.tables]


def _counts(rounds: Sequence[Kept], count: int) -> bytes:
    """The column that says how many replies are kept of each of `count` sessions."""
    counts = np.zeros(count, np.uint32)
    for kept in rounds:
        counts[kept.places] += 1
    return counts.astype("<u4").tobytes()
