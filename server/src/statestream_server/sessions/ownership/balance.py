"""Balance: a server that came anew gets its share of the sessions, because the others ask their streams to move.

Nothing is taken from anybody (moves), and nobody decides for all: each server sees in the store who lives and how many
sessions each has. Behind a proxy that hashes, most of who is asked comes back to the server that asked, since only some
keys are the newcomer's; so servers ask on, a few at a time and each stream once, until they have no more than others or
nobody is left to ask. Only a newcomer starts it, so sessions do not wander.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from typing import Final

from statestream.contract import errors
from statestream_server.engine.table import Table
from statestream_server.sessions.lease import Lease
from statestream_server.sessions.ownership.moves import Moves
from statestream_server.sessions.ownership.streams import Streams
from statestream_server.stores.base import Peer, Store

log = logging.getLogger(__name__)

SLACK: Final = 1.1
"""Up to so many times the mean a server has its share."""
PORTION: Final = 0.2
"""Of the sessions that a server had when a newcomer came it asks for so many at a time."""
SETTLING: Final = 5.0
"""Seconds from the first sight of a newcomer until anybody is asked: it must listen, and a proxy must have found it."""
PATIENCE: Final = 120.0
"""Seconds after which nobody is asked any more because of a newcomer."""


def excess(owner: str, sessions: int, peers: Sequence[Peer]) -> int:
    """How many sessions a process has above the mean of all; 0 where it has its share.

    Args:
        owner: Its name.
        sessions: How many it has now.
        peers: All processes, as they said last.
    """
    others = [peer.sessions for peer in peers if peer.owner != owner]
    mean = (sessions + sum(others)) / (1 + len(others))
    return math.ceil(sessions - mean) if sessions > SLACK * mean + 1 else 0


class Balance:
    """Looks for newcomers, and gives them their share."""

    def __init__(
        self,
        store: Store,
        lease: Lease,
        streams: Streams,
        moves: Moves,
        tables: Callable[[], Sequence[Table]],
        clock: Callable[[], float],
    ) -> None:
        """Knows nobody yet; `clock` gives seconds that never go back."""
        self._store = store
        self._lease = lease
        self._streams = streams
        self._moves = moves
        self._tables = tables
        self._clock = clock
        self._known: frozenset[str] | None = None
        self._newest = self._portion = 0
        self._begins = self._until = -math.inf

    async def keep(self) -> None:
        """Looks again and again until it is cancelled: two beats apart, so that all have said what they have."""
        while True:
            try:
                await self.look()
            except errors.StoreUnavailable as error:
                log.info("who else serves is not known now: %s", error.message)
            except Exception:
                log.exception("sessions stay where they are; a look for other servers failed")
            await asyncio.sleep(2 * self._lease.beat_seconds)

    async def look(self) -> int:
        """One look; how many sessions were asked for.

        Raises:
            StoreUnavailable: The store does not say who lives.
        """
        peers = await self._store.peers()
        # The processes of one server share its port: a stream that leaves one comes to any of them.
        others = frozenset(peer.owner for peer in peers if peer.address != self._lease.address)
        came = others - self._known if self._known is not None else frozenset()
        self._known = others
        sessions, now = self._streams.handles, self._clock()
        if came:
            self._newest, self._begins, self._until = self._streams.newest, now + SETTLING, now + PATIENCE
            self._portion = math.ceil(PORTION * sessions)
            if sessions:
                log.info("%d servers came; some of the %d sessions here are asked to go there", len(came), sessions)
        if not self._begins <= now < self._until:
            return 0
        count = min(excess(self._lease.owner, sessions, peers), self._portion)
        if not count:
            return 0
        asked = self._moves.ask(self._tables(), count=count, newest=self._newest)
        if asked.sessions:
            log.info("asked %d streams to take %d sessions to other servers", asked.streams, asked.sessions)
        return asked.sessions
