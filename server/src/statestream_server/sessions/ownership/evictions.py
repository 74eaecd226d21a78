"""Evictions: rows whose sessions are another server's, or deleted, leave memory; the store is not touched."""

from __future__ import annotations

from statestream.contract import errors
from statestream_server.arrays import Ints
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import UNBOUND, Table
from statestream_server.sessions.ownership.streams import Streams
from statestream_server.sessions.ownership.tasks import Tasks


class Evictions:
    """Lets rows go, at once or after the batch that runs them."""

    def __init__(self, engine: Engine, streams: Streams, tasks: Tasks) -> None:
        """Nothing leaves."""
        self._engine = engine
        self._streams = streams
        self._tasks = tasks

    def drop(self, table: Table, rows: Ints, error: errors.StatestreamError) -> None:
        """Forgets rows whose sessions a newer owner has."""
        self.let_go(table, rows[table.epoch[rows] > 0], error)

    def let_go(self, table: Table, rows: Ints, error: errors.StatestreamError, asker: int = UNBOUND) -> None:
        """Releases rows; whoever has them, or chunks queued for them, hears why, but for the stream that asked."""
        table.epoch[rows] = 0  # From now on no reply of theirs leaves and nothing of them is saved.
        self._engine.cancel(table, rows.tolist(), error)
        self._streams.evict(table, rows, error, asker=asker)
        idle = table.lane.idle(rows)
        table.release(rows[idle])
        if not idle.all():
            self._tasks.begin(self._release_later(table, rows[~idle]))

    async def _release_later(self, table: Table, rows: Ints) -> None:
        """Releases rows once the batch that runs them is over; what they had queued is gone already."""
        serials = table.serial[rows].copy()
        await self._engine.settled(table, rows)
        # One that was opened here again meanwhile is in use.
        table.release(rows[(table.serial[rows] == serials) & (table.epoch[rows] == 0)])
