"""Open frames: what a stream's frames that open sessions ask for, and how they are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from statestream.contract import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1.tensor_pb2 import RowError
from statestream_server import caller
from statestream_server.arrays import Array
from statestream_server.edges.grpc import answers, wire
from statestream_server.edges.grpc.bindings import Bindings
from statestream_server.edges.grpc.failures import told
from statestream_server.edges.grpc.handles import OVERTAKEN, check_distinct
from statestream_server.edges.grpc.outbox import Outbox
from statestream_server.engine.replies import Kept
from statestream_server.server import Server
from statestream_server.sessions.ownership.openings import Opened, Opening, check_ids
from statestream_server.settings import Durability

_OPENED = 4096
"""Sessions in one part of a frame."""


class OpenFrames:
    """The open frames of one stream."""

    def __init__(self, server: Server, bindings: Bindings, outbox: Outbox) -> None:
        """Frames that bind handles by `bindings`, answered through `outbox`."""
        self._server = server
        self._bindings = bindings
        self._handles = bindings.handles
        self._outbox = outbox

    async def take(self, frame: int, request: pb.OpenFrame) -> None:
        """Opens a frame's sessions, two parts at a time where they are many: others have their turns between them.

        Raises:
            StatestreamError: Nothing of it was opened.
        """
        opening = await self._opening(request)
        count = len(opening.ids)
        # Where memory is short, those that are open already make room for the next.
        most = max(1, min(_OPENED, self._server.settings.limits.max_sessions // 2))
        if count <= max(most, _OPENED // 2):
            await self._open_some(frame, opening)
            return
        check_ids(opening.ids)
        parts = (
            opening.some(range(first, min(first + most, count)), opening.version) for first in range(0, count, most)
        )
        drawn = await self._open_some(frame, next(parts))  # Where nothing can be opened, the frame is refused as one.

        async def others() -> None:
            for part in parts:
                await asyncio.sleep(0)
                await self._open_part(frame, part)

        if opening.replies:
            # They keep their sessions in memory until they are read: the next may need that room.
            for part in parts:
                for each in drawn:
                    await each.wait()
                drawn = await self._open_part(frame, part)
            return

        # While one is installed here, the store decides on the next.
        async with asyncio.TaskGroup() as group:
            group.create_task(others(), name="stream-open")
            await asyncio.sleep(0)
            group.create_task(others(), name="stream-open")

    async def _open_part(self, frame: int, part: Opening) -> list[asyncio.Event]:
        """Opens a part of a frame; whatever is wrong with it is told of its sessions and of no others."""
        try:
            return await self._open_some(frame, part)
        except Exception as error:
            failures = wire.row_errors(np.asarray(part.handles), told(error, "on this frame"))
            self._outbox.put(pb.StreamResponse(frame=frame, opened=pb.OpenedFrame(errors=failures)))
            return []

    async def _open_some(self, frame: int, opening: Opening) -> list[asyncio.Event]:
        """Opens sessions; what it gives is set when their kept replies were drawn."""
        drawn = list[asyncio.Event]()
        self._server.turns.note(len(opening.ids))
        opened, refused = await self._server.sessions.open(opening)
        handles = np.asarray(opening.handles)
        failures = [wire.row_error(int(handles[place]), 0, error) for place, error in refused.items()]
        for whole in opened:
            if not opening.replays or opening.replies:
                whole = await self._saved(opening, whole, failures)
            whole = await self._awake(opening, whole, failures)
            # While the others were opened, somebody may have claimed some of these again.
            mine = whole.table.binding[whole.rows] == whole.bindings
            failures += wire.row_errors(handles[whole.places[~mine]], OVERTAKEN)
            part = whole.some(mine)
            called = handles[part.places]
            self._bindings.bind(called, part)
            message = self._opened(called, part, failures)
            # Nobody but this stream can step them or acknowledge: these are the replies that there were with the claim.
            rounds = part.table.replies.kept(part.rows) if opening.replies else []
            if rounds:
                message.kept = _counts(rounds, len(part.rows))
            self._outbox.put(pb.StreamResponse(frame=frame, opened=message))
            if rounds:
                drawn.append(asyncio.Event())
                source = answers.repeated(frame, part.table, called, part.rows, rounds)
                self._outbox.put_from(_telling(source, drawn[-1]))
            failures = []
        if failures or not opened:
            self._outbox.put(pb.StreamResponse(frame=frame, opened=pb.OpenedFrame(errors=failures)))
        return drawn

    async def _saved(self, opening: Opening, opened: Opened, failures: list[RowError]) -> Opened:
        """Sessions that are durable where they stand: who opens them cannot send again what another caller sent.

        One that is too large for a record is open as it is; but a reply that no record has does not leave in mode sync.
        """
        table, rows = opened.table, opened.rows
        behind = np.flatnonzero(table.durable[rows] < table.position[rows])
        if not len(behind):
            return opened
        refused = await self._server.checkpointer.flush_each(table, rows[behind])
        holds = opening.replies and self._server.settings.durability == Durability.SYNC
        good = np.ones(len(rows), np.bool_)
        for place, error in refused.items():
            if holds or not isinstance(error, errors.RecordTooLarge):
                good[behind[place]] = False
                failures += wire.row_errors(np.asarray(opening.handles)[opened.places[behind[[place]]]], error)
        if not good.all():
            gone = rows[~good]
            self._server.sessions.detach(table, gone[table.binding[gone] == opened.bindings[~good]])
        return opened.some(good)

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
                await self._bindings.wake(called)
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
        mode, states = wire.open_mode(request.mode), None
        # Here, once for all parts of the frame.
        fresh = self._server.sessions.fresh(
            request.model, request.version, request.alias, mode, upgrade=request.upgrade
        )
        if request.initial_states:
            table = await self._server.sessions.table(request.model, request.version, request.alias)
            states = wire.initial_states(table, request.initial_states, count)
        return Opening(
            caller.current.get().tenant,
            request.model,
            request.version,
            list(request.ids),
            mode,
            request.writer,
            request.incarnation,
            wire.optional_column(request.seen_epochs, "<u8", count, "seen_epochs"),
            wire.optional_column(request.replay_positions, "<u8", count, "replay_positions"),
            wire.optional_column(request.acked_positions, "<u8", count, "acked_positions"),
            request.ephemeral,
            states,
            self._bindings.number,
            handles,
            request.upgrade,
            request.return_replies,
            replays=bool(request.replay_positions),
            fresh=fresh,
        )

    def _opened(self, handles: Array, part: Opened, failures: list[RowError]) -> pb.OpenedFrame:
        table, rows = part.table, part.rows
        origins = table.origin[rows]
        return pb.OpenedFrame(
            origins=origins.astype("<u8").tobytes() if origins.any() else b"",
            cursors=table.cursors_of(rows),
            version=table.model.version,
            handles=handles.astype("<u4").tobytes(),
            epochs=table.epoch[rows].astype("<u8").tobytes(),
            positions=table.position[rows].astype("<u8").tobytes(),
            durable_positions=table.durable[rows].astype("<u8").tobytes(),
            created=part.created.astype(np.uint8).tobytes(),
            durability=wire.durability(self._server.settings),
            window_bytes=self._server.settings.limits.max_window_bytes,
            kept_window_bytes=self._server.settings.limits.max_kept_bytes,
            errors=failures,
        )


def _telling(source: Iterator[pb.StreamResponse], drawn: asyncio.Event) -> Iterator[pb.StreamResponse]:
    yield from source
    drawn.set()


def _counts(rounds: Sequence[Kept], count: int) -> bytes:
    """The column that says how many replies are kept of each of `count` sessions."""
    counts = np.zeros(count, np.uint32)
    for kept in rounds:
        counts[kept.places] += 1
    return counts.astype("<u4").tobytes()
