"""The checkpointer: writes dirty rows to the store, and lets replies out when the mode allows it.

In mode `none` nothing is written; in `interval` a checkpoint runs every so often; in `sync` a reply waits
until the record that holds it is written. A capture takes state, position and replies of one instant,
between two batches; the write itself happens beside them. A session whose record is too large is not durable: it
alone hears of it, and goes on being saved once its replies are acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Ints
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import Table
from statestream_server.sessions import records
from statestream_server.sessions.layouts import Layout
from statestream_server.sessions.lease import Lease
from statestream_server.sessions.releases import Release, Withheld, rows_of
from statestream_server.sessions.writes import Writes, too_large
from statestream_server.settings import Durability
from statestream_server.stores.base import Store

log = logging.getLogger(__name__)

TOOK: Final = 17
"""Durations by powers of two of milliseconds: below 1, 2, 4, … up to 33 s, and above."""
_BACKOFF_SECONDS = 0.2
"""How long the checkpointer waits after the store did not answer."""
_ENOUGH: Final = 128
"""Rows of a save that waits for no more: what it costs once is little then, and meanwhile the loop has others."""
_MOST_TURNS: Final = 32
"""Turns of the loop for which a save that is wanted waits at most, for others of the same moment to join it: where each
is short it begins before `_MOST_SECONDS` are over."""
_MOST_SECONDS: Final = 0.002
"""After so long it waits for no further turn."""
_AGAIN_SECONDS = 0.01
"""How long it waits for a claim that is on its way, before it looks at the row again."""


class Unsaved:
    """What the store lacks of the tables, and whether it is to be saved at once."""

    def __init__(self, tables: Callable[[], Iterable[Table]]) -> None:
        """Nothing; `tables` gives the tables of all sessions."""
        self._tables = tables
        self.wanted = asyncio.Event()
        """Set where a save is due before the interval is over."""

    def everything(self) -> None:
        """Every session is to be saved, because the store has none of them any more."""
        for table in self._tables():
            table.dirty[table.resident()] = True
        self.wanted.set()


class Checkpointer:
    """Keeps the store up to date with the tables."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        lease: Lease,
        mode: Durability,
        interval: float,
        unsaved: Unsaved,
        *,
        on_durable: Callable[[Table, Ints], None],
    ) -> None:
        """A checkpointer that is not started.

        Args:
            store: Where records go.
            engine: Whose batches must not run while rows are captured.
            lease: Holds replies while it is open whose sessions they are; names this process in records.
            mode: When replies may leave.
            interval: Seconds between checkpoints in interval mode.
            unsaved: Says that a save is due.
            on_durable: Hears of rows whose durable position rose; in sync mode the replies tell it.
        """
        self.mode = mode
        self.unsaved = unsaved
        self.failures = 0
        """Writes that the store refused, since the last one that went well."""
        self.writes = Writes(store, engine, lease, on_durable if mode == Durability.INTERVAL else None)
        """What is on its way to the store."""
        self.took = [0] * TOOK
        """Checkpoints that went well and wrote something, by their seconds: index i has those of less than 2**i ms."""
        self.seconds = 0.0
        """Seconds of all of them."""
        self.slow = math.inf
        """Seconds after which one is worth a line in the log."""
        self._behind_since: float | None = None
        self._engine = engine
        self._lease = lease
        self._interval = interval
        self._layouts: dict[int, tuple[Table, Layout]] = {}
        self._waiting: list[Withheld] = []
        self._wanted = unsaved.wanted
        self._cycle: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to save."""
        if self.mode != Durability.NONE:
            self._behind_since = time.monotonic() if self.mode == Durability.INTERVAL else None
            self._task = asyncio.create_task(self._run(), name="checkpointer")

    async def failed(self) -> None:
        """Never returns while all is well.

        Raises:
            Exception: What stopped the checkpointer; nothing is written any more, so the process must end.
        """
        await (asyncio.shield(self._task) if self._task is not None else asyncio.Event().wait())

    async def close(self) -> None:
        """Saves what is dirty, then stops.

        Raises:
            StoreUnavailable: The last save failed; what it should have written is lost with the process.
        """
        await self._lease.released()
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        await self._save()
        gone = errors.Draining("the server left before the chunk was durable; send it again to its successor")
        for held in self._waiting:
            if not self._let_go(held):
                held.let_go(np.ones(len(held.places), np.bool_), gone)
        self._waiting = []

    def add(self, table: Table, fingerprint: str) -> None:
        """Watches a table, whose model runs on what `fingerprint` says."""
        self._layouts[id(table)] = (table, Layout.of(table.model, table.rows.columns, fingerprint))

    def remove(self, table: Table) -> None:
        """Watches it no longer."""
        del self._layouts[id(table)]

    def tables(self) -> list[Table]:
        """The tables it watches."""
        return [table for table, _ in self._layouts.values()]

    def layout(self, table: Table) -> Layout:
        """What a table's records look like."""
        return self._layouts[id(table)][1]

    def lets_go(self, table: Table, rows: Ints) -> bool:
        """Whether replies may leave at once: in mode `sync`, where it is asked, never; see `release`."""
        return False

    def lag(self) -> float:
        """Seconds that the store may be behind of what was applied; 0 where it lacks nothing, or is to have nothing."""
        if self.mode == Durability.NONE or self._behind_since is None:
            return 0.0
        if not any(bool(table.dirty.any()) for table, _ in self._layouts.values()):
            return 0.0
        return time.monotonic() - self._behind_since

    def release(self, table: Table, rows: Ints, release: Release) -> None:
        """Calls `release` when everything applied to `rows` so far is written.

        What is written was ours when it was written, and whoever takes over has the reply too.
        """
        if self._behind_since is None:
            self._behind_since = time.monotonic()
        self._waiting.append(Withheld.of(table, rows, release))
        self._wanted.set()

    def needed(self, table: Table) -> Ints:
        """Rows of a table that must stay in memory although they are not dirty.

        Their replies wait, or their record is on its way: where the store has lost the one before, and this one does
        not arrive, nobody else has them.
        """
        return np.concatenate([self._lease.answering(table), self.writes.rows(table), rows_of(table, self._waiting)])

    def look_again(self) -> None:
        """A claim that was on its way is not so any more: replies that wait for that may leave."""
        if self._waiting:
            self._wanted.set()
        self._lease.look_again()

    async def released(self) -> None:
        """Returns when every reply that was given to `release` so far has left; later ones hold nobody up."""
        asked = list(self._waiting)
        while any(len(held.places) for held in asked):
            with contextlib.suppress(errors.StoreUnavailable):
                await self._round()
            if any(len(held.places) for held in asked):
                await asyncio.sleep(_AGAIN_SECONDS)
        await self._lease.released()

    async def flush(self, table: Table, rows: Ints) -> None:
        """Returns when everything applied to `rows` so far is durable; at once in mode `none`.

        Rows that are claimed anew meanwhile, or leave, are not waited for: see then whose they are.

        Raises:
            StoreUnavailable: The store cannot be written; the rows stay dirty and will be tried again.
            RecordTooLarge: A row cannot be saved as it is.
        """
        for error in (await self.flush_each(table, rows)).values():
            raise error

    async def flush_each(self, table: Table, rows: Ints) -> dict[int, errors.StatestreamError]:
        """As `flush`, but returns why rows are not durable, by their place, in place of raising it."""
        failures = dict[int, errors.StatestreamError]()
        if self.mode == Durability.NONE:
            return failures
        claims, targets = table.claims(rows), table.position[rows].copy()
        wanted = table.dirty[rows] | (table.durable[rows] < targets)
        while wanted.any():
            try:
                await self._round()
            except errors.StoreUnavailable as error:
                left = np.flatnonzero(wanted & table.are_claimed(rows, claims) & (table.durable[rows] < targets))
                return failures | dict.fromkeys(left.tolist(), error)
            wanted = table.are_claimed(rows, claims) & (table.durable[rows] < targets)
            if not wanted.any():
                break
            wanted[list(failures)] = False
            for place in np.flatnonzero(np.isin(rows, self._too_large(table)) & wanted).tolist():
                failures[place] = self._refusal(table, rows[place:])
                wanted[place] = False
            if wanted.any():
                await asyncio.sleep(_AGAIN_SECONDS)
        return failures

    async def checkpoint(self) -> None:
        """Returns once everything that is dirty now is written; at once in mode `none`.

        Raises:
            StoreUnavailable: The store cannot be written; the rows stay dirty and will be tried again.
        """
        if self._task is not None:
            await self._round()

    async def _round(self) -> None:
        """Returns after a round of the checkpointer that begins from now on."""
        self._wanted.set()
        if self._cycle is None:
            self._cycle = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._cycle)

    async def _run(self) -> None:
        while True:
            timeout = None if self.mode == Durability.SYNC and not self._waiting else self._interval
            if not self._wanted.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout):
                        await self._wanted.wait()
            await self._gathered()
            self._wanted.clear()
            cycle, self._cycle = self._cycle, None
            count, began, written = len(self._waiting), time.monotonic(), self.writes.records
            try:
                await self._save()
            except errors.StoreUnavailable as error:
                self.failures += 1
                if self.failures == 1:
                    log.error("the store cannot be written, sessions go on without it: %s", error)
                self._wanted.set()
                if cycle is not None:
                    cycle.set_exception(error)
                    cycle.exception()
                await asyncio.sleep(_BACKOFF_SECONDS)
                continue
            self._behind_since = began if self.mode == Durability.INTERVAL or count < len(self._waiting) else None
            if self.writes.records > written:
                seconds = time.monotonic() - began
                self.seconds += seconds
                self.took[min(int(seconds * 1e3).bit_length(), TOOK - 1)] += 1
                if seconds > self.slow:
                    log.warning(
                        "slow store: a checkpoint of %d sessions took %.3f s; %d answers waited for it",
                        self.writes.records - written,
                        seconds,
                        sum(len(held.places) for held in self._waiting[:count]),
                        extra={"seconds": round(seconds, 3)},
                    )
            if self.failures:
                log.info("the store can be written again, after %d failures", self.failures)
                self.failures = 0
            going, self._waiting = self._waiting[:count], self._waiting[count:]
            self._waiting = [held for held in going if not self._let_go(held)] + self._waiting
            if cycle is not None:
                cycle.set_result(None)

    async def _gathered(self) -> None:
        """Returns when what the engine is about to run has run, or is enough, or a moment is over.

        A save of a few costs nearly what one of a hundred does. An idle engine has nothing that would be waited for.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(_MOST_TURNS):
            if not self._engine.due or loop.time() - began > _MOST_SECONDS or self._dirty() >= _ENOUGH:
                return
            await asyncio.sleep(0)

    def _dirty(self) -> int:
        return sum([int(np.count_nonzero(table.dirty)) for table, _ in self._layouts.values()])

    def _let_go(self, held: Withheld) -> bool:
        """Lets those replies leave that are durable, or not their callers' any more; whether none is left.

        What remains is of rows whose claim is on its way, or cannot be saved: that is refused.
        """
        ready = ~held.still() | (held.table.durable[held.waiting] >= held.targets[held.places])
        if held.let_go(ready):
            return True
        large = np.isin(held.waiting, self._too_large(held.table))
        if not large.any():
            return False
        return held.let_go(large, self._refusal(held.table, held.waiting[large]))

    def _too_large(self, table: Table) -> Ints:
        return np.concatenate([np.empty(0, np.int64), *(rows for other, rows in self.writes.large if other is table)])

    def _refusal(self, table: Table, rows: Ints) -> errors.RecordTooLarge:
        """Why the first of rows is not saved."""
        size = int(records.sizes(self.layout(table), table.replies, rows[:1])[0])
        return too_large(f"session {table.ids[int(rows[0])]!r}", size)

    async def _save(self) -> None:
        """Writes every row that is dirty now."""
        self.writes.large = []
        for table, layout in list(self._layouts.values()):
            rows = np.flatnonzero(table.dirty & (table.epoch > 0))
            if len(rows):
                await self.writes.save(table, layout, rows)
