"""The memory store: records in this process, gone with it. For tests, and for servers that promise nothing."""

from __future__ import annotations

import heapq
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence

from statestream_server.stores.base import Claim, Claimed, Key, Peer, Record, Survival, Verdict
from statestream_server.stores.packed import LIVE, pack, unpack, unpack_blob
from statestream_server.stores.rules import (
    Columns,
    bury,
    check_claims,
    check_deletes,
    check_records,
    decide,
    record_of,
    saved,
    tombs_time,
)


class MemoryStore:
    """Records in dictionaries of one process; no call waits, so each is atomic as a whole.

    A record is one byte string (see packed.py) in a dictionary of its tenant and model: that is the
    least that Python asks for a session, and nothing in it has to be visited by the garbage collector.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        """Makes an empty store.

        Args:
            clock: Gives Unix time.
        """
        self._clock = clock
        self._tables: dict[tuple[str, str], dict[str, bytes]] = {}
        self._generation = uuid.uuid4().hex
        self._servers: dict[str, tuple[Peer, float]] = {}

    @property
    def kind(self) -> str:
        """Which store it is: "memory"."""
        return "memory"

    @property
    def survives(self) -> Survival:
        """Nothing."""
        return Survival(process_kill=False, power_loss=False, failover=False)

    async def start(self) -> None:
        """Does nothing; there is nothing to connect to."""

    async def close(self) -> None:
        """Forgets every record."""
        self._tables.clear()

    async def generation(self) -> str:
        """Stands for this store's contents; the same for its whole life."""
        return self._generation

    async def claim(self, claims: Sequence[Claim]) -> list[Claimed]:
        """Decides every claim; see `base.Store.claim`.

        Raises:
            ValueError: A number or writer that no store could keep.
        """
        check_claims(claims)
        now = self._clock()
        return [self._claim(claim, now) for claim in claims]

    def _claim(self, claim: Claim, now: float) -> Claimed:
        key = claim.key
        value = self._tables.get((key.tenant, key.model), {}).get(key.id)
        verdict, columns, write, keeps, carries = decide(claim, None if value is None else unpack(value), now)
        if columns is None:
            return Claimed(verdict, None)
        blob = claim.blob if carries else unpack_blob(value) if value is not None and keeps else None
        if write:
            self._tables.setdefault((key.tenant, key.model), {})[key.id] = pack(columns, blob)
        return Claimed(verdict, record_of(key, columns, blob if verdict is Verdict.TAKEN else None))

    async def save(self, records: Sequence[Record]) -> list[bool]:
        """Writes each record that is not fenced; see `base.Store.save`.

        Raises:
            ValueError: A number or writer that no store could keep.
        """
        check_records(records)
        now = self._clock()
        return [self._save(record, now) for record in records]

    def _save(self, record: Record, now: float) -> bool:
        key = record.key
        table = self._tables.setdefault((key.tenant, key.model), {})
        value = table.get(key.id)
        columns = saved(None if value is None else unpack(value), record, now)
        if columns is None:
            return False
        table[key.id] = pack(columns, record.blob)
        return True

    async def load(self, keys: Sequence[Key]) -> list[Record | None]:
        """Reads live records, blobs included."""
        return [self._load(key) for key in keys]

    def _load(self, key: Key) -> Record | None:
        value = self._tables.get((key.tenant, key.model), {}).get(key.id)
        if value is None or not value[1] & LIVE:
            return None
        return record_of(key, unpack(value), unpack_blob(value))

    async def heads(self, keys: Sequence[Key]) -> list[Record | None]:
        """Records without blobs, tombstones too; None where nothing is stored."""
        values = (self._tables.get((key.tenant, key.model), {}).get(key.id) for key in keys)
        return [
            None if value is None else record_of(key, unpack(value)) for key, value in zip(keys, values, strict=True)
        ]

    async def touch(self, keys: Sequence[Key], epochs: Sequence[int]) -> None:
        """Takes live records for used now where their fence is not above the given epochs."""
        for key, epoch in zip(keys, epochs, strict=True):
            table = self._tables.get((key.tenant, key.model), {})
            value = table.get(key.id)
            if value is not None and value[1] & LIVE and (columns := unpack(value)).fence <= epoch:
                table[key.id] = pack(columns._replace(saved_at=self._clock()), unpack_blob(value))

    async def delete(self, keys: Sequence[Key], epochs: Sequence[int], incarnations: Sequence[int]) -> list[bool]:
        """Replaces records by tombstones; see `base.Store.delete`.

        Raises:
            ValueError: There is not one epoch and one incarnation for each key, or one that no store could keep.
        """
        check_deletes(keys, epochs, incarnations)
        now = self._clock()
        return [self._delete(*asked, now) for asked in zip(keys, epochs, incarnations, strict=True)]

    def _delete(self, key: Key, epoch: int, incarnation: int, now: float) -> bool:
        table = self._tables.setdefault((key.tenant, key.model), {})
        value = table.get(key.id)
        deleted, tombstone = bury(None if value is None else unpack(value), epoch, incarnation, now)
        if tombstone is not None:
            table[key.id] = pack(tombstone, None)
        return deleted

    async def list(self, tenant: str, model: str, after: tuple[str, str], limit: int) -> list[Record]:
        """Live records without blobs, by (model, id). Looks at every session of the tenant's models asked for."""
        found: list[Record] = []
        models = [model] if model else sorted(name for owner, name in self._tables if owner == tenant)
        for name in models:
            table = self._tables.get((tenant, name), {})
            if len(found) >= limit:
                break
            if name < after[0]:
                continue
            ids = heapq.nsmallest(limit - len(found), _live_ids(table, after[1] if name == after[0] else None))
            found += [record_of(Key(tenant, name, id_), unpack(table[id_])) for id_ in ids]
        return found

    async def expire(
        self,
        before: float,
        *,
        ephemeral_before: float,
        tombs_before: float | None = None,
        by_model: Mapping[str, float] | None = None,
    ) -> int:
        """Deletes old records and tombstones; how many. Looks at every session."""
        count, tombs = 0, tombs_time(before, ephemeral_before, tombs_before)
        for name, table in list(self._tables.items()):
            times = (by_model or {}).get(name[1], before), ephemeral_before, tombs
            old = [id_ for id_, value in table.items() if _is_old(unpack(value), *times)]
            for id_ in old:
                del table[id_]
            count += len(old)
            if not table:
                del self._tables[name]
        return count

    async def beat(self, owner: str, address: str, ttl: float, sessions: int = 0) -> None:
        """Notes that a server process lives; see `base.Store.beat`."""
        self._servers[owner] = Peer(owner, address, sessions), self._clock() + ttl

    async def leave(self, owner: str) -> None:
        """Notes that a server process is gone."""
        self._servers.pop(owner, None)

    async def address_of(self, owner: str) -> str | None:
        """Where a server process is reached; None where it is gone."""
        peer, until = self._servers.get(owner, (None, 0.0))
        return peer.address if peer is not None and self._clock() < until else None

    async def peers(self) -> Sequence[Peer]:
        """The living server processes; see `base.Store.peers`."""
        now = self._clock()
        return sorted(peer for peer, until in self._servers.values() if now < until)


def _live_ids(table: dict[str, bytes], above: str | None) -> Iterator[str]:
    return (id_ for id_, value in table.items() if value[1] & LIVE and (above is None or id_ > above))


def _is_old(columns: Columns, before: float, ephemeral_before: float, tombs_before: float) -> bool:
    return columns.saved_at < (tombs_before if not columns.live else ephemeral_before if columns.ephemeral else before)
