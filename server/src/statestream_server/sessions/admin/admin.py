"""Sessions beside their steps: open, describe, list, flush, delete, fork, snapshot, restore."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from statestream.contract import errors
from statestream_server import caller
from statestream_server.access.tokens import ADMIN
from statestream_server.arrays import Array, Positions
from statestream_server.engine import digests
from statestream_server.engine.engine import Engine
from statestream_server.registry import Registry
from statestream_server.sessions import records
from statestream_server.sessions.admin import snapshots
from statestream_server.sessions.admin.copies import Copies, Copy
from statestream_server.sessions.admin.descriptions import Description, of_record, of_row
from statestream_server.sessions.admin.snapshots import Snapshot
from statestream_server.sessions.checkpointer import Checkpointer
from statestream_server.sessions.ownership.deletions import Deletions
from statestream_server.sessions.ownership.openings import Start
from statestream_server.sessions.ownership.sessions import Sessions
from statestream_server.stores.base import Key, Mode, Store


class Admin:
    """Does what callers ask of sessions beside their steps."""

    def __init__(
        self,
        registry: Registry,
        sessions: Sessions,
        copies: Copies,
        deletions: Deletions,
        engine: Engine,
        store: Store,
        checkpointer: Checkpointer,
        writer: bytes,
        *,
        most_answer: int,
        unix: Callable[[float], float],
    ) -> None:
        """Sessions made here are claimed as `writer`.

        `most_answer` is how many bytes a snapshot may have that is sent, `unix` says what Unix time it was at a time of
        the rows' clock.
        """
        self._most_answer = most_answer
        self._registry = registry
        self._sessions = sessions
        self._copies = copies
        self._deletions = deletions
        self._engine = engine
        self._store = store
        self._checkpointer = checkpointer
        self._writer = writer
        self._unix = unix

    async def describe(self, key: Key) -> Description:
        """A session as it is now; one that another server has is described as it is stored.

        Raises:
            ModelNotFound, SessionNotFound, StoreUnavailable: It cannot be found.
        """
        where = self._sessions.find(key)
        if where is not None:
            return of_row(*where, self._unix)
        return of_record(await self._copies.record(key))

    async def open(
        self,
        key: Key,
        version: int,
        mode: Mode,
        *,
        upgrade: bool = False,
        initial_states: Sequence[Array | None] | None = None,
        alias: str = "",
    ) -> tuple[Description, bool]:
        """Opens a session for callers without a stream; what it is then, and whether it was made.

        Of `initial_states` see `Opening`, of `alias` `Sessions.fresh`.

        Raises:
            StatestreamError: It is not to be had; see `Sessions.open`.
        """
        opened = await self._sessions.open_one(
            key, version, mode, self._writer, upgrade=upgrade, initial_states=initial_states, alias=alias
        )
        return await self.describe(key), bool(opened.created[0])

    async def flush(self, key: Key) -> int:
        """Makes a session durable; the durable position.

        Raises:
            NotOwner: Another server has it.
            ModelNotFound, SessionNotFound, StoreUnavailable: It cannot be found or written.
        """
        where = await self._copies.resident(key)
        if where is None:
            return (await self._copies.stored(key)).position
        table, rows = where[0], np.asarray([where[1]])
        claims = table.claims(rows)
        await self._sessions.undisputed(table, rows)
        await self._engine.settled(table, rows)
        await self._checkpointer.flush(table, rows)
        if table.are_claimed(rows, claims).all():
            return int(table.durable[where[1]])
        return (await self._copies.stored(key)).position

    async def delete(self, key: Key) -> None:
        """Deletes a session; one that is only stored needs no row for it, and no model that can read it.

        Raises:
            NotOwner: Another server has it.
            SessionMoved: It was claimed anew meanwhile, and stays.
            ModelNotFound, SessionNotFound: Nothing was deleted.
            StoreUnavailable: What was deleted is not known.
        """
        where = await self._copies.resident(key)
        if where is not None:
            gone = bool((await self._deletions.delete(where[0], np.asarray([where[1]]))).all())
        else:
            record = await self._copies.stored(key)
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
        read = await self._copies.read(key, epoch, sure=True)
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
        record = await self._copies.record(fork)
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
        table, values, _, position, origin, cursor = await self._copies.read(key, epoch)
        snapshot = Snapshot(key.model, table.model.digest, position, values, origin, cursor, key.tenant)
        data = snapshots.dumps(snapshot, table.rows.columns)
        if len(data) > self._most_answer:
            raise errors.AnswerTooLarge(
                f"the snapshot has {len(data):,} bytes; this server sends {self._most_answer:,} at most: raise"
                " --max-answer-bytes",
                metadata={"size": str(len(data)), "limit": str(self._most_answer)},
            )
        return data, position

    async def restore(
        self, key: Key, data: bytes, version: int = 0, alias: str = "", *, upgrade: bool = False
    ) -> Description:
        """Makes a session of a snapshot; an existing one is replaced. Returns when it is durable.

        Without a version it is made in the one whose digest the snapshot names, with `upgrade` in the default one.

        Raises:
            SnapshotInvalid: The snapshot is damaged.
            ModelChanged: It is of another model.
            PermissionDenied: It is of another tenant, and the caller has not the right `admin`.
            ModelNotFound, TooManySessions, StoreUnavailable: Nothing was made.
        """
        version = self._registry.number(key.model, version, alias)
        metadata = snapshots.read_metadata(data)
        digest, grant = metadata["digest"], caller.current.get().grant
        if grant is not None and metadata.get("tenant", "") != key.tenant and ADMIN not in grant.token.rights:
            raise errors.PermissionDenied(
                "the snapshot is of another tenant, or was made before callers had one; a token with the right"
                f" {ADMIN!r} restores it",
                metadata={"right": ADMIN},
            )
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


def _one(number: int) -> Positions:
    return np.asarray([number], np.uint64)


def _origin(session: str, position: int) -> int:
    """What a fork keeps of where it comes from, until a step with a request id takes its place."""
    return digests.of_text(f"fork\0{session}\0{position}")
