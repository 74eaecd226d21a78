"""Deletions: sessions end for good, in the store first; what it does not answer is asked until it does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Bools, Ints
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import UNBOUND, Claiming, Table
from statestream_server.sessions.checkpointer import Checkpointer
from statestream_server.sessions.lease import Lease
from statestream_server.sessions.ownership.evictions import Evictions
from statestream_server.sessions.ownership.tasks import Tasks
from statestream_server.sessions.ownership.turns import Turns
from statestream_server.stores.base import Key, Store

_DELETED = "the session was deleted"
_PAUSE_SECONDS = 0.2
"""How long a store that did not answer is left alone."""


class Deletions:
    """Deletes sessions, each in its turn."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        checkpointer: Checkpointer,
        lease: Lease,
        evictions: Evictions,
        turns: Turns,
        tasks: Tasks,
    ) -> None:
        """Nothing is deleted."""
        self._engine = engine
        self._store = store
        self._checkpointer = checkpointer
        self._lease = lease
        self._evictions = evictions
        self._turns = turns
        self._tasks = tasks
        self._asking: set[asyncio.Task[None]] = set()

    async def delete(self, table: Table, rows: Ints, *, asker: int = UNBOUND) -> Bools:
        """Deletes sessions as they are claimed now, once what is queued for them now has run.

        One that leaves memory meanwhile is deleted all the same; one that is claimed anew meanwhile stays. Cancelled
        before the store is asked, nothing happened.

        Args:
            table: Their table.
            rows: [n] their rows.
            asker: The stream that asked, which hears of it by its answer; others that have them are told.

        Returns:
            [n] which are gone; the others have been claimed anew.

        Raises:
            StoreUnavailable: What was deleted is not known. The sessions go on; those that are gone are told so.
        """
        named = np.asarray([table.ids[row] is not None and table.epoch[row] > 0 for row in rows.tolist()], np.bool_)
        gone, rows = np.ones(len(named), np.bool_), rows[named]
        if not len(rows):
            return gone
        keys, incarnations = table.keys(rows), table.incarnation[rows].tolist()
        turn, claiming, claims = self._turns.take_all(keys), Claiming(), table.claims(rows)

        def here() -> Bools:
            return table.are_claimed(rows, claims)

        async def delete() -> Bools:
            try:
                claiming.mark(table, rows[here()])
                asked = self._store.delete(keys, claims[1].tolist(), incarnations)
                done = await self._spared(keys, claims[1].tolist(), await asked)
                async with self._engine.still():
                    for which, error in (
                        (done, errors.SessionNotFound(_DELETED)),
                        (~done, errors.SessionMoved("another server took the session over")),
                    ):
                        left = rows[here() & which]
                        if len(left):
                            self._evictions.let_go(table, left, error, asker if which is done else UNBOUND)
                return done
            except errors.StoreUnavailable:
                claiming.end()
                self._ask_later(table, rows[here()])
                raise
            finally:
                claiming.end()
                turn.end()
                self._checkpointer.look_again()

        try:
            await turn.come()
            await self._engine.settled(table, rows[here()])
        except BaseException:
            turn.end()
            raise
        gone[named] = await self._tasks.finish(delete())
        return gone

    async def _spared(self, keys: Sequence[Any], epochs: Sequence[int], answers: Sequence[bool]) -> Bools:
        """Which of some sessions are gone, as the answers to their deletion were: a newer claim spares its session."""
        gone = np.asarray(answers, np.bool_)
        unsure = np.flatnonzero(~gone).tolist()
        if unsure:
            heads = await self._store.heads([keys[place] for place in unsure])
            for place, head in zip(unsure, heads, strict=True):
                gone[place] = head is None or not head.live or head.fence <= epochs[place]
        return gone

    def _ask_later(self, table: Table, rows: Ints) -> None:
        """Asks the store, until it answers, what has become of rows."""

        async def ask() -> None:
            left = rows
            while len(left):
                try:
                    left = await self._lease.check(table, left)
                except errors.StoreUnavailable:
                    await asyncio.sleep(_PAUSE_SECONDS)

        if len(rows):
            task = asyncio.create_task(ask(), name="session-check")
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def delete_stored(self, key: Key, epoch: int, incarnation: int) -> bool:
        """Deletes a session that is not in memory; False where a newer claim than that epoch has it.

        Raises:
            StoreUnavailable: What was deleted is not known.
        """

        async def delete() -> bool:
            try:
                answers = await self._store.delete([key], [epoch], [incarnation])
                return bool((await self._spared([key], [epoch], answers)).all())
            finally:
                turn.end()

        turn = self._turns.take(key.tenant, key.model, [key.id])
        try:
            await turn.come()
        except BaseException:
            turn.end()
            raise
        return await self._tasks.finish(delete())
