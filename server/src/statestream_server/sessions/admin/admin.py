"""Sessions beside their steps: open, describe, list, flush, delete, fork, snapshot, restore."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Ints, Positions
from statestream_server.engine import digests
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import Table
from statestream_server.registry import Registry
from statestream_server.sessions import records
from statestream_server.sessions.admin import snapshots
from statestream_server.sessions.admin.descriptions import Description, of_record, of_row
from statestream_server.sessions.admin.snapshots import Snapshot
from statestream_server.sessions.checkpointer import Checkpointer
from statestream_server.sessions.lease import Lease
from statestream_server.sessions.ownership.claims import Claims
from statestream_server.sessions.ownership.deletions import Deletions
from statestream_server.sessions.ownership.openings import Start, newer_record, pinned
from statestream_server.sessions.ownership.sessions import Sessions
from statestream_server.stores.base import NEWER, Key, Mode, Record, Store

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


class Admin:
    """Reads sessions out and makes sessions of what was read."""

    def __init__(
        self,
        registry: Registry,
        sessions: Sessions,
        claims: Claims,
        deletions: Deletions,
        engine: Engine,
        store: Store,
        checkpointer: Checkpointer,
        lease: Lease,
        writer: bytes,
        *,
        most_answer: int,
        alone: bool,
        unix: Callable[[float], float],
    ) -> None:
        """Sessions made here are claimed as `writer`.

        `most_answer` is how many bytes a snapshot may have that is sent, `alone` says that no living process shares
        this one's address, `unix` what Unix time it was at a time of the rows' clock.
        """
        self._most_answer = most_answer
        self._registry = registry
        self._sessions = sessions
        self._claims = claims
        self._deletions = deletions
        self._engine = engine
        self._store = store
        self._checkpointer = checkpointer
        self._lease = lease
        self._writer = writer
        self._alone = alone
        self._unix = unix

    async def describe(self, key: Key) -> Description:
        """A session as it is now; one that another server has is described as it is stored.

        Raises:
            ModelNotFound, SessionNotFound, StoreUnavailable: It cannot be found.
        """
        where = self._sessions.find(key)
        if where is not None:
            return of_row(*where, self._unix)
        return of_record(await self._record(key))

    async def open(
        self,
        key: Key,
        version: int,
        mode: Mode,
        *,
        upgrade: bool = False,
        initial_states: Sequence[Array | None] | None = None,
    ) -> tuple[Description, bool]:
        """Opens a session for callers without a stream; what it is then, and whether it was made.

        Of `initial_states` see `Opening`.

        Raises:
            StatestreamError: It is not to be had; see `Sessions.open`.
        """
        opened = await self._sessions.open_one(
            key, version, mode, self._writer, upgrade=upgrade, initial_states=initial_states
        )
        return await self.describe(key), bool(opened.created[0])

    async def flush(self, key: Key) -> int:
        """Makes a session durable; the durable position.

        Raises:
            NotOwner: Another server has it.
            ModelNotFound, SessionNotFound, StoreUnavailable: It cannot be found or written.
        """
        where = await self._resident(key)
        if where is None:
            return (await self._stored(key)).position
        table, rows = where[0], np.asarray([where[1]])
        claims = table.claims(rows)
        await self._sessions.undisputed(table, rows)
        await self._engine.settled(table, rows)
        await self._checkpointer.flush(table, rows)
        if table.are_claimed(rows, claims).all():
            return int(table.durable[where[1]])
        return (await self._stored(key)).position

    async def delete(self, key: Key) -> None:
        """Deletes a session; one that is only stored needs no row for it, and no model that can read it.

        Raises:
            NotOwner: Another server has it.
            SessionMoved: It was claimed anew meanwhile, and stays.
            ModelNotFound, SessionNotFound: Nothing was deleted.
            StoreUnavailable: What was deleted is not known.
        """
        where = await self._resident(key)
        if where is not None:
            gone = bool((await self._deletions.delete(where[0], np.asarray([where[1]]))).all())
        else:
            record = await self._stored(key)
            gone = await self._deletions.delete_stored(key, record.epoch, record.incarnation)
        if not gone:
            raise errors.SessionMoved(
                f"a newer writer opened session {key.id!r} before it was deleted, and it stays; delete it again if you"
                " mean the session as it is now"
            )

    async def page(self, tenant: str, model: str, after: tuple[str, str], limit: int) -> list[Description]:
        """A tenant's sessions above `after`, by model and id, at most `limit`; model "" for all.

        Raises:
            ModelNotFound, StoreUnavailable: Nothing can be listed.
        """
        if model:
            self._registry.get(model)
        found = []
        for record in await self._store.list(tenant, model, after, limit):
            try:
                where = self._sessions.find(record.key)
            except errors.ModelNotFound:
                where = None
            found.append(of_row(*where, self._unix) if where is not None else of_record(record))
        return found

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

    async def fork(self, key: Key, fork: str, *, ephemeral: bool = False, epoch: int = 0) -> Description:
        """Copies a session at its present position; returns when the copy is durable.

        With an epoch it must have all that was answered under that one.

        Raises:
            SessionMoved: It has not.
            SessionExists: The id is taken, by something else than this very fork.
            NotOwner: Another server has the session.
            SessionNotFound, ModelNotFound, TooManySessions, StoreUnavailable: Nothing was copied.
        """
        # A process that was stopped and finds the store gone may have a row from before the session moved. What it
        # answers then is undone at most; a copy of it would stay.
        read = await self.read(key, epoch, sure=True)
        copy, origin = key._replace(id=fork), _origin(key.id, read.position)
        try:
            return await self._make(read, copy, Mode.CREATE, origin, ephemeral=ephemeral)
        except errors.SessionExists:
            if await self._is_fork(copy, read.position, origin):
                return await self.describe(copy)
            raise

    async def _is_fork(self, fork: Key, position: int, origin: int) -> bool:
        """Whether a session is a certain fork that nobody stepped yet: then the answer that told of it was lost."""
        where = self._sessions.find(fork)
        if where is not None:
            table, row = where
            return (int(table.position[row]), int(table.request[row])) == (position, origin)
        record = await self._record(fork)
        if record.blob is None:
            return False
        header = records.read_header(record.blob, what=f"session {fork.id!r}")
        return (record.position, header.request) == (position, origin)

    async def snapshot(self, key: Key, epoch: int = 0) -> tuple[bytes, int]:
        """A session as a safetensors file, and its position; the epoch is as for `fork`.

        Raises:
            SessionMoved: It has not all that was answered under the epoch.
            NotOwner: Another server has it.
            AnswerTooLarge: It has more bytes than the server sends.
            SessionNotFound, ModelNotFound, StoreUnavailable: It cannot be read.
        """
        table, values, _, position, origin, cursor = await self.read(key, epoch)
        snapshot = Snapshot(key.model, table.model.digest, position, values, origin, cursor)
        data = snapshots.dumps(snapshot, table.rows.columns)
        if len(data) > self._most_answer:
            raise errors.AnswerTooLarge(
                f"the snapshot has {len(data):,} bytes; this server sends {self._most_answer:,} at most: raise"
                " --max-answer-bytes",
                metadata={"size": str(len(data)), "limit": str(self._most_answer)},
            )
        return data, position

    async def restore(self, key: Key, data: bytes, version: int = 0, *, upgrade: bool = False) -> Description:
        """Makes a session of a snapshot; an existing one is replaced. Returns when it is durable.

        Without a version it is made in the one whose digest the snapshot names, with `upgrade` in the default one.

        Raises:
            SnapshotInvalid: The snapshot is damaged.
            ModelChanged: It is of another model.
            ModelNotFound, TooManySessions, StoreUnavailable: Nothing was made.
        """
        digest = snapshots.read_metadata(data)["digest"]
        tables = self._registry.tables(key.model) if not (version or upgrade) else ()
        match = next((t for t in tables if t.model.digest == digest), None)
        table = match or await self._sessions.table(key.model, version)
        snapshot = snapshots.loads(data, table.rows.columns, table.model.digest, moving=upgrade)
        read = Copy(table, list(snapshot.values), 0, snapshot.position, snapshot.origin, snapshot.cursor)
        return await self._make(read, key, Mode.REPLACE)

    async def _make(
        self, read: Copy, key: Key, mode: Mode, request: int = 0, *, ephemeral: bool = False
    ) -> Description:
        """Claims a session and writes its state, which is one write: there is never one without the other."""
        start = Start(
            [value[None] for value in read.values],
            _one(read.position),
            _one(request),
            _one(read.origin),
            [read.cursor] if read.cursor else (),
        )
        version = read.table.model.version
        await self._sessions.open_one(key, version, mode, self._writer, ephemeral=ephemeral, start=start)
        return await self.describe(key)

    async def _read_out(self, key: Key, *, sure: bool) -> Copy:
        where = await self._resident(key, sure=sure)
        if where is not None:
            table, rows = where[0], np.asarray([where[1]])
            await self._engine.settled(table, rows)
            async with self._engine.still():
                if table.rows_of(key.tenant).get(key.id) == where[1]:
                    return _of(table, where[1], [array[0] for array in table.rows.read(rows)])
        record = await self._stored(key)
        served = await self._registry.load(key.model, record.version)
        if served.table is None:
            raise errors.ModelChanged(f"version {record.version} of {key.model!r} has no memory now")
        if record.blob is None:
            return Copy(served.table, await self._claims.start(served.table), record.epoch, 0)
        stored = records.decode(self._checkpointer.layout(served.table), record.blob, what=f"session {key.id!r}")
        return Copy(served.table, list(stored.values), record.epoch, record.position, stored.origin, stored.cursor)

    async def _resident(self, key: Key, *, sure: bool = False) -> tuple[Table, int] | None:
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

    async def _stored(self, key: Key) -> Record:
        """The record of a session that is not in memory here; it is the truth if no other server has it."""
        record = await self._record(key)
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

    async def _record(self, key: Key) -> Record:
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


def _one(number: int) -> Positions:
    return np.asarray([number], np.uint64)


def _origin(session: str, position: int) -> int:
    """What a fork keeps of where it comes from, until a step with a request id takes its place."""
    return digests.of_text(f"fork\0{session}\0{position}")
