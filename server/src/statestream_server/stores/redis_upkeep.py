"""What is done to a Redis store beside its servers: it is read whole, looked over, and told that it changed."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence

import numpy as np

from statestream_server.stores.base import Key, Scanned
from statestream_server.stores.lua import FORGET
from statestream_server.stores.packed import is_known, unpack, unpack_blob
from statestream_server.stores.redis_index import members_of
from statestream_server.stores.redis_keys import (
    BUCKETS,
    GENERATION,
    RECORDS,
    SLICE_COMMANDS,
    Command,
    Name,
    index_of,
    name_of,
    pieces,
    script_call,
    sliced,
    tombs_of,
)
from statestream_server.stores.redis_link import Link
from statestream_server.stores.rules import erased, newer_of, record_of

_PAGE = 512
_LOOKS = 3
"""How often what seems wrong is looked at: it may have changed between two looks."""


class RedisUpkeep:
    """See `base.Upkeep`. A scan goes from bucket to bucket: each record is of one instant, all together are not."""

    def __init__(self, link: Link) -> None:
        """Of the store that `link` reaches."""
        self._link = link

    async def count(self) -> int:
        """How many records and tombstones there are."""
        sets = [part(bucket) for bucket in range(BUCKETS) for part in (index_of, tombs_of)]
        counts = [
            await self._link.run([("ZCARD", key) for key in sets[start : start + SLICE_COMMANDS]])
            for start in range(0, len(sets), SLICE_COMMANDS)
        ]
        return sum(map(sum, counts))

    async def scan(self) -> AsyncIterator[Sequence[Scanned]]:
        """Every record and tombstone; see `base.Upkeep.scan`."""
        async for members in self._members():
            names = [Name(member) for member in members]
            lengths = await self._link.run([("STRLEN", name.record) for name in names])
            for slice_ in sliced(names, lengths):
                commands: list[Command] = [("MGET", *(names[at].record for at in indices)) for _, indices in slice_]
                answers = await self._link.run(commands)
                piece, unsure = list[Scanned](), list[Name]()
                for (_, indices), values in zip(slice_, answers, strict=True):
                    for at, value in zip(indices, values, strict=True):
                        found = _scanned(names[at].member, members[names[at].member], value)
                        if found.fault:
                            unsure.append(names[at])
                        else:
                            piece.append(found)
                for name in unsure:
                    if members[name.member] == _ASTRAY:
                        piece.append(_scanned(name.member, _ASTRAY, None))
                    else:
                        piece += await self._again(name)
                yield piece

    async def _again(self, name: Name) -> list[Scanned]:
        """Looks again at what was between two changes, or is wrong; nothing, where it is gone."""
        found = list[Scanned]()
        for _ in range(_LOOKS):
            listed = (await self._bucket([name.bucket])).get(name.member)
            (value,) = await self._link.run([("GET", name.record)])
            if listed is None:
                return []
            found = [_scanned(name.member, listed, value)]
            if not found[0].fault:
                break
        return found

    async def orphans(self) -> Sequence[str]:
        """Records that no index names."""
        known = [np.empty(0, np.uint64)]
        async for members in self._members():
            known.append(np.asarray([_number(Name(member).record) for member in members], np.uint64))
        numbers, suspects = np.concatenate(known), list[bytes]()
        async for keys in self._link.keys(RECORDS):
            strange = ~np.isin(np.asarray([_number(key) for key in keys], np.uint64), numbers)
            suspects += [key for key, is_strange in zip(keys, strange.tolist(), strict=True) if is_strange]
        found = list[str]()
        for key in dict.fromkeys(suspects):  # Some are there only since their bucket was read.
            bucket = int(key[len("ss:{b") :][:4])
            members = await self._bucket([bucket])
            if key not in {Name(member).record for member in members} and await self._is_there(key):
                found.append(f"the record {key.decode()} is in no index: no session's name leads to it")
        return found

    async def renew(self) -> None:
        """Draws a new generation."""
        await self._link.run([("SET", GENERATION, uuid.uuid4().hex)], writes=True)

    async def recheck(self) -> None:
        """Counts the generation up."""
        (value,) = await self._link.run([("GET", GENERATION)])
        generation = value.decode() if value is not None else uuid.uuid4().hex
        await self._link.run([("SET", GENERATION, erased(generation))], writes=True)

    async def overwrite(self) -> None:
        """Does nothing: what Redis has written to its files goes when it writes them anew."""

    async def forget(self, keys: Sequence[Key]) -> int:
        """Removes the tombstones of sessions; how many."""
        names, count = [name_of(key) for key in keys], 0
        for slice_ in sliced(names, [0] * len(names)):
            commands = [
                script_call(FORGET, bucket, [names[at].record for at in indices], [names[at].member for at in indices])
                for bucket, indices in slice_
            ]
            count += sum(await self._link.run(commands, writes=True))
        return count

    async def _members(self) -> AsyncIterator[dict[bytes, str]]:
        """The members of indices and sets of tombstones, and in which they are; some buckets at a time."""
        for first in range(0, BUCKETS, SLICE_COMMANDS):
            members = await self._bucket(range(first, first + SLICE_COMMANDS))
            for piece in pieces(list(members.items()), SLICE_COMMANDS):
                yield dict(piece)

    async def _bucket(self, buckets: Sequence[int]) -> dict[bytes, str]:
        """The members of some buckets, and whether each is called live, deleted, or both; or is in a wrong one."""
        found = dict[bytes, str]()
        async for read in members_of(self._link, buckets, _PAGE):
            for bucket, page in read.items():
                for member in page:
                    is_astray = Name(member).bucket != bucket or found.get(member) == _ASTRAY
                    found[member] = _ASTRAY if is_astray else _LIVE
        for page in await self._link.run([("ZRANGE", tombs_of(bucket), 0, -1) for bucket in buckets]):
            found |= {member: {_LIVE: _BOTH, _ASTRAY: _ASTRAY}.get(found.get(member, ""), _DELETED) for member in page}
        return found

    async def _is_there(self, key: bytes) -> bool:
        (count,) = await self._link.run([("EXISTS", key)])
        return bool(count)


_ASTRAY = "in the index of another bucket"
_LIVE, _DELETED, _BOTH = "among the live", "among the deleted", "among the live and the deleted"


def _scanned(member: bytes, listed: str, value: bytes | None) -> Scanned:
    try:
        tenant, model, id_ = member.decode().split("\0", 2)
    except ValueError:
        return Scanned(f"the name {member!r}", None, "it names no tenant, model and session")
    key = Key(tenant, model, id_)
    what = f"session {id_!r} of model {model!r}" + (f" and tenant {tenant!r}" if tenant else "")
    if listed == _ASTRAY:
        return Scanned(what, None, f"its name is {listed}")
    if value is None:
        return Scanned(what, None, f"it is listed {listed}, and no record is there")
    if not is_known(value):
        return Scanned(what, newer_of(key), "" if value else "its record is empty")
    record = record_of(key, unpack(value), unpack_blob(value))
    if listed != (_LIVE if record.live else _DELETED):
        return Scanned(what, record, f"it is listed {listed}, and is {'live' if record.live else 'deleted'}")
    stays = not record.live and record.blob is not None
    return Scanned(what, record, "it is deleted, and its state is still there" if stays else "")


def _number(key: bytes) -> int:
    """64 bits of a record's key, which is a hash."""
    return int(key[-16:], 16)
