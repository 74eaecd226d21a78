"""What every store does: claims that fence, compare-and-set saves, tombstones. No store lives here.

A store keeps one record a session. Its columns (epoch, position, writer, incarnation) are what the
rules compare; the blob (state and unacknowledged replies, see records.py) it never looks into.

Claims and records come by the thousand, and are tuples: `map(Record._make, zip(...))` makes them of columns,
`zip(*records)` makes columns of them.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

TENANT = ""
"""The tenant of every session while there is no authentication."""


class Key(NamedTuple):
    """Which session: unique in one store."""

    tenant: str
    model: str
    id: str


class Mode(enum.IntEnum):
    """Whether a claimed session must be new, must exist, or may be either; numbers as on the wire."""

    CREATE = 1
    RESUME = 2
    EITHER = 3
    REPLACE = 4


class Claim(NamedTuple):
    """A wish to own a session.

    Attributes:
        key: The session.
        mode: Whether it must be new, must exist, may be either, or starts anew.
        writer: 16 bytes that stand for the caller.
        incarnation: Orders claims; one lower than the stored one is refused, or equal to another writer's.
        seen_epoch: The last epoch that the caller saw, 0 for none.
        replay_position: The oldest position from which the caller can replay.
        held_epoch: The epoch of the row that this process holds, 0 where it holds none.
        held_position: That row's position.
        version: The model version to which a new session is pinned.
        ephemeral: Whether the session ends with its caller.
        owner: The server process that will have the session, at most 16 bytes of ASCII; "" for none.
        exact: Whether a session that goes on from the store must be of that version.
        position: Where the state that the claim carries stands; see `blob`.
        base: The epoch of the stored or held session that the claim moves to its version, 0 for none.
        blob: State that is written with the claim: of a new session where `base` is 0, else of the moved one. None
            for the state that new sessions of the model start with.
    """

    key: Key
    mode: Mode
    writer: bytes
    incarnation: int
    seen_epoch: int = 0
    replay_position: int = 0
    held_epoch: int = 0
    held_position: int = 0
    version: int = 1
    ephemeral: bool = False
    owner: str = ""
    exact: bool = False
    position: int = 0
    base: int = 0
    blob: bytes | None = None


class Verdict(enum.IntEnum):
    """How a claim went. Only CREATED, HELD and TAKEN, the lowest, change the store."""

    CREATED = 1
    """There was no session (or mode was REPLACE): it starts with what the claim carries."""
    HELD = 2
    """The row that this process holds is the newest state; it may go on with it."""
    TAKEN = 3
    """The stored record is the newest state; a row this process still holds is stale."""
    EXISTS = 4
    """Mode was CREATE and the session exists."""
    MISSING = 5
    """Mode was RESUME and there is no session."""
    REFUSED = 6
    """A claim with a higher incarnation, or another writer's with the same, came first."""
    LOST = 7
    """What is left ends below the position from which the caller can replay."""
    OTHER = 8
    """The stored session is pinned to another version, and the claim was for exactly one; or it is not any more what
    the claim's state was made of."""
    UNKNOWN = 9
    """A newer release wrote the record, which stays as it is."""


class Record(NamedTuple):
    """One session as it is stored. One that is new, and started as the model says, has no blob.

    Attributes:
        epoch: Of the last claim.
        fence: The epoch of the first claim since which the session's newest state was always the row of one process:
            rows of that epoch or a later one are current, whether or not their process heard of every claim since.
        saved_at: Unix time of the last claim or save; set by the store.
        owner: The server process that claimed it.
        live: False for a tombstone.
    """

    key: Key
    version: int
    epoch: int
    position: int
    writer: bytes
    incarnation: int
    ephemeral: bool = False
    blob: bytes | None = None
    saved_at: float = 0.0
    owner: str = ""
    fence: int = 0
    live: bool = True


class Claimed(NamedTuple):
    """The answer to a claim.

    Attributes:
        verdict: How it went.
        record: The session after the claim (CREATED, HELD: without blob; TAKEN: with blob; EXISTS,
            REFUSED, LOST, OTHER: as it stands, without blob, for REFUSED a tombstone too; MISSING, UNKNOWN: None).
            For LOST without any record, None stands for position 0; for EXISTS, the row held is all there is.
    """

    verdict: Verdict
    record: Record | None


NEWER: Final = 1 << 53
"""In place of the epoch of a record that a newer release wrote: above every other, so it fences whoever asks."""
Told = Callable[[int, int], None]
"""Hears how many records are done, of how many."""


class Survival(NamedTuple):
    """What a store's records survive."""

    process_kill: bool
    power_loss: bool
    failover: bool


