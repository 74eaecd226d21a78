"""Flush frames: what a stream asks to have saved, beside the frames that come meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from statestream.contract import errors
from statestream.v1 import inference_pb2 as pb
from statestream_server.arrays import Array, Positions
from statestream_server.edges.grpc import wire
from statestream_server.edges.grpc.bindings import Bindings
from statestream_server.edges.grpc.handles import UNKNOWN, read_handles, unknown_places
from statestream_server.edges.grpc.outbox import Outbox
from statestream_server.server import Server
from statestream_server.sessions.admission.accounts import Account

_BYTES = 64 << 10
"""What a flush counts as while it is under way, beside its handles: the frames that wait behind the store are few."""


class FlushFrames:
    """The flush frames of one stream."""

    def __init__(
        self,
        server: Server,
        bindings: Bindings,
        outbox: Outbox,
        account: Account,
        refuse: Callable[[int, Exception], None],
    ) -> None:
        """No flush is under way; `refuse` answers a frame of which nothing was saved."""
        self._server = server
        self._bindings = bindings
        self._outbox = outbox
        self._account = account
        self._refuse = refuse
        self._tasks: set[asyncio.Task[None]] = set()

    async def settled(self) -> None:
        """Returns when those under way now are answered."""
        await asyncio.gather(*self._tasks)

    def cancel(self) -> None:
        """Drops those under way."""
        for task in self._tasks:
            task.cancel()

    def take(self, frame: int, request: pb.FlushFrame) -> None:
        """Begins a flush.

        Raises:
            BadFrame: The frame cannot be read.
        """
        handles = read_handles(request.handles)
        size = _BYTES + len(request.handles)
        task = asyncio.create_task(self._flush_aside(frame, handles), name="stream-flush")
        self._tasks.add(task)
        self._account.take(size)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._account.give(size)

        task.add_done_callback(ended)

    async def _flush_aside(self, frame: int, handles: Array) -> None:
        try:
            self._outbox.put(pb.StreamResponse(frame=frame, durable=await self._flushed(handles)))
        except Exception as error:
            self._refuse(frame, error)

    async def _flushed(self, handles: Array) -> pb.DurableFrame:
        done = list[tuple[Array, Positions]]()
        await self._bindings.wake(handles)
        groups = self._bindings.handles.resolve(handles)
        failures = wire.row_errors(handles[unknown_places(groups, len(handles))], UNKNOWN)
        for table, rows, places in groups:
            try:
                await self._server.engine.settled(table, rows)
                await self._server.checkpointer.flush(table, rows)
                done.append((handles[places], table.durable[rows]))
            except errors.StatestreamError as error:
                failures.extend(wire.row_errors(handles[places], error))
        return pb.DurableFrame(
            handles=b"".join(part.astype("<u4").tobytes() for part, _ in done),
            durable_positions=b"".join(positions.astype("<u8").tobytes() for _, positions in done),
            errors=failures,
        )
