"""The redis store: records in a Redis or Valkey, Cluster or not, shared by the replicas of a service."""

from __future__ import annotations

import asyncio
import struct
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from statestream.contract.errors import StoreUnavailable
from statestream_server.stores.base import Claim, Claimed, Key, Peer, Record, Survival, Verdict
from statestream_server.stores.lua import CLAIM, DELETE, SAVE, TOUCH, Script
from statestream_server.stores.packed import HEADER, is_known, pack_record, read_record, unpack, unpack_blob
from statestream_server.stores.redis_index import Index
from statestream_server.stores.redis_keys import (
    GENERATION,
    SERVERS,
    SLICE_COMMANDS,
    Name,
    load_key,
    name_of,
    script_call,
    server_key,
    sliced,
)
from statestream_server.stores.redis_link import Address, Link
from statestream_server.stores.redis_upkeep import RedisUpkeep
from statestream_server.stores.rules import (
    check_claims,
    check_deletes,
    check_records,
    newer_of,
    record_of,
    tombs_time,
)

P = ParamSpec("P")
T = TypeVar("T")

_CLAIM = struct.Struct("<BBBB4xQQQQQQd16s16sQQ")
_TOUCH = struct.Struct("<Q")
_DELETE = struct.Struct("<QQ")
_VERDICTS = {verdict.name[:1].encode(): verdict for verdict in Verdict}
"""What the script answers with: no two begin alike."""
_SLICE_HEADS = 1024


