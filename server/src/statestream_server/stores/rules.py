"""The rules of claims, saves and deletes as pure functions. No store and no clock lives here.

This is where they are stated. Redis applies them in Lua (lua.py), sqlite saves by them in SQL (sqlite_tables.py);
tests/server/stores/test_rules.py compares every store, and tests/model/test_store.py these functions, with a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from statestream_server.stores.base import NEWER, Claim, Key, Mode, Record, Verdict
from statestream_server.stores.batches import Batch

CLAIM_LIMIT = 1 << 52
"""Numbers in claims stay below this, so that epochs raised from them never reach `NUMBER_LIMIT`."""
NUMBER_LIMIT = 1 << 53
"""Numbers in records stay below this: Lua, in which Redis compares them, counts in doubles."""
WRITER_BYTES = 16
"""The length of a writer id."""
OWNER_BYTES = 16
"""The most bytes of an owner's name."""
_CLAIM_NUMBERS = (
    "incarnation",
    "seen_epoch",
    "replay_position",
    "held_epoch",
    "held_position",
    "version",
    "position",
    "base",
)
_RECORD_NUMBERS = ("version", "epoch", "position", "incarnation")


class Columns(NamedTuple):
    """What is stored under a key, without key and blob. A tombstone is not live."""

    live: bool
    version: int
    epoch: int
    position: int
    writer: bytes
    incarnation: int
    ephemeral: bool
    saved_at: float
    owner: str
    fence: int


class Decision(NamedTuple):
    """How a claim goes.

    Attributes:
        verdict: How it went.
        columns: What the session's record is after the claim, None for no record.
        write: Whether `columns` are to be stored.
        keeps: Whether a stored blob stays with them.
        carries: Whether the claim's blob is stored with them.
    """

    verdict: Verdict
    columns: Columns | None
    write: bool = False
    keeps: bool = False
    carries: bool = False


def decide(claim: Claim, stored: Columns | None, now: float) -> Decision:
    """Decides one claim.

    A tombstone counts as no record, but its epoch and incarnation count.

    Args:
        claim: The claim.
        stored: What is stored under its key, a tombstone too.
        now: Unix time to be noted as the time of the claim.
    """
    seen = max(claim.held_epoch, claim.seen_epoch)
    # A newer writer came first. Of two with the same incarnation it is the first: one that outbids takes the next
    # number, as one that connects again does.
    if stored is not None and (claim.incarnation < stored.incarnation or _is_anothers(claim, stored)):
        return Decision(Verdict.REFUSED, stored)
    # A record below an epoch that was seen came back from before it: the store forgot what was between.
    live = stored if stored is not None and stored.live and stored.epoch >= seen else None
    # The row held is current where it is not below the fence of what is stored: nothing at all, as after a flush, or a
    # live record, no tombstone. So a claim whose answer was lost takes nothing from the process that asked it.
    over = stored is None or (stored.live and stored.fence <= claim.held_epoch)
    held = claim.held_epoch > 0 and claim.held_epoch == seen and over
    anew = claim.mode is Mode.REPLACE
    if claim.mode is Mode.CREATE and (live is not None or held):
        return Decision(Verdict.EXISTS, live)
    if claim.mode is Mode.RESUME and live is None and not held:
        return Decision(Verdict.MISSING, None)
    if not (anew or held):
        # What moves must still be what the claim's state was made of; what goes on must be of the claim's version.
        if claim.base and (live is None or (live.epoch, live.position) != (claim.base, claim.position)):
            return Decision(Verdict.OTHER, live)
        if claim.exact and not claim.base and live is not None and live.version != claim.version:
            return Decision(Verdict.OTHER, live)
    # The caller could not send again what is missing.
    current = claim.held_position if held else live.position if live is not None else 0
    if not anew and current < claim.replay_position:
        return Decision(Verdict.LOST, live)
    # Granted. Where the session goes on its version and retention stay, else they are the claim's; so are state and
    # position of a new session, and of one that moves.
    goes_on = not anew and (held or live is not None)
    kept = live if goes_on else None
    carries = bool(claim.base) if goes_on else not claim.base
    # Above every epoch that was ever seen, and no less than the incarnation, which comes from a clock: so epochs go on
    # rising over a flush.
    epoch = max(1 + (stored.epoch if stored is not None else 0), 1 + seen, claim.incarnation)
    columns = Columns(
        live=True,
        version=kept.version if kept and not carries else claim.version,
        epoch=epoch,
        position=claim.position if carries else kept.position if kept else 0,
        writer=claim.writer,
        incarnation=claim.incarnation,
        ephemeral=kept.ephemeral if kept else claim.ephemeral,
        saved_at=now,
        owner=claim.owner,
        fence=_fence(claim, kept, epoch, held=held and not anew),
    )
    verdict = Verdict.CREATED if not goes_on else Verdict.HELD if held else Verdict.TAKEN
    return Decision(verdict, columns, write=True, keeps=kept is not None and not carries, carries=carries)


