"""One connected stream: frames in, frames out. The rules of chunks and sessions live in the middle.

Frames are handled in the order they come. A frame that cannot be read is answered by `refused` and changes
nothing. While a reader is slow, its stream is not read either, so what waits for it stays bounded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

import grpc
import numpy as np
from google.protobuf import duration_pb2

from statestream import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1.tensor_pb2 import RowError
from statestream_server.arrays import Array, Ints, Positions, grown
from statestream_server.intake import Chunks
from statestream_server.openings import Opened, Opening, check_initial_states
from statestream_server.peers import Sleeper
from statestream_server.server import Server
from statestream_server.servicers import wire
from statestream_server.servicers.failures import Context
from statestream_server.table import Table

log = logging.getLogger(__name__)

MAX_HANDLE = 1 << 24
_OUTBOX_BYTES = 8 << 20
"""Bytes of answers that may wait for a slow reader before its stream is no longer read."""


class Stream:
    """A stream's handles, its reader and its writer."""

    def __init__(self, server: Server, context: Context) -> None:
        """A stream without sessions."""
        self.ended = asyncio.Event()
        """Set when the stream is over."""
        self._server = server
        self._context = context
        self._number = server.peers.join(self)
        self._tables: list[Table] = []
        self._table = np.empty(0, np.int32)
        self._row = np.empty(0, np.int64)
        self._binding = np.empty(0, np.int64)
        self._asleep: dict[int, Sleeper] = {}
        self._last_frame = 0
        self._outbox: asyncio.Queue[pb.StreamResponse | None] = asyncio.Queue()
        self._outbox_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._errors: dict[int, list[RowError]] = {}
        self._notices: list[RowError] = []
        self._flushes: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Reads until the client half-closes, then answers what is left."""
        writer = asyncio.create_task(self._write(), name="stream-writer")
        try:
            while (request := await self._context.read()) is not grpc.aio.EOF:
                await self._handle(request)
                await self._room.wait()
            for rows in self._open_rows():
                await self._server.engine.settled(*rows)
            await asyncio.gather(*self._flushes)
            await self._server.saver.released()
            self._send_errors()
            self._outbox.put_nowait(None)
            await writer
        finally:
            writer.cancel()
            for task in self._flushes:
                task.cancel()
            self._server.peers.leave(self._number, self._tables)
            self.ended.set()

    # What the middle tells the stream.

    def lost(self, handle: int, error: errors.StatestreamError) -> None:
        """A session left the stream."""
        self._table[handle] = -1
        self._notices.append(wire.row_error(handle, 0, error))
        self._soon()

    def asleep(self, handle: int, sleeper: Sleeper) -> None:
        """A session left memory; its next use brings it back."""
        self._table[handle] = -1
        self._asleep[handle] = sleeper

    def durable(self, handles: Array, positions: Positions) -> None:
        """Positions became durable."""
        frame = pb.DurableFrame(
            handles=handles.astype("<u4").tobytes(), durable_positions=positions.astype("<u8").tobytes()
        )
        self._send(pb.StreamResponse(durable=frame))

    def leave(self, grace: float) -> None:
        """The server is about to leave."""
        duration = duration_pb2.Duration()
        duration.FromNanoseconds(int(grace * 1e9))
        self._send(pb.StreamResponse(go_away=pb.GoAwayFrame(grace=duration)))

    def result(
        self,
        frame: int,
        table: Table,
        handles: Array,
        rows: Ints,
        starts: Positions,
        steps: Ints,
        outputs: Sequence[Array],
    ) -> None:
        """Chunks of a frame were applied."""
        uniform = bool((steps == steps[0]).all())
        message = pb.ResultFrame(
            handles=handles.astype("<u4").tobytes(),
            positions=starts.astype("<u8").tobytes(),
            steps=int(steps[0]) if uniform else 0,
            lengths=b"" if uniform else steps.astype("<u4").tobytes(),
            durable_positions=table.durable[rows].astype("<u8").tobytes(),
            outputs=wire.tensors(table.model.signature.outputs, outputs),
        )
        self._send(pb.StreamResponse(frame=frame, result=message))

    def refused(self, frame: int, handle: int, start: int, error: errors.StatestreamError) -> None:
        """A chunk of a frame was not applied."""
        self._errors.setdefault(frame, []).append(wire.row_error(handle, start, error))
        self._soon()

    # The writer.

    def _send(self, response: pb.StreamResponse) -> None:
        self._outbox_bytes += response.ByteSize()
        if self._outbox_bytes > _OUTBOX_BYTES:
            self._room.clear()
        self._outbox.put_nowait(response)

    async def _write(self) -> None:
        while (response := await self._outbox.get()) is not None:
            await self._context.write(response)
            self._outbox_bytes -= response.ByteSize()
            if self._outbox_bytes <= _OUTBOX_BYTES:
                self._room.set()

    def _soon(self) -> None:
        """Sends errors at the end of this turn of the loop, so that those of one frame share a message."""
        if len(self._notices) + sum(len(rows) for rows in self._errors.values()) == 1:
            asyncio.get_running_loop().call_soon(self._send_errors)

    def _send_errors(self) -> None:
        pending, self._errors = self._errors, {}
        for frame, rows in pending.items():
            self._send(pb.StreamResponse(frame=frame, result=pb.ResultFrame(errors=rows)))
        if self._notices:
            self._send(pb.StreamResponse(notice=pb.NoticeFrame(errors=self._notices)))
            self._notices = []

    # The reader.

    async def _handle(self, request: pb.StreamRequest) -> None:
        try:
            if request.frame <= self._last_frame:
                raise errors.BadFrame(
                    f"frame {request.frame} came after frame {self._last_frame}; numbers must rise, from 1",
                    metadata={"field": "frame"},
                )
            self._last_frame = request.frame
            kind = request.WhichOneof("request")
            if kind == "chunk":
                await self._chunk(request.frame, request.chunk)
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
        except errors.StatestreamError as error:
            self._refuse(request.frame, error)
        except Exception:
            log.exception("a frame failed in a way that was not expected")
            self._refuse(
                request.frame, errors.InternalError("the server failed on this frame; its log has the details")
            )

    def _refuse(self, frame: int, error: errors.StatestreamError) -> None:
        self._send(pb.StreamResponse(frame=frame, refused=pb.RefusedFrame(status=errors.to_status(error))))

    async def _open(self, frame: int, request: pb.OpenFrame) -> None:
        opening = self._opening(request)
        opened, refused = await self._server.sessions.open(opening)
        handles = np.asarray(opening.handles)
        failures = [wire.row_error(int(handles[place]), 0, error) for place, error in refused.items()]
        for part in opened:
            self._bind(handles[part.places], part)
            self._send(pb.StreamResponse(frame=frame, opened=self._opened(handles[part.places], part, failures)))
            failures = []
            if request.return_replies:
                self._return_replies(frame, handles[part.places], part)
        if failures or not opened:
            self._send(pb.StreamResponse(frame=frame, opened=pb.OpenedFrame(errors=failures)))

    def _opening(self, request: pb.OpenFrame) -> Opening:
        count = len(request.ids)
        handles = wire.column(request.handles, "<u4", count, "handles")
        if count and int(handles.max()) >= MAX_HANDLE:
            raise errors.BadFrame(
                f"handle {int(handles.max())} is too large; expected small dense numbers below {MAX_HANDLE}",
                metadata={"field": "handles"},
            )
        _check_distinct(handles)
        if len(request.writer) != 16:
            raise errors.BadFrame(f"writer has {len(request.writer)} bytes; expected 16", metadata={"field": "writer"})
        states = None
        if request.initial_states:
            table = self._server.sessions.table(request.model, request.version)
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
        )

    def _bind(self, handles: Array, part: Opened) -> None:
        most = int(handles.max()) + 1
        if most > len(self._row):
            capacity = max(most, 2 * len(self._row), 64)
            self._table = grown(self._table, capacity, -1)
            self._row = grown(self._row, capacity, 0)
            self._binding = grown(self._binding, capacity, 0)
        if part.table not in self._tables:
            self._tables.append(part.table)
        self._let_go(handles, part)
        self._table[handles] = self._tables.index(part.table)
        for handle in handles.tolist() if self._asleep else ():
            self._asleep.pop(handle, None)
        self._row[handles], self._binding[handles] = part.rows, part.bindings

    def _let_go(self, handles: Array, part: Opened) -> None:
        """Detaches the sessions that handles stood for until now: what becomes of them is no news to this stream."""
        for index in np.unique(self._table[handles][self._table[handles] >= 0]).tolist():
            table, mine = self._tables[index], handles[self._table[handles] == index]
            rows = self._row[mine]
            before = table.binding[rows] == self._binding[mine]
            self._server.sessions.detach(table, rows[before & ((table is not part.table) | ~np.isin(rows, part.rows))])

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
            errors=failures,
        )

    def _return_replies(self, frame: int, handles: Array, part: Opened) -> None:
        for handle, row in zip(handles.tolist(), part.rows.tolist(), strict=True):
            for reply in part.table.replies.replies(row):
                one = np.asarray([row])
                self.result(
                    frame,
                    part.table,
                    np.asarray([handle], np.uint32),
                    one,
                    np.asarray([reply.start], np.uint64),
                    np.asarray([reply.steps]),
                    reply.outputs,
                )

    async def _chunk(self, frame: int, request: pb.ChunkFrame) -> None:
        handles = _handles(request.handles)
        count = len(handles)
        if not count:
            raise errors.BadFrame("a chunk frame has no rows; expected one at least", metadata={"field": "handles"})
        starts = wire.column(request.positions, "<u8", count, "positions")
        acked = wire.optional_column(request.acked_positions, "<u8", count, "acked_positions")
        steps = self._steps(request, count)
        receiver = _Receiver(self, frame)
        await self._wake(handles)
        tables, rows = self._resolve(handles, starts, receiver)
        offsets, total = np.cumsum(steps) - steps, int(steps.sum())
        for index in np.unique(tables[tables >= 0]).tolist():
            table = self._tables[index]
            inputs = wire.packed_inputs(table.model.signature.inputs, request.inputs, total)
            places = np.flatnonzero(tables == index)
            if len(places) < count:
                taken = np.concatenate([np.arange(offsets[p], offsets[p] + steps[p]) for p in places])
                inputs = [array[taken] for array in inputs]
            chunks = Chunks(table, rows[places], handles[places], starts[places], acked[places], steps[places], inputs)
            racing = self._server.intake.racing(chunks)
            if len(racing):
                await self._server.engine.settled(table, racing)
            self._server.intake.accept(chunks, receiver)

    def _steps(self, request: pb.ChunkFrame, count: int) -> Ints:
        most = self._server.settings.limits.max_chunk_steps
        if request.lengths:
            steps = wire.column(request.lengths, "<u4", count, "lengths").astype(np.int64)
        else:
            steps = np.full(count, request.steps, np.int64)
        if count and (int(steps.min()) < 1 or int(steps.max()) > most):
            raise errors.BadFrame(
                f"a chunk has {int(steps.min()) or int(steps.max())} steps; expected 1 to {most}",
                metadata={"field": "lengths" if request.lengths else "steps"},
            )
        return steps

    async def _wake(self, handles: Array) -> None:
        """Brings back the sessions among `handles` that hibernate."""
        asleep = [handle for handle in handles.tolist() if handle in self._asleep] if self._asleep else []
        models = {self._asleep[handle].key.model for handle in asleep}
        for model in models:
            mine = [handle for handle in asleep if self._asleep[handle].key.model == model]
            sleepers = [self._asleep[handle] for handle in mine]
            opened, refused = await self._server.sessions.wake(sleepers, self._number, np.asarray(mine, np.uint32))
            for handle in mine:
                self._asleep.pop(handle, None)
            for part in opened:
                self._bind(np.asarray(mine)[part.places], part)
            for place, error in refused.items():
                self.lost(mine[place], error)

    def _resolve(self, handles: Array, starts: Positions, receiver: Refusals) -> tuple[Array, Ints]:
        """The table (its index, -1 for none) and the row of each handle; those without are answered here."""
        known = handles < len(self._row)
        safe = np.where(known, handles, 0)
        if not len(self._row):
            tables, rows = np.full(len(handles), -1), np.zeros(len(handles), np.int64)
        else:
            tables, rows = np.where(known, self._table[safe], -1), self._row[safe]
        for index, table in enumerate(self._tables):
            mine = np.flatnonzero(tables == index)
            stale = table.binding[rows[mine]] != self._binding[handles[mine]]
            tables[mine[stale]] = -1
        for place in np.flatnonzero(tables < 0).tolist():
            error = errors.SessionNotFound(
                f"handle {int(handles[place])} stands for no session on this stream; open it first"
            )
            receiver.refused(int(handles[place]), int(starts[place]) if len(starts) else 0, error)
        return tables, rows

    async def _ack(self, request: pb.AckFrame) -> None:
        handles = _handles(request.handles)
        acked = wire.column(request.acked_positions, "<u8", len(handles), "acked_positions")
        await self._wake(handles)
        for table, rows, places in self._by_table(handles):
            self._server.intake.acknowledge(table, rows, acked[places])

    async def _close(self, frame: int, request: pb.CloseFrame) -> None:
        handles, failures = _handles(request.handles), list[RowError]()
        await self._wake(handles)
        for table, rows, places in self._by_table(handles, failures):
            await self._server.engine.settled(table, rows)
            rows = rows[table.binding[rows] == self._binding[handles[places]]]
            self._table[handles[places]] = -1
            if request.action == pb.CLOSE_ACTION_DELETE:
                await self._server.sessions.delete(table, rows)
            else:
                self._server.sessions.detach(table, rows)
        await self._server.saver.released()
        known = handles[handles < len(self._table)]
        self._table[known] = -1
        refused = {row.handle for row in failures}
        closed = handles[[int(handle) not in refused for handle in handles]]
        self._send_errors()
        frame_closed = pb.ClosedFrame(handles=closed.astype("<u4").tobytes(), errors=failures)
        self._send(pb.StreamResponse(frame=frame, closed=frame_closed))

    def _flush(self, frame: int, request: pb.FlushFrame) -> None:
        task = asyncio.create_task(self._flushed(frame, _handles(request.handles)), name="stream-flush")
        self._flushes.add(task)
        task.add_done_callback(self._flushes.discard)

    async def _flushed(self, frame: int, handles: Array) -> None:
        failures, done = list[RowError](), list[tuple[Array, Positions]]()
        await self._wake(handles)
        for table, rows, places in self._by_table(handles, failures):
            try:
                await self._server.engine.settled(table, rows)
                await self._server.saver.flush(table, rows)
                done.append((handles[places], table.durable[rows]))
            except errors.StatestreamError as error:
                failures.extend(wire.row_error(int(handle), 0, error) for handle in handles[places])
        message = pb.DurableFrame(
            handles=b"".join(part.astype("<u4").tobytes() for part, _ in done),
            durable_positions=b"".join(positions.astype("<u8").tobytes() for _, positions in done),
            errors=failures,
        )
        self._send(pb.StreamResponse(frame=frame, durable=message))

    def _by_table(self, handles: Array, failures: list[RowError] | None = None) -> list[tuple[Table, Ints, Ints]]:
        """Handles as (table, rows, places in `handles`); unknown ones go to `failures`."""
        unknown = _Collector(failures if failures is not None else [])
        tables, rows = self._resolve(handles, np.zeros(len(handles), np.uint64), unknown)
        groups = []
        for index in np.unique(tables[tables >= 0]).tolist():
            places = np.flatnonzero(tables == index)
            groups.append((self._tables[index], rows[places], places))
        return groups

    def _open_rows(self) -> list[tuple[Table, Ints]]:
        return [(table, np.flatnonzero(table.owner == self._number)) for table in self._tables]


class Refusals(Protocol):
    """Who hears of handles that stand for nothing."""

    def refused(self, handle: int, start: int, error: errors.StatestreamError) -> None:
        """A row of a frame was not applied."""


class _Receiver:
    """Takes the replies to one frame."""

    def __init__(self, stream: Stream, frame: int) -> None:
        self._stream = stream
        self._frame = frame

    def results(
        self, table: Table, handles: Array, rows: Ints, starts: Positions, steps: Ints, outputs: Sequence[Array]
    ) -> None:
        self._stream.result(self._frame, table, handles, rows, starts, steps, outputs)

    def refused(self, handle: int, start: int, error: errors.StatestreamError) -> None:
        self._stream.refused(self._frame, handle, start, error)


class _Collector:
    """Takes refusals of frames that are answered as a whole."""

    def __init__(self, failures: list[RowError]) -> None:
        self._failures = failures

    def refused(self, handle: int, start: int, error: errors.StatestreamError) -> None:
        self._failures.append(wire.row_error(handle, start, error))


def _handles(data: bytes) -> Array:
    if len(data) % 4:
        raise errors.BadFrame(f"handles has {len(data)} bytes; expected a multiple of 4", metadata={"field": "handles"})
    handles = np.frombuffer(data, "<u4")
    _check_distinct(handles)
    return handles


def _check_distinct(handles: Array) -> None:
    if (
        len(handles) > 1
        and not (np.diff(handles.astype(np.int64)) > 0).all()
        and len(np.unique(handles)) < len(handles)
    ):
        raise errors.BadFrame("a handle comes twice in one frame; each may come once", metadata={"field": "handles"})
