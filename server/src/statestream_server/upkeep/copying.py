"""Backup and restore: what a store has goes into a file, and back."""

from __future__ import annotations

import enum
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import statestream_server
from statestream.contract.errors import quoted
from statestream_server.stores.base import NEWER, Lasting, Record, Told
from statestream_server.upkeep.archive import About, Archive, Count, Writer
from statestream_server.upkeep.problems import NewerRecords, RecordsDamaged, StoreInUse

_TOLD: Final = 5
"""Sessions that an error names."""


class Newer(enum.StrEnum):
    """What becomes of sessions that the store has in a newer state than the backup."""

    REFUSE = "refuse"
    KEEP = "keep"
    OVERWRITE = "overwrite"


class Restored(NamedTuple):
    """What a restore did.

    Attributes:
        sessions: Written.
        tombstones: Written: deleted sessions that stay deleted.
        kept: Left as they are, because the store has them as new or newer.
        overwritten: Of `sessions`, those that took the place of something newer.
    """

    sessions: int
    tombstones: int
    kept: int
    overwritten: int


async def backup(store: Lasting, path: Path, told: Told) -> Count:
    """Writes everything that a store has into a file; servers may write meanwhile.

    Raises:
        BackupExists: There is a file.
        RecordsDamaged: A record cannot be read, or is of a newer release.
        StoreUnavailable: The store does not answer.
        OSError: The file cannot be written.
    """
    upkeep, done = store.upkeep(), 0
    total = await upkeep.count()
    about = About(store.kind, await store.generation(), statestream_server.__version__, time.time())
    with Writer(path, about) as writer:
        async for piece in upkeep.scan():
            for what, record, fault in piece:
                if record is None or record.epoch == NEWER:
                    raise RecordsDamaged(
                        f"{what}: {fault or 'its record is of a newer release'}; `statestream store check` lists all"
                        " such records. Nothing was written: back up with the release that wrote it, or delete it"
                    )
            writer.add([record for _, record, _ in piece if record is not None])
            done += len(piece)
            told(done, max(done, total))
        return writer.finish()


async def restore(store: Lasting, archive: Archive, newer: Newer, *, while_serving: bool, told: Told) -> Restored:
    """Writes what a backup has into a store; saves of servers meanwhile go by the rules of all saves.

    Epochs stay what they were, so whoever saw later ones is told that state is lost. What takes the place of something
    newer has an epoch above it: whoever has that open hears SESSION_MOVED.

    Raises:
        StoreInUse: Servers that live use the store.
        NewerRecords: The store has something newer; nothing was written.
        StoreUnavailable: The store does not answer; a part may be written, and doing it again is safe.
    """
    upkeep = store.upkeep()
    living = await store.peers()
    if living and not while_serving:
        raise StoreInUse(
            f"{len(living)} servers use the store: {', '.join(sorted({peer.address for peer in living})[:_TOLD])}; stop"
            " them, or say --while-serving: they then keep what they have in memory, and save it over what is restored"
        )
    total = sum(archive.count)
    if newer is Newer.REFUSE:
        await _refuse_newer(store, archive)
    done = sessions = tombstones = kept = overwritten = 0
    for piece in archive.records():
        live = [record._replace(owner="") for record in piece if record.live]
        written = await store.save(live) if live else []
        left = [record for record, is_written in zip(live, written, strict=True) if not is_written]
        sessions += sum(written)
        if newer is Newer.OVERWRITE and left:
            stay = await _write_over(store, left)
            overwritten += len(left) - len(stay)
            sessions, left = sessions + len(left) - len(stay), stay
        dead = [record for record in piece if not record.live]
        if dead:
            heads = await store.heads([record.key for record in dead])
            dead = [record for record, head in zip(dead, heads, strict=True) if not _is_newer(head, record)]
            columns = [[getattr(record, name) for record in dead] for name in ("key", "epoch", "incarnation")]
            await store.delete(*columns)
            tombstones += len(dead)
        kept += len(left) + len(piece) - len(live) - len(dead)
        done += len(piece)
        told(done, total)
    await upkeep.renew()
    return Restored(sessions, tombstones, kept, overwritten)


async def _refuse_newer(store: Lasting, archive: Archive) -> None:
    found, names = 0, list[str]()
    for piece in archive.records():
        heads = await store.heads([record.key for record in piece])
        stale = [record.key for record, head in zip(piece, heads, strict=True) if _is_newer(head, record)]
        found += len(stale)
        names += [quoted(f"{key.model}/{key.id}", 512) for key in stale[: _TOLD - len(names)]]
    if found:
        raise NewerRecords(
            f"the store has {found} sessions in a newer state than the backup: {', '.join(names)}"
            f"{', …' if found > len(names) else ''}. Nothing was written: say --newer keep to leave them as they are,"
            " or --newer overwrite to set them back"
        )


def _is_newer(head: Record | None, record: Record) -> bool:
    """Whether what is stored would not be overwritten."""
    if head is None:
        return False
    if not record.live:
        return head.live and head.fence > record.epoch
    if not head.live:
        return head.epoch >= record.epoch
    return (head.epoch, head.position) > (record.epoch, record.position)


async def _write_over(store: Lasting, records: Sequence[Record]) -> list[Record]:
    """Writes records over newer ones, as a restore of a snapshot does: under an epoch above; those that stay.

    These are records that a newer release wrote.
    """
    left, stay = list(records), list[Record]()
    while left:
        heads = await store.heads([record.key for record in left])
        raised = list[Record]()
        for record, head in zip(left, heads, strict=True):
            if head is not None and head.epoch == NEWER:
                stay.append(record)
            elif head is None:
                raised.append(record)
            else:
                incarnation = max(head.incarnation, record.incarnation)
                raised.append(record._replace(epoch=head.epoch + 1, incarnation=incarnation))
        done = await store.save(raised) if raised else []
        left = [record for record, is_written in zip(raised, done, strict=True) if not is_written]
    return stay