def _is_anothers(claim: Claim, stored: Columns) -> bool:
    """Whether a session is another writer's, who must not be overtaken by what this claim comes from."""
    if not stored.live or claim.writer == stored.writer:
        return False
    # A caller who wants a session back names no epoch, or the one that it was refused with. A lower one is named by a
    # client that opens again by itself, after any number of streams: it goes on with, or ends, what it had.
    overtaken = claim.mode in (Mode.RESUME, Mode.EITHER) and 0 < claim.seen_epoch < stored.epoch
    return overtaken or claim.incarnation == stored.incarnation


def _fence(claim: Claim, kept: Columns | None, epoch: int, *, held: bool) -> int:
    """The fence of a granted claim: its epoch, but where rows of before are current; `kept` is what goes on with it."""
    if held:
        return kept.fence if kept else claim.held_epoch
    # Who claimed it last may have it in memory again by the time this is decided: it woke it, and stepped it.
    return kept.fence if kept and kept.owner == claim.owner != "" else epoch


def saved(stored: Columns | None, record: Record, now: float) -> Columns | None:
    """What is stored with a record; None where it is fenced.

    It is written where nothing is stored, or the live record's (epoch, position) is not above its own, or a tombstone's
    epoch is below it. Where only the epoch is above, and the fence is not, position, version and blob are written, and
    the claim stays as it is stored.

    Args:
        stored: What is stored under its key, a tombstone too.
        record: The record.
        now: Unix time.
    """
    fence = record.epoch
    if stored is not None and not stored.live:
        if stored.epoch >= record.epoch:
            return None
    elif stored is not None and stored.epoch > record.epoch:
        if stored.fence > record.epoch or stored.position > record.position:
            return None
        return stored._replace(
            version=record.version, position=record.position, ephemeral=record.ephemeral, saved_at=now
        )
    elif stored is not None and stored.epoch == record.epoch:
        if stored.position > record.position:
            return None
        fence = stored.fence
    _, version, epoch, position, writer, incarnation, ephemeral, _, _, owner, *_ = record
    return Columns(True, version, epoch, position, writer, incarnation, ephemeral, now, owner, fence)


def bury(stored: Columns | None, epoch: int, incarnation: int, now: float) -> tuple[bool, Columns | None]:
    """Decides one delete: what a later claim has stays.

    A tombstone keeps the higher of both epochs, and of both incarnations, for the retention of tombstones, so that a
    late save or an old writer's claim cannot bring the session back. It is left as well where nothing is stored, as
    after a flush, and raised where there is one already.

    Args:
        stored: What is stored under the key, a tombstone too.
        epoch: Of the session as it is to be deleted.
        incarnation: The same.
        now: Unix time.

    Returns:
        Whether a live record goes, and the tombstone to be stored; None where all stays as it is.
    """
    if stored is None:
        return False, Columns(False, 0, epoch, 0, bytes(WRITER_BYTES), incarnation, False, now, "", epoch)
    if stored.live and stored.fence > epoch:
        return False, None
    if not stored.live and stored.epoch >= epoch and stored.incarnation >= incarnation:
        return False, None
    return stored.live, stored._replace(
        live=False,
        epoch=max(stored.epoch, epoch),
        incarnation=max(stored.incarnation, incarnation),
        ephemeral=False,
        saved_at=now,
        fence=max(stored.epoch, epoch),
    )


def record_of(key: Key, columns: Columns, blob: bytes | None = None) -> Record:
    """The record as callers see it."""
    live, version, epoch, position, writer, incarnation, ephemeral, saved_at, owner, fence = columns
    return Record(key, version, epoch, position, writer, incarnation, ephemeral, blob, saved_at, owner, fence, live)


