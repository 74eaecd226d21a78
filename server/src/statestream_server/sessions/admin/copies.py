"""Copies: sessions as they are read out, for a snapshot, a fork or a forecast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Ints
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import Table
from statestream_server.registry import Registry
from statestream_server.sessions import records
from statestream_server.sessions.checkpointer import Checkpointer
from statestream_server.sessions.lease import Lease
from statestream_server.sessions.ownership.claims import Claims
from statestream_server.sessions.ownership.openings import newer_record, pinned
from statestream_server.sessions.ownership.sessions import Sessions
from statestream_server.stores.base import NEWER, Key, Record, Store

_TOGETHER = 4096
"""Rows that are read in one turn of the loop."""


class Copy(NamedTuple):
    """A session as it was read out.

    Attributes:
        table: Its table.
        values: One array for every column, without the row axis.
        epoch: The claim under which it was.
        position: Steps and marks applied.
        origin: The position behind its last reset.
        cursor: The caller's, b"" for none.
    """

    table: Table
    values: list[Array]
    epoch: int
    position: int
    origin: int = 0
    cursor: bytes = b""


class Copies:
    """Reads sessions out: rows here, or records of those that are nowhere in memory."""

    def __init__(
        self,
        registry: Registry,
        sessions: Sessions,
        claims: Claims,
        engine: Engine,
        store: Store,
        checkpointer: Checkpointer,
        lease: Lease,
        *,
        alone: bool,
    ) -> None:
        """`alone` says that no living process shares this one's address."""
        self._registry = registry
        self._sessions = sessions
        self._claims = claims
        self._engine = engine
        self._store = store
        self._checkpointer = checkpointer
        self._lease = lease
        self._alone = alone

    async def read(self, key: Key, epoch: int = 0, *, version: int = 0, sure: bool = False) -> Copy:
        """A session as it stands once what it has queued has run.

        Args:
            key: Which.
            epoch: It must have all that was answered under this one; 0 for whatever it has.
            version: The one that it must be pinned to; 0 for any.
            sure: Whether the store must say that the row here is the session, or the row is the best that is known.

        Raises:
            SessionMoved: It has not all that was answered under the epoch.
            NotOwner: Another server has it.
            ModelChanged: It is of another version, or its version has no memory now.
            SessionNotFound, ModelNotFound, StoreUnavailable: It cannot be read.
        """
        read = await self._read_out(key, sure=sure)
        if version not in (0, read.table.model.version):
            raise pinned(key.id, read.table.model.version, version)
        await self._check_epoch(key, epoch, read.epoch)
        return read

    async def read_all(self, keys: Sequence[Key], epochs: Sequence[int], *, version: int = 0) -> list[Copy]:
        """Sessions of one model as they stand, all of one version: see `read`.

        Those that are rows here are read together, each between two of its chunks.

        Raises:
            ModelChanged: They are of several versions.
            StatestreamError: One cannot be read; see `read`.
        """
        found: dict[int, Copy] = {}
        for table, rows, places in self._here(keys):
            left = rows
            try:
                while left.size:
                    left = await self._lease.check(table, left)
            except errors.StoreUnavailable:
                pass  # The row is the best that is known.
            await self._engine.settled(table, rows)
            for low in range(0, len(rows), _TOGETHER):
                async with self._engine.still():
                    now = rows[low : low + _TOGETHER]
                    here = [table.key(row) == keys[place] for row, place in zip(now, places[low:], strict=False)]
                    values = table.rows.read(now)
                    for number, (row, place) in enumerate(zip(now.tolist(), places[low:], strict=False)):
                        if here[number]:
                            found[place] = _of(table, row, [array[number] for array in values])
        for place, (key, epoch) in enumerate(zip(keys, epochs, strict=True)):
            if place not in found:
                found[place] = await self.read(key, epoch, version=version)
                continue
            if version not in (0, found[place].table.model.version):
                raise pinned(key.id, found[place].table.model.version, version)
            await self._check_epoch(key, epoch, found[place].epoch)
        copies = [found[place] for place in range(len(keys))]
        versions = {copy.table.model.version for copy in copies}
        if len(versions) > 1:
            raise errors.ModelChanged(
                f"the sessions are of versions {', '.join(map(str, sorted(versions)))} of {keys[0].model!r}; expected"
                " one: ask for each, or move them to one with upgrade"
            )
        return copies

    def _here(self, keys: Sequence[Key]) -> list[tuple[Table, Ints, list[int]]]:
        """Of sessions that are rows here: their tables, the rows, and their places among the keys."""
        grouped: dict[int, tuple[Table, list[int], list[int]]] = {}
        for place, key in enumerate(keys):
            where = self._sessions.find(key)
            if where is not None:
                _, rows, places = grouped.setdefault(id(where[0]), (where[0], [], []))
                rows.append(where[1])
                places.append(place)
        return [(table, np.asarray(rows), places) for table, rows, places in grouped.values()]

    async def _check_epoch(self, key: Key, epoch: int, now: int) -> None:
        """Makes sure that a state under the epoch `now` has all that was answered under an earlier one; 0 is any."""
        if epoch in (0, now):
            return
        # A claim that goes on with the row before it, or with all that it had saved, leaves the fence where it was.
        (head,) = await self._store.heads([key])
        if head is None or not head.live or not head.fence <= epoch <= head.epoch:
            raise errors.SessionMoved(
                f"session {key.id!r} was opened under epoch {epoch} and has gone on since without all that was answered"
                f" then: it is at epoch {now}. Open it again to take it as it is",
                metadata={"epoch": str(now)},
            )

    async def _read_out(self, key: Key, *, sure: bool) -> Copy:
        where = await self.resident(key, sure=sure)
        if where is not None:
            table, rows = where[0], np.asarray([where[1]])
            await self._engine.settled(table, rows)
            async with self._engine.still():
                if table.rows_of(key.tenant).get(key.id) == where[1]:
                    return _of(table, where[1], [array[0] for array in table.rows.read(rows)])
        record = await self.stored(key)
        served = await self._registry.load(key.model, record.version)
        if served.table is None:
            raise errors.ModelChanged(f"version {record.version} of {key.model!r} has no memory now")
        if record.blob is None:
            return Copy(served.table, await self._claims.start(served.table), record.epoch, 0)
        stored = records.decode(self._checkpointer.layout(served.table), record.blob, what=f"session {key.id!r}")
        return Copy(served.table, list(stored.values), record.epoch, record.position, stored.origin, stored.cursor)

    async def resident(self, key: Key, *, sure: bool = False) -> tuple[Table, int] | None:
        """A session's row if it is here, and the store does not say that it moved.

        Raises:
            StoreUnavailable: The store says nothing, and it must be `sure`; else the row is the best that is known.
        """
        where = self._sessions.find(key)
        if where is not None:
            left = np.asarray([where[1]])
            try:
                while left.size:
                    left = await self._lease.check(where[0], left)
            except errors.StoreUnavailable:
                if sure:
                    raise
            where = self._sessions.find(key)
        return where

    async def stored(self, key: Key) -> Record:
        """The record of a session that is not in memory here; it is the truth if no other server has it.

        Raises:
            NotOwner: One has it.
            ModelNotFound, SessionNotFound, StoreUnavailable: It cannot be found.
        """
        record = await self.record(key)
        if record.owner in ("", self._lease.owner):
            return record
        address = await self._store.address_of(record.owner)
        # Two processes cannot listen on one port: who had ours before is dead, whatever its last beat says.
        if address is None or (self._alone and address == self._lease.address):
            return record
        raise errors.NotOwner(
            f"session {key.id!r} of model {key.model!r} is with the server at {address}; ask there, or open it here to"
            " move it",
            metadata={"owner": address},
        )

    async def record(self, key: Key) -> Record:
        """What is stored of a session, whoever has it.

        Raises:
            ModelNotFound, SessionNotFound, StoreUnavailable: Nothing can be read.
        """
        self._registry.get(key.model)
        (record,) = await self._store.load([key])
        if record is None:
            raise errors.SessionNotFound(f"no session {key.id!r} of model {key.model!r}")
        if record.epoch == NEWER:
            raise newer_record(key.model, key.id)
        return record


def _of(table: Table, row: int, values: list[Array]) -> Copy:
    """A session whose row was read just now."""
    origin, cursor = int(table.origin[row]), table.cursors.get(row, b"")
    return Copy(table, values, int(table.epoch[row]), int(table.position[row]), origin, cursor)
