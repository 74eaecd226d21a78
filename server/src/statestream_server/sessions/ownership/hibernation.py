"""Hibernation: which rows leave memory, because it is short or nobody uses them; the store knows them as they are."""

from __future__ import annotations

import asyncio

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Ints
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import UNBOUND, Table
from statestream_server.sessions.checkpointer import Checkpointer
from statestream_server.sessions.ownership.streams import Streams
from statestream_server.settings import Durability


class Hibernation:
    """Takes rows back of sessions that the store has; their next use brings them in again."""

    def __init__(self, engine: Engine, checkpointer: Checkpointer, streams: Streams) -> None:
        """`checkpointer` knows what is saved, `engine` what has work to do, `streams` hear of what leaves."""
        self._engine = engine
        self._checkpointer = checkpointer
        self._streams = streams
        self._making_way: dict[int, asyncio.Task[None]] = {}

    def make_room(self, table: Table, new: int, *, keep: Ints) -> None:
        """Makes room for `new` sessions; those not used for longest go to the store.

        Args:
            table: The table.
            new: How many rows are wanted.
            keep: Rows that must stay, because the caller is about to use them.

        Raises:
            TooManySessions: Too few sessions can go: the store is behind of them, or they have work to do.
        """
        excess = table.sessions + table.promised + new - table.max_rows
        if excess <= 0:
            return
        rows = self.idle(table)
        rows = rows[~np.isin(rows, keep)]
        # A few more than needed, so that the next opening does not sort the table again.
        count = min(len(rows), excess + table.max_rows // 64)
        if count < excess:
            raise errors.TooManySessions(
                f"{new} more sessions of {table.model.name!r} would make {table.max_rows + excess}; the limit is"
                f" {table.max_rows} in memory and {len(rows)} can leave it now. Close some, try again after the next"
                " checkpoint, or raise --max-sessions",
                retry_after=1.0,
            )
        oldest = np.argpartition(table.used[rows], count - 1)[:count]
        self.hibernate(table, rows[oldest])

    def idle(self, table: Table) -> Ints:
        """Rows that the store knows as they are and that have nothing to do."""
        if self._checkpointer.mode == Durability.NONE or not table.sessions:
            return np.empty(0, np.int64)
        self._engine.take_in()
        rows = table.resident()
        clean = ~table.dirty[rows] & ~table.claiming[rows] & (table.durable[rows] == table.position[rows])
        clean &= ~np.isin(rows, self._checkpointer.needed(table)) & ~np.isin(rows, table.rows_returning())
        resting: Ints = rows[clean & table.lane.idle(rows)]
        return resting

    def hibernate(self, table: Table, rows: Ints) -> None:
        """Frees rows that are `idle`; their streams keep the handles and wake the sessions by using them."""
        table.counts.hibernated += len(rows)
        self._streams.hibernate(table, rows)
        table.release(rows)

    def make_way(self, table: Table) -> None:
        """Has sessions that nobody has leave memory, soon and with their replies, as far as the store knows them."""
        if id(table) not in self._making_way:
            task = asyncio.create_task(self._hibernate_detached(table), name="make-way")
            self._making_way[id(table)] = task
            task.add_done_callback(lambda _: self._making_way.pop(id(table)))

    async def _hibernate_detached(self, table: Table) -> None:
        rows = self.idle(table)
        alone = (table.owner[rows] == UNBOUND) & (table.position[rows] > table.acked[rows])
        self.hibernate(table, rows[alone & ~table.ephemeral[rows]])
