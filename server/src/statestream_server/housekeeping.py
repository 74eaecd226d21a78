"""Housekeeping: hibernates idle sessions, deletes those whose time is over, keeps the used ones from expiring."""

from __future__ import annotations

import asyncio
import logging
import time

import numpy as np

from statestream import errors
from statestream_server.engine.table import UNBOUND, Table
from statestream_server.server import Server

log = logging.getLogger(__name__)

_LONGEST_PAUSE = 30.0


async def keep(server: Server) -> None:
    """Looks after the sessions until it is cancelled."""
    settings = server.settings
    spans = [settings.hibernate_after, settings.ephemeral_retention, settings.retention or _LONGEST_PAUSE]
    pause = min(_LONGEST_PAUSE, *(span / 4 for span in spans))
    refreshed = time.time()
    while True:
        await asyncio.sleep(pause)
        now = time.time()
        refresh = bool(settings.retention) and now - refreshed > settings.retention / 4
        try:
            await tidy(server, now, refresh=refresh)
        except errors.StoreUnavailable as error:
            log.warning("old sessions stay for now: %s", error.message)
            continue
        except Exception:
            log.exception("old sessions stay for now; a round of housekeeping failed")
            continue
        refreshed = now if refresh else refreshed


async def tidy(server: Server, now: float, *, refresh: bool) -> None:
    """One round.

    Args:
        server: The server.
        now: Unix time.
        refresh: Save every session in memory again, so that the store does not take it for unused.

    Raises:
        StoreUnavailable: The rest waits for the next round.
    """
    settings = server.settings
    before = now - settings.ephemeral_retention
    await server.contact.refresh()  # What an emptied store has lost must not leave memory.
    for served in server.registry:
        table = served.table
        if table is None or not table.sessions:
            continue
        orphans = _sessions(table)
        orphans = orphans[table.ephemeral[orphans] & (table.owner[orphans] == UNBOUND)]
        await server.sessions.delete(table, orphans[table.used[orphans] < before])
        await server.sessions.hibernate(table, now - settings.hibernate_after)
        rows = _sessions(table)
        # The store counts the age of an ephemeral session although its caller is here.
        kept = table.ephemeral[rows] & (table.owner[rows] != UNBOUND)
        resting = table.used[rows] < now - settings.ephemeral_retention / 4
        table.dirty[rows if refresh else rows[kept & resting]] = True
    oldest = now - settings.retention if settings.retention else 0.0
    await server.store.expire(oldest, ephemeral_before=before)


def _sessions(table: Table) -> np.ndarray:
    return np.fromiter(table.row_of.values(), np.int64, table.sessions)
