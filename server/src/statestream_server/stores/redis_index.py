"""The indices of the redis store, one for each bucket, as one: the members of a page, and those that are old."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Mapping, Sequence

from statestream_server.stores.lua import EXPIRE
from statestream_server.stores.redis_keys import BUCKETS, SLICE_COMMANDS, Name, index_of, pieces, script_call, tombs_of
from statestream_server.stores.redis_link import Link

_PAGE = 256


class Index:
    """Which sessions there are, in all buckets."""

    def __init__(self, link: Link) -> None:
        """The indices of the Redis at the other end of `link`."""
        self._link = link

    async def members(self, start: bytes, end: bytes, limit: int) -> Sequence[bytes]:
        """The first members of all indices together, between two bounds as ZRANGEBYLEX takes them."""
        starts = dict.fromkeys(range(BUCKETS), start)
        members: list[bytes] = []
        share = min(limit, math.ceil(2 * limit / BUCKETS) + 4)
        while starts:
            unread: dict[int, bytes] = {}
            for buckets in pieces(list(starts), SLICE_COMMANDS):
                pages = await self._link.run(
                    [("ZRANGEBYLEX", index_of(bucket), starts[bucket], end, "LIMIT", 0, share) for bucket in buckets]
                )
                for bucket, page in zip(buckets, pages, strict=True):
                    members += page
                    if len(page) == share:
                        unread[bucket] = page[-1]
            members = sorted(members)[:limit]
            # What a bucket has not shown yet lies above its last; it matters where that is within the page.
            starts = {
                bucket: b"(" + last for bucket, last in unread.items() if len(members) < limit or last < members[-1]
            }
            share = min(limit, share * 4)
        return members

    async def expire(
        self, before: float, ephemeral_before: float, tombs_before: float, by_model: Mapping[str, float]
    ) -> int:
        """Deletes records and tombstones that are older than these times; how many."""
        count = 0
        times = (repr(before), repr(ephemeral_before), repr(tombs_before), json.dumps(by_model))
        for buckets in pieces(range(BUCKETS), _PAGE):
            async for read in members_of(self._link, buckets, _PAGE):
                count += await self._expire(read, times)
            tombs = buckets
            while tombs:
                pages = await self._link.run(
                    [("ZRANGEBYSCORE", tombs_of(b), "-inf", f"({tombs_before!r}", "LIMIT", 0, _PAGE) for b in tombs]
                )
                read = {bucket: page for bucket, page in zip(tombs, pages, strict=True) if page}
                count += await self._expire(read, times)
                tombs = [bucket for bucket, page in read.items() if len(page) == _PAGE]
        return count

    async def _expire(self, members: Mapping[int, Sequence[bytes]], times: Sequence[str]) -> int:
        commands = [
            script_call(EXPIRE, bucket, [Name(m).record for m in page], [*times, *page])
            for bucket, page in members.items()
        ]
        return sum(await self._link.run(commands, writes=True)) if commands else 0


async def members_of(link: Link, buckets: Sequence[int], most: int) -> AsyncIterator[Mapping[int, Sequence[bytes]]]:
    """The members of some buckets' indices, in order: by bucket, `most` of each at a time."""
    starts = dict.fromkeys(buckets, b"-")
    while starts:
        found = await link.run(
            [("ZRANGEBYLEX", index_of(bucket), start, b"+", "LIMIT", 0, most) for bucket, start in starts.items()]
        )
        read = {bucket: page for bucket, page in zip(starts, found, strict=True) if page}
        yield read
        starts = {bucket: b"(" + page[-1] for bucket, page in read.items() if len(page) == most}