def newer_of(key: Key) -> Record:
    """What stands for the record of a newer release."""
    return Record(key, 0, NEWER, 0, bytes(WRITER_BYTES), 0, fence=NEWER)


def counted(generation: str) -> tuple[str, int]:
    """A generation's name, and how often sessions were erased since it was drawn."""
    name, _, count = generation.partition(".")
    return name, int(count or 0)


def erased(generation: str) -> str:
    """The generation after another erasure."""
    name, count = counted(generation)
    return f"{name}.{count + 1}"


def tombs_time(before: float, ephemeral_before: float, tombs_before: float | None) -> float:
    """The Unix time before which tombstones go."""
    return max(before, ephemeral_before) if tombs_before is None else tombs_before


def check_claims(claims: Sequence[Claim]) -> None:
    """Refuses claims whose numbers or writers no store could keep.

    Raises:
        ValueError: A number is negative or not below `CLAIM_LIMIT`, a writer has not 16 bytes, or an owner's
            name is no ASCII of at most 16.
    """
    _check("claim", claims, _CLAIM_NUMBERS, CLAIM_LIMIT)


def check_records(records: Sequence[Record]) -> None:
    """Refuses records whose numbers or writers no store could keep.

    Raises:
        ValueError: A number is negative or not below `NUMBER_LIMIT`, a writer has not 16 bytes, or an owner's
            name is no ASCII of at most 16.
    """
    _check("record", records, _RECORD_NUMBERS, NUMBER_LIMIT)


def check_batch(batch: Batch) -> None:
    """Refuses a batch as `check_records` does.

    Raises:
        ValueError: See there.
    """
    numbers = (batch.epochs, batch.positions, batch.incarnations)
    if (
        len(batch.owner) > OWNER_BYTES
        or not batch.owner.isascii()
        or "\0" in batch.owner
        or not 0 <= batch.version < NUMBER_LIMIT
        or batch.writers.dtype.itemsize != WRITER_BYTES
        or any(int(column.max(initial=0)) >= NUMBER_LIMIT for column in numbers)
    ):
        check_records([*batch])


def check_deletes(keys: Sequence[Key], epochs: Sequence[int], incarnations: Sequence[int]) -> None:
    """Refuses a delete whose columns differ in length, or whose numbers no store could keep.

    Raises:
        ValueError: There is not one epoch and one incarnation for each key, or one is negative or not below
            `NUMBER_LIMIT`.
    """
    for name, numbers in (("epoch", epochs), ("incarnation", incarnations)):
        if len(keys) != len(numbers):
            raise ValueError(f"delete got {len(keys)} keys and {len(numbers)} {name}s; give one {name} for each key")
        for key, number in zip(keys, numbers, strict=True):
            if not 0 <= number < NUMBER_LIMIT:
                raise ValueError(f"delete got {name} {number} for {key}; expected 0 to {NUMBER_LIMIT - 1}")


def _check(what: str, items: Sequence[Claim] | Sequence[Record], names: Sequence[str], limit: int) -> None:
    """Looks at columns; at single items only to say which one is wrong."""
    if not items:
        return
    columns = dict(zip(items[0]._fields, zip(*items, strict=True), strict=True))
    for owner in set(columns["owner"]):
        if len(owner) > OWNER_BYTES or not owner.isascii() or "\0" in owner:
            key = items[columns["owner"].index(owner)].key
            raise ValueError(
                f"the {what} for {key} has owner {owner!r}; expected at most {OWNER_BYTES} ASCII characters, none zero"
            )
    for name in names:
        numbers = columns[name]
        if min(numbers) < 0 or max(numbers) >= limit:
            at, number = next((at, number) for at, number in enumerate(numbers) if not 0 <= number < limit)
            raise ValueError(
                f"the {what} for {items[at].key} has {name} {number}; expected 0 or more and below {limit}"
            )
    if set(map(len, columns["writer"])) != {WRITER_BYTES}:
        item = next(item for item in items if len(item.writer) != WRITER_BYTES)
        raise ValueError(f"the {what} for {item.key} has a writer of {len(item.writer)} bytes; expected {WRITER_BYTES}")