def _awaited_by_close(
    method: Callable[Concatenate[RedisStore, P], Awaitable[T]],
) -> Callable[Concatenate[RedisStore, P], Coroutine[Any, Any, T]]:
    """Counts a call as pending, so that `close` waits for it; refuses it where the store is not open."""

    @wraps(method)
    async def counted(self: RedisStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise StoreUnavailable(f"the store {self._address.shown} is not open; start it before use")
        self._pending += 1
        try:
            return await method(self, *args, **kwargs)
        finally:
            self._pending -= 1
            self._settled.set()

    return counted


class RedisStore:
    """Records in Redis; a Lua script compares and sets each bucket's part of a batch, all are pipelined.

    What it survives follows from Redis' own settings: a killed server process always; a power cut of
    the Redis where it runs with `appendonly yes` and `appendfsync always`; a failover where the URL says
    `?wait=N`, which lets each write return after N replicas have it (at most `wait_timeout_ms`, else
    `StoreUnavailable`). Other options of the URL: `timeout_ms` (2000), `password_file` (the password is its
    first line), and redis-py's `ssl_…`, `username`, `password`, `client_name`, `protocol`,
    `health_check_interval`, `socket_keepalive`.

    A cancelled call may still be done.
    """

    def __init__(self, url: str) -> None:
        """Reads the URL; `start` connects.

        Raises:
            ValueError: The URL has an unknown option or a wrong number.
        """
        self._address = Address.parse(url)
        self._link = Link(self._address)
        self._index = Index(self._link)
        self._closed = True
        self._pending = 0
        self._settled = asyncio.Event()

    @property
    def kind(self) -> str:
        """Which store it is: "redis"."""
        return "redis"

    @property
    def survives(self) -> Survival:
        """What records survive; about power cuts this is known after `start`."""
        return Survival(process_kill=True, power_loss=self._link.fsync_always, failover=self._address.wait > 0)

    async def start(self) -> None:
        """Connects and checks the settings.

        Raises:
            StoreUnavailable: It does not answer, or its `maxmemory-policy` is not `noeviction`.
        """
        await self._link.open()
        self._closed = False
        await self.generation()

    async def close(self) -> None:
        """Lets go of the connections after the pending calls."""
        self._closed = True
        while self._pending:
            self._settled.clear()
            await self._settled.wait()
        await self._link.close()

    @_awaited_by_close
    async def generation(self) -> str:
        """Stands for the contents: random, drawn when a store was first used or used after a flush.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        (value,) = await self._link.run([("GET", GENERATION)])
        if value is None:
            fresh = uuid.uuid4().hex
            _, value = await self._link.run([("SET", GENERATION, fresh, "NX"), ("GET", GENERATION)], writes=True)
        return bytes(value).decode()

    @_awaited_by_close
    async def claim(self, claims: Sequence[Claim]) -> list[Claimed]:
        """Decides every claim, a script call for each bucket or part of it; see `base.Store.claim`.

        Raises:
            StoreUnavailable: Redis does not answer or refuses; any claim may or may not have been done.
            ValueError: A number or writer that no store could keep.
        """
        check_claims(claims)
        now = time.time()
        parts = [
            _CLAIM.pack(
                claim.mode,
                claim.ephemeral,
                claim.exact,
                claim.blob is not None,
                claim.incarnation,
                claim.seen_epoch,
                claim.replay_position,
                claim.held_epoch,
                claim.held_position,
                claim.version,
                now,
                claim.writer,
                claim.owner.encode(),
                claim.position,
                claim.base,
            )
            + (claim.blob or b"")
            for claim in claims
        ]
        answers = await self._call(CLAIM, [claim.key for claim in claims], parts)
        return [_claimed(claim.key, answer) for claim, answer in zip(claims, answers, strict=True)]

    @_awaited_by_close
    async def save(self, records: Sequence[Record]) -> list[bool]:
        """Writes the records that are not fenced, a script call for each bucket or part of it; see `base.Store.save`.

        Raises:
            StoreUnavailable: Redis does not answer or refuses; any record may or may not have been written.
            ValueError: A number or writer that no store could keep.
        """
        records = [*records]
        check_records(records)
        now = time.time()
        answers = await self._call(
            SAVE, [record.key for record in records], [pack_record(record, now) for record in records]
        )
        return [answer == _YES for answer in answers]

    @_awaited_by_close
    async def load(self, keys: Sequence[Key]) -> list[Record | None]:
        """Reads live records, blobs included, one command for each bucket.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        names = [name_of(key) for key in keys]
        found: list[Record | None] = [None] * len(keys)
        for slice_ in sliced(names, [0] * len(names)):
            answers = await self._link.run(
                [("MGET", *(names[index].record for index in indices)) for _, indices in slice_]
            )
            for (_, indices), values in zip(slice_, answers, strict=True):
                for index, value in zip(indices, values, strict=True):
                    found[index] = read_record(keys[index], value, blob=True)
        return found

    @_awaited_by_close
    async def heads(self, keys: Sequence[Key]) -> list[Record | None]:
        """Records without blobs, tombstones too; None where nothing is stored. One small command for each key.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        found: list[Record | None] = []
        for first in range(0, len(keys), _SLICE_HEADS):
            part = keys[first : first + _SLICE_HEADS]
            names = map(name_of, part)
            headers = await self._link.run([("GETRANGE", name.record, 0, HEADER.size - 1) for name in names])
            for key, header in zip(part, headers, strict=True):
                if not header:
                    found.append(None)
                else:
                    found.append(record_of(key, unpack(header)) if is_known(header) else newer_of(key))
        return found

    @_awaited_by_close
    async def touch(self, keys: Sequence[Key], epochs: Sequence[int]) -> None:
        """Takes live records for used now where their fence is not above the given epochs.

        Raises:
            StoreUnavailable: Redis does not answer or refuses; any record may or may not have been touched.
        """
        await self._call(TOUCH, keys, [_TOUCH.pack(epoch) for epoch in epochs], repr(time.time()))

    @_awaited_by_close
    async def delete(self, keys: Sequence[Key], epochs: Sequence[int], incarnations: Sequence[int]) -> list[bool]:
        """Replaces records by tombstones, a script call for each bucket or part of it; see `base.Store.delete`.

        Raises:
            StoreUnavailable: Redis does not answer or refuses; any record may or may not have been deleted.
            ValueError: There is not one epoch and one incarnation for each key, or one that no store could keep.
        """
        check_deletes(keys, epochs, incarnations)
        parts = [_DELETE.pack(epoch, incarnation) for epoch, incarnation in zip(epochs, incarnations, strict=True)]
        answers = await self._call(DELETE, keys, parts, repr(time.time()))
        return [answer == _YES for answer in answers]

    @_awaited_by_close
    async def list(self, tenant: str, model: str, after: tuple[str, str], limit: int) -> list[Record]:
        """Live records without blobs, by (model, id).

        Each bucket's index is asked once or more, so a page costs some 4,096 small commands (tenths of
        a second) whatever its limit: ask for large pages.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        owner, last = tenant.encode() + b"\0", "\0".join(after).encode()
        end = owner + model.encode() + b"\1" if model else tenant.encode() + b"\1"
        start = b"(" + owner + last
        if model and after[0] != model:
            if after[0] > model:
                return []
            start = b"[" + owner + model.encode() + b"\0"
        found: list[Record] = []
        while len(found) < limit:
            names = [Name(member) for member in await self._index.members(start, b"(" + end, limit - len(found))]
            if not names:
                break
            start = b"(" + names[-1].member
            for first in range(0, len(names), SLICE_COMMANDS):
                part = names[first : first + SLICE_COMMANDS]
                headers = await self._link.run([("GETRANGE", name.record, 0, HEADER.size - 1) for name in part])
                for name, header in zip(part, headers, strict=True):
                    record = read_record(Key(*name.member.decode().split("\0", 2)), header or None, blob=False)
                    if record is not None:  # else it was deleted meanwhile
                        found.append(record)
        return found

    @_awaited_by_close
    async def expire(
        self,
        before: float,
        *,
        ephemeral_before: float,
        tombs_before: float | None = None,
        by_model: Mapping[str, float] | None = None,
    ) -> int:
        """Deletes old records and tombstones; how many.

        Walks through all indices in small round trips, about ten seconds of them for a million sessions.

        Raises:
            StoreUnavailable: Redis does not answer; what was deleted until then is.
        """
        tombs_before = tombs_time(before, ephemeral_before, tombs_before)
        return await self._index.expire(before, ephemeral_before, tombs_before, by_model or {})

    @_awaited_by_close
    async def beat(self, owner: str, address: str, ttl: float, sessions: int = 0) -> None:
        """Notes that a server process lives; see `base.Store.beat`.

        Raises:
            StoreUnavailable: Redis does not answer or refuses.
        """
        lasts = ("PX", max(1, round(ttl * 1000)))
        await self._link.run(
            [
                ("SET", server_key(owner), address, *lasts),
                ("SET", load_key(owner), sessions, *lasts),
                ("SADD", SERVERS, owner),
            ]
        )

    @_awaited_by_close
    async def leave(self, owner: str) -> None:
        """Notes that a server process is gone.

        Raises:
            StoreUnavailable: Redis does not answer or refuses.
        """
        await self._link.run([("DEL", server_key(owner)), ("DEL", load_key(owner)), ("SREM", SERVERS, owner)])

    @_awaited_by_close
    async def address_of(self, owner: str) -> str | None:
        """Where a server process is reached; None where it is gone.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        (value,) = await self._link.run([("GET", server_key(owner))])
        return None if value is None else bytes(value).decode()

    @_awaited_by_close
    async def peers(self) -> Sequence[Peer]:
        """The living server processes; see `base.Store.peers`.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        (members,) = await self._link.run([("SMEMBERS", SERVERS)])
        owners = sorted(bytes(member).decode() for member in members)
        keys = [key for owner in owners for key in (server_key(owner), load_key(owner))]
        values = await self._link.run([("GET", key) for key in keys]) if keys else []
        found = dict(zip(owners, zip(values[::2], values[1::2], strict=True), strict=True))
        if gone := [owner for owner, (address, _) in found.items() if address is None]:
            await self._link.run([("SREM", SERVERS, *gone)])
        return [
            Peer(owner, bytes(address).decode(), int(sessions or 0))
            for owner, (address, sessions) in found.items()
            if address is not None
        ]

    def upkeep(self) -> RedisUpkeep:
        """What is done to it beside its servers; see `base.Upkeep`."""
        return RedisUpkeep(self._link)

    async def _call(self, script: Script, keys: Sequence[Key], parts: Sequence[bytes], *head: str) -> Sequence[Any]:
        """Runs a script over a batch, one call for each bucket; the answers in the order of the keys."""
        names = [name_of(key) for key in keys]
        found: list[Any] = [None] * len(keys)
        for slice_ in sliced(names, [len(part) for part in parts]):
            commands = []
            for bucket, indices in slice_:
                arguments: list[str | bytes] = list(head)
                for index in indices:
                    arguments += (names[index].member, parts[index])
                commands.append(script_call(script, bucket, [names[index].record for index in indices], arguments))
            answers = await self._link.run(commands, writes=True)
            for (_, indices), answer in zip(slice_, answers, strict=True):
                for index, value in zip(indices, answer, strict=True):
                    found[index] = value
        return found


_YES = ord("1")


def _claimed(key: Key, answer: bytes) -> Claimed:
    verdict, value = _VERDICTS[answer[:1]], answer[1:]
    if not value:
        return Claimed(verdict, None)
    return Claimed(verdict, record_of(key, unpack(value), unpack_blob(value) if verdict is Verdict.TAKEN else None))