class Peer(NamedTuple):
    """A living server process.

    Attributes:
        owner: Its name in records.
        address: Where it is reached; of the processes of one server the same.
        sessions: How many sessions its callers had open when it last said so.
    """

    owner: str
    address: str
    sessions: int


class Store(Protocol):
    """One record a session, many processes. Methods run concurrently; each key's change is atomic.

    Every method raises `StoreUnavailable` where the store does not answer or cannot
    be written; then any part of the batch may or may not have been done, and repeating it is safe.
    """

    @property
    def kind(self) -> str:
        """One of "memory", "sqlite" and "redis"."""

    @property
    def survives(self) -> Survival:
        """What records survive."""

    async def start(self) -> None:
        """Connects, creates what is missing, and checks that the store can be used."""

    async def close(self) -> None:
        """Lets go of everything; pending calls finish first."""

    async def generation(self) -> str:
        """A random name of the store's contents: where it changed, the store was emptied or replaced.

        A dot and a number behind it count how often sessions were erased beside the servers: where only these changed,
        servers have to ask whose their sessions are.
        """

    async def claim(self, claims: Sequence[Claim]) -> list[Claimed]:
        """Decides every claim by `rules.decide`, in order and atomically for each key; its state is the same write."""

    async def save(self, records: Sequence[Record]) -> list[bool]:
        """Writes each record where `rules.saved` says so; False for those that are fenced."""

    async def load(self, keys: Sequence[Key]) -> list[Record | None]:
        """Reads live records, blobs included; changes nothing. What a newer release wrote has the epoch `NEWER`."""

    async def heads(self, keys: Sequence[Key]) -> list[Record | None]:
        """Records without blobs, tombstones too; None where nothing is stored.

        What a newer release wrote has the epoch and the fence `NEWER`.
        """

    async def touch(self, keys: Sequence[Key], epochs: Sequence[int]) -> None:
        """Takes live records for used now where their fence is not above the given epochs."""

    async def delete(self, keys: Sequence[Key], epochs: Sequence[int], incarnations: Sequence[int]) -> list[bool]:
        """Replaces records by tombstones where `rules.bury` says so; False for others, and where nothing is stored."""

    async def list(self, tenant: str, model: str, after: tuple[str, str], limit: int) -> list[Record]:
        """Live records without blobs, by (model, id), those above `after`; model "" stands for all."""

    async def expire(
        self,
        before: float,
        *,
        ephemeral_before: float,
        tombs_before: float | None = None,
        by_model: Mapping[str, float] | None = None,
    ) -> int:
        """Deletes records not claimed or saved since those Unix times, and old tombstones; how many.

        Tombstones go by a time of their own, by default the later of the two others; sessions of a model in `by_model`
        by its time in place of `before`.
        """

    async def beat(self, owner: str, address: str, ttl: float, sessions: int = 0) -> None:
        """Notes that a server process lives, where it is reached and what it has; holds for `ttl` seconds."""

    async def leave(self, owner: str) -> None:
        """Notes that a server process is gone, before its last beat is over."""

    async def address_of(self, owner: str) -> str | None:
        """Where a server process is reached; None where it left, or its last beat is over."""

    async def peers(self) -> Sequence[Peer]:
        """The server processes that have not left and whose last beat is not over, by owner."""


class Scanned(NamedTuple):
    """What a scan found.

    Attributes:
        what: Where it is, in words.
        record: A record or a tombstone, whole; None where none can be read.
        fault: What is wrong with it, "" for nothing.
    """

    what: str
    record: Record | None
    fault: str = ""


class Upkeep(Protocol):
    """What is done to a store beside its servers, which may serve meanwhile.

    Every method raises `StoreUnavailable` where the store does not answer or cannot be written.
    """

    async def count(self) -> int:
        """How many records and tombstones there are, about."""

    def scan(self) -> AsyncIterator[Sequence[Scanned]]:
        """Every record and every tombstone, blobs included, each whole and at one version; in pieces.

        What comes or goes meanwhile may be among them or not. A record of a newer release has the epoch `NEWER`.
        """

    async def orphans(self) -> Sequence[str]:
        """What else is wrong: what no session's name leads to, what is damaged below the records. One text each."""

    async def renew(self) -> None:
        """Draws a new generation: servers that live save every session that they have."""

    async def recheck(self) -> None:
        """Counts the generation up: servers that live ask whose their sessions are before they answer for them."""

    async def overwrite(self) -> None:
        """From now on what this process deletes is written over where it lay, where the store can do that."""

    async def forget(self, keys: Sequence[Key]) -> int:
        """Removes the tombstones of sessions; how many. Whoever saves such a session late brings it back."""


class Lasting(Store, Protocol):
    """A store that outlives its servers."""

    def upkeep(self) -> Upkeep:
        """What is done to it beside them; once it is started."""
