"""Erasure: sessions are deleted by model, tenant or the beginning of their ids, with all that is kept of them."""

from __future__ import annotations

from typing import Final, NamedTuple

from statestream_server.stores.base import NEWER, Key, Lasting, Record, Told
from statestream_server.upkeep.problems import SessionsStay

_ROUNDS: Final = 10
"""How often what was claimed meanwhile is looked for again."""


class Wanted(NamedTuple):
    """Which sessions; None stands for all.

    Attributes:
        tenant: Whose.
        model: Of which model, all versions.
        prefix: What their ids begin with.
    """

    tenant: str | None = None
    model: str | None = None
    prefix: str | None = None

    def has(self, key: Key) -> bool:
        """Whether a session is among them."""
        return (
            (self.tenant is None or key.tenant == self.tenant)
            and (self.model is None or key.model == self.model)
            and (self.prefix is None or key.id.startswith(self.prefix))
        )


class Erased(NamedTuple):
    """What an erasure did.

    Attributes:
        sessions: Deleted, with their replies.
        tombstones: Ids that are forgotten, too: of these sessions and of those that were deleted before.
        remembered: Ids that the store remembers until their tombstones expire, because servers live.
        servers: The addresses of these.
    """

    sessions: int
    tombstones: int
    remembered: int
    servers: list[str]


async def erase(store: Lasting, wanted: Wanted, told: Told) -> Erased:
    """Deletes sessions, and the tombstones where no server lives that could save one late.

    A tombstone fences: no server saves such a session any more, and those that live ask at once whose theirs are.

    Raises:
        SessionsStay: Some are claimed again and again.
        StoreUnavailable: The store does not answer; a part may be deleted, and doing it again is safe.
    """
    upkeep = store.upkeep()
    await upkeep.overwrite()
    sessions = 0
    for _ in range(_ROUNDS):
        done, spared, buried = 0, 0, list[Key]()
        total = await upkeep.count()
        async for piece in upkeep.scan():
            found = [record for _, record, _ in piece if record is not None and wanted.has(record.key)]
            live = [record for record in found if record.live]
            deleted = await _delete(store, live)
            sessions, spared = sessions + deleted, spared + len(live) - deleted
            buried += [record.key for record in found if record.epoch != NEWER]
            done += len(piece)
            told(done, max(done, total))
        if not spared:
            break
    else:
        raise SessionsStay(
            f"{spared} sessions were claimed anew as often as they were deleted, or a newer release wrote them;"
            f" {sessions} are deleted. Stop their callers, or use that release, and erase again"
        )
    living = await store.peers()
    forgotten = 0 if living else await upkeep.forget(buried)
    await upkeep.recheck()
    return Erased(sessions, forgotten, len(buried) - forgotten, sorted({peer.address for peer in living}))


async def _delete(store: Lasting, records: list[Record]) -> int:
    known = [record for record in records if record.epoch != NEWER]
    if not known:
        return 0
    columns = [[getattr(record, name) for record in known] for name in ("key", "epoch", "incarnation")]
    return sum(await store.delete(*columns))
