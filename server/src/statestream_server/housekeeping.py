"""Housekeeping: hibernates idle sessions, deletes those whose time is over, keeps the used ones from expiring.

Ages of rows are counted on a clock that nobody sets and that stands while the machine sleeps. The store counts by Unix
time, because processes come and go: a jump of that clock is believed only after a while, so that whoever uses a session
has had time to say so, and what is in use here is refreshed in the store before anything expires.
"""

from __future__ import annotations

import asyncio
import logging
import time

from statestream.contract import errors
from statestream_server.arrays import Ints
from statestream_server.engine.table import UNBOUND, Table
from statestream_server.server import Server
from statestream_server.settings import Durability

log = logging.getLogger(__name__)

_LONGEST_PAUSE = 30.0
_SLICE = 4096
"""Sleeping sessions refreshed at a time."""


class Calendar:
    """Unix time as far as it can be believed: what it jumps ahead counts only after a while."""

    def __init__(self, unix: float, seconds: float) -> None:
        """Begins with what the two clocks show: Unix time, and seconds on a clock that nobody sets."""
        self._unix = self._now = unix
        self._seconds = self._jumped = seconds

    def read(self, unix: float, seconds: float, *, patience: float) -> float:
        """What time it is; called again and again with what the two clocks show.

        A jump counts after `patience` seconds.
        """
        passed, shown = seconds - self._seconds, unix - self._unix
        if shown > passed + patience / 8:
            self._jumped = seconds
        self._seconds, self._unix = seconds, unix
        believed = seconds - self._jumped >= patience
        self._now = unix if believed else min(unix, self._now + passed)
        return self._now


async def keep(server: Server) -> None:
    """Looks after the sessions until it is cancelled."""
    unix, seconds = time.time(), time.monotonic()
    calendar, refreshed = Calendar(unix, seconds), seconds
    while True:
        settings = server.settings  # They may be others in each round.
        soonest = min(settings.retentions, default=_LONGEST_PAUSE)
        spans = (settings.hibernate_after, settings.ephemeral_retention, soonest)
        await asyncio.sleep(min(_LONGEST_PAUSE, *(span / 4 for span in spans)))
        seconds = time.monotonic()
        now = calendar.read(time.time(), seconds, patience=min(settings.ephemeral_retention, soonest))
        refresh = bool(settings.retentions) and seconds - refreshed > soonest / 4
        try:
            await tidy(server, seconds, refresh=refresh, unix=now)
        except errors.StoreUnavailable as error:
            log.warning("old sessions stay for now: %s", error.message)
            continue
        except Exception:
            log.exception("old sessions stay for now; a round of housekeeping failed")
            continue
        refreshed = seconds if refresh else refreshed


async def tidy(server: Server, now: float, *, refresh: bool, unix: float | None = None) -> None:
    """One round.

    Args:
        server: The server.
        now: Seconds on the clock of the rows.
        refresh: Tell the store of every session in use here, so that it does not take it for unused.
        unix: Unix time as far as the store is to go by it; None for what it is.

    Raises:
        StoreUnavailable: The rest waits for the next round.
    """
    settings = server.settings
    unix = time.time() if unix is None else unix
    await server.lease.refresh()  # What an emptied store has lost must not leave memory.
    rested = False
    for served in server.registry:
        table = served.table
        if table is None or not table.sessions:
            continue
        orphans = _sessions(table)
        orphans = orphans[table.ephemeral[orphans] & (table.owner[orphans] == UNBOUND)]
        await server.deletions.delete(table, orphans[table.used[orphans] < now - settings.ephemeral_retention])
        await server.sessions.hibernate(table, now - settings.hibernate_after)
        rows = _sessions(table)
        # The store counts the age of an ephemeral session although its caller is here.
        kept = table.ephemeral[rows] & (table.owner[rows] != UNBOUND)
        resting = table.used[rows] < now - settings.ephemeral_retention / 4
        rows = rows if refresh else rows[kept & resting]
        table.dirty[rows] = True
        rested |= bool(len(rows))
    if refresh:
        await _refresh_sleepers(server)
    if rested and settings.durability != Durability.NONE:
        await server.checkpointer.checkpoint()
    await server.store.expire(
        unix - settings.retention if settings.retention else 0.0,
        ephemeral_before=unix - settings.ephemeral_retention,
        tombs_before=unix - max(settings.tombstone_retention, *settings.retentions, 0.0),
        by_model={name: unix - span if span else 0.0 for name, span in settings.model_retention.items()},
    )


async def _refresh_sleepers(server: Server) -> None:
    """Tells the store of the sessions that sleep and that connected streams have."""
    sleepers = server.streams.sleepers()
    for start in range(0, len(sleepers), _SLICE):
        part = sleepers[start : start + _SLICE]
        await server.store.touch([sleeper.key for sleeper in part], [sleeper.epoch for sleeper in part])


def _sessions(table: Table) -> Ints:
    return table.resident()
