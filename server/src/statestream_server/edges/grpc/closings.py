"""Flush and close frames: what a stream asks to have saved, and what it lets go, beside the frames that come meanwhile.

Both name the position that they stand behind. A session that is elsewhere, because a chunk before it was refused,
stays as it is: POSITION_GAP, and the client asks again behind what it sends then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import numpy as np

from statestream.contract import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1.tensor_pb2 import RowError
from statestream_server.arrays import Array, Ints, Positions
from statestream_server.edges.grpc import wire
from statestream_server.edges.grpc.bindings import Bindings
from statestream_server.edges.grpc.handles import OVERTAKEN, UNKNOWN, read_handles, unknown_places
from statestream_server.edges.grpc.outbox import Outbox
from statestream_server.engine.table import Table
from statestream_server.server import Server
from statestream_server.sessions.admission.accounts import Account
from statestream_server.sessions.ownership.deletions import Deletions

_BYTES = 64 << 10
"""What a flush counts as while it is under way, beside its handles: the frames that wait behind the store are few."""
_KEEPS: Final = (errors.PositionGap, errors.StoreUnavailable, errors.Overloaded)
"""Refusals of a close that leave the session open, to be closed again."""


class Closings:
    """The flush and close frames of one stream."""

    def __init__(
        self,
        server: Server,
        bindings: Bindings,
        outbox: Outbox,
        account: Account,
        refuse: Callable[[int, Exception], None],
    ) -> None:
        """Nothing is under way; `refuse` answers a flush of which nothing was saved."""
        self._server = server
        self._bindings = bindings
        self._outbox = outbox
        self._account = account
        self._refuse = refuse
        self._tasks: set[asyncio.Task[None]] = set()

    async def settled(self) -> None:
        """Returns when the flushes under way now are answered."""
        await asyncio.gather(*self._tasks)

    def cancel(self) -> None:
        """Drops those under way."""
        for task in self._tasks:
            task.cancel()

    def begin(self, frame: int, request: pb.FlushFrame) -> None:
        """Begins a flush; it is answered beside the frames that come meanwhile."""
        size = _BYTES + request.ByteSize()

        async def aside() -> None:
            try:
                await self._flush(frame, request)
            except Exception as error:
                self._refuse(frame, error)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._account.give(size)

        task = asyncio.create_task(aside(), name="stream-flush")
        self._tasks.add(task)
        self._account.take(size)
        task.add_done_callback(ended)

    async def _flush(self, frame: int, request: pb.FlushFrame) -> None:
        """Answers when its sessions are durable up to the positions that it names, or why they are not.

        Raises:
            BadFrame: The frame cannot be read.
            StoreUnavailable, TooManySessions: A session that slept could not be brought back; nothing was saved.
        """
        handles = read_handles(request.handles)
        ends = wire.column(request.positions, "<u8", len(handles), "positions") if request.positions else None
        await self._bindings.wake(handles)
        groups = self._bindings.handles.resolve(handles)
        failures = wire.row_errors(handles[unknown_places(groups, len(handles))], UNKNOWN)
        done = list[tuple[Array, Positions]]()
        for table, rows, places in groups:
            bindings = table.binding[rows]
            await self._server.engine.settled(table, rows)
            refused = await self._server.checkpointer.flush_each(table, rows)
            refused |= dict.fromkeys(np.flatnonzero(table.binding[rows] != bindings).tolist(), OVERTAKEN)
            refused = self._gaps(table, rows, None if ends is None else ends[places]) | refused
            good = _but(len(rows), refused)
            done.append((handles[places[good]], table.durable[rows[good]]))
            failures += [wire.row_error(int(handles[places[place]]), 0, error) for place, error in refused.items()]
        durable = pb.DurableFrame(
            handles=b"".join(part.astype("<u4").tobytes() for part, _ in done),
            durable_positions=b"".join(positions.astype("<u8").tobytes() for _, positions in done),
            errors=failures,
        )
        self._outbox.settle()  # Refusals that explain a gap come before it.
        self._outbox.put(pb.StreamResponse(frame=frame, durable=durable))

    async def close(self, frame: int, request: pb.CloseFrame, asker: int) -> None:
        """Lets sessions go, or deletes them, once the chunks sent before are applied; a detach once they are durable.

        Raises:
            BadFrame: The frame cannot be read, or there is no such action; all stay open.
            StoreUnavailable, TooManySessions: A session that slept could not be brought back; all stay open.
        """
        wire.check_enum(request.action, pb.CloseAction, "action")
        handles = read_handles(request.handles)
        count = len(handles)
        ends = wire.column(request.positions, "<u8", count, "positions") if request.positions else None
        epochs = wire.column(request.epochs, "<u8", count, "epochs") if request.epochs else None
        await self._bindings.wake(handles)
        groups = self._bindings.handles.resolve(handles)
        unknown = handles[unknown_places(groups, count)]
        self._server.turns.note(count, errors=len(unknown))
        failures: list[RowError] = wire.row_errors(unknown, UNKNOWN)
        failed, staying = [unknown], [handles[:0]]
        for table, rows, places in groups:
            bindings = table.binding[rows]
            await self._server.engine.settled(table, rows)
            refused = self._gaps(table, rows, None if ends is None else ends[places])
            if epochs is not None and request.action == pb.CLOSE_ACTION_DELETE:
                refused |= dict.fromkeys(np.flatnonzero(table.epoch[rows] > epochs[places]).tolist(), OVERTAKEN)
            refused |= dict.fromkeys(np.flatnonzero(table.binding[rows] != bindings).tolist(), OVERTAKEN)
            going = _but(len(rows), refused)
            if request.action == pb.CLOSE_ACTION_DELETE:
                ended = await _deleted(self._server.deletions, table, rows[going], asker)
            else:
                ended = await self._server.checkpointer.flush_each(table, rows[going])
                ended |= dict.fromkeys(
                    np.flatnonzero(table.binding[rows[going]] != bindings[going]).tolist(), OVERTAKEN
                )
                left = _but(len(going), {p: e for p, e in ended.items() if isinstance(e, _KEEPS) or e is OVERTAKEN})
                self._server.sessions.detach(table, rows[going[left]])
            refused |= {int(going[place]): error for place, error in ended.items()}
            named = {int(handles[places[place]]): error for place, error in refused.items()}
            failures += [wire.row_error(handle, 0, error) for handle, error in named.items()]
            failed.append(np.asarray([*named], handles.dtype))
            kept = [handle for handle, error in named.items() if isinstance(error, _KEEPS)]
            staying.append(np.asarray(kept, handles.dtype))
        await self._server.checkpointer.released()
        self._bindings.handles.free(handles[~np.isin(handles, np.concatenate(staying))])
        closed = handles[~np.isin(handles, np.concatenate(failed))] if failures else handles
        self._outbox.put_behind(
            pb.StreamResponse(
                frame=frame, closed=pb.ClosedFrame(handles=closed.astype("<u4").tobytes(), errors=failures)
            )
        )

    @staticmethod
    def _gaps(table: Table, rows: Ints, ends: Positions | None) -> dict[int, errors.StatestreamError]:
        """Sessions that do not stand where a frame says that they do, by their place."""
        if ends is None:
            return {}
        positions = table.position[rows]
        return {
            place: _gap(int(positions[place]), int(ends[place])) for place in np.flatnonzero(positions < ends).tolist()
        }


def _gap(position: int, end: int) -> errors.PositionGap:
    return errors.PositionGap(
        f"the session is at {position}, this frame stands behind {end}; a chunk before it was not applied. Ask again "
        "behind what is still to be sent",
        metadata={"expected_position": str(position)},
    )


async def _deleted(deletions: Deletions, table: Table, rows: Ints, asker: int) -> dict[int, errors.StatestreamError]:
    """Deletes sessions; why some of them are not deleted, by their place."""
    try:
        gone = await deletions.delete(table, rows, asker=asker)
    except errors.StoreUnavailable as error:
        return dict.fromkeys(range(len(rows)), error)
    return dict.fromkeys(np.flatnonzero(~gone).tolist(), OVERTAKEN)


def _but(count: int, places: dict[int, errors.StatestreamError]) -> Ints:
    """The places, of `count`, that are not among some."""
    if not places:
        return np.arange(count)
    mask = np.ones(count, np.bool_)
    mask[list(places)] = False
    return np.flatnonzero(mask)
