"""The saver: writes dirty rows to the store, and lets replies out when the mode allows it.

In mode `none` nothing is written; in `interval` a checkpoint runs every so often; in `sync` a reply waits
until the record that holds it is written. A capture takes state, position and replies of one instant,
between two batches; the write itself happens beside them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from statestream import errors
from statestream_server.arrays import Ints, Positions
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import Table
from statestream_server.sessions import records
from statestream_server.sessions.contact import Asked, Contact, Release
from statestream_server.sessions.records import Layout
from statestream_server.settings import Durability
from statestream_server.stores.base import Record, Store

log = logging.getLogger(__name__)

Rows = Callable[[Table, Ints], None]

_CAPTURED = 512
"""Rows captured at a time, so that a checkpoint of many holds the loop up for a millisecond or two only."""
_WRITTEN = 4096
"""Rows of one write."""
_BACKOFF_SECONDS = 0.2
"""How long the saver waits after the store did not answer."""


@dataclass(frozen=True, slots=True)
class _Capture:
    """Rows as they were at one instant."""

    rows: Ints
    serials: Ints
    epochs: Positions
    positions: Positions
    records: list[Record]


class Saver:
    """Keeps the store up to date with the tables."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        contact: Contact,
        mode: Durability,
        interval: float,
        *,
        on_durable: Rows,
        on_fenced: Rows,
    ) -> None:
        """A saver that is not started.

        Args:
            store: Where records go.
            engine: Whose batches must not run while rows are captured.
            contact: Holds replies while it is open whose sessions they are; names this process in records.
            mode: When replies may leave.
            interval: Seconds between checkpoints in interval mode.
            on_durable: Hears of rows whose durable position rose; in sync mode the replies tell it.
            on_fenced: Hears of rows whose record a newer owner has.
        """
        self.mode = mode
        self.failures = 0
        """Writes that the store refused, since the last one that went well."""
        self._store = store
        self._engine = engine
        self._contact = contact
        self._interval = interval
        self._on_durable = on_durable
        self._on_fenced = on_fenced
        self._layouts: dict[int, tuple[Table, Layout]] = {}
        self._aside = set[asyncio.Future[None]]()
        """Calls of `write` under way."""
        self._asides = 0
        """How many there were so far."""
        self._writing: dict[int, tuple[Table, list[_Capture]]] = {}
        """What each write under way has captured; the store has not answered for it yet."""
        self._waiting: list[Release] = []
        self._releasing = False
        self._wanted = asyncio.Event()
        self._cycle: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to save."""
        if self.mode != Durability.NONE:
            self._task = asyncio.create_task(self._run(), name="saver")

    async def failed(self) -> None:
        """Never returns while all is well.

        Raises:
            Exception: What stopped the saver; nothing is written any more, so the process must end.
        """
        await (asyncio.shield(self._task) if self._task is not None else asyncio.Event().wait())

    async def close(self) -> None:
        """Saves what is dirty, then stops.

        Raises:
            StoreUnavailable: The last save failed; what it should have written is lost with the process.
        """
        await self._contact.released()
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        await self._save()
        self._let_go()

    def add(self, table: Table, layout: Layout) -> None:
        """Watches a table."""
        self._layouts[id(table)] = (table, layout)

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
        """Whether everything applied to `rows` so far may be answered at once; else see `release`."""
        return self.mode != Durability.SYNC and self._contact.lets_go(table, rows)

    def release(self, table: Table, rows: Ints, release: Release) -> None:
        """Calls `release` when everything applied to `rows` so far may be answered."""
        if self.mode == Durability.SYNC:
            # What is written was ours when it was written, and whoever takes over has the reply too.
            self._waiting.append(release)
            self._wanted.set()
        else:
            self._contact.release(table, rows, release)

    def needed(self, table: Table) -> Ints:
        """Rows of a table that must stay in memory although they are not dirty.

        Their replies wait, or their record is on its way: where the store has lost the one before, and this one does
        not arrive, nobody else has them.
        """
        writing = [one.rows for other, captures in self._writing.values() if other is table for one in captures]
        return np.concatenate([self._contact.answering(table), *writing])

    def register_again(self) -> None:
        """Saves every session, because the store has none of them any more."""
        for table in self.tables():
            table.dirty[np.fromiter(table.row_of.values(), np.int64, table.sessions)] = True
        self._wanted.set()

    async def released(self) -> None:
        """Returns when every reply that was given to `release` so far has left."""
        while self._waiting or self._releasing:
            self._wanted.set()
            if self._cycle is None:
                self._cycle = asyncio.get_running_loop().create_future()
            try:
                await asyncio.shield(self._cycle)
            except errors.StoreUnavailable:
                continue
        await self._contact.released()

    async def flush(self, table: Table, rows: Ints) -> None:
        """Returns when everything applied to `rows` so far is durable; at once in mode `none`.

        Raises:
            StoreUnavailable: The store cannot be written; the rows stay dirty and will be tried again.
        """
        if self.mode == Durability.NONE:
            return
        serials, targets = table.serial[rows].copy(), table.position[rows].copy()
        while ((table.serial[rows] == serials) & (table.dirty[rows] | (table.durable[rows] < targets))).any():
            self._wanted.set()
            if self._cycle is None:
                self._cycle = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._cycle)

    async def write(self, table: Table, rows: Ints) -> None:
        """Writes rows, by itself and at once; does nothing in mode `none`. Rows that a newer owner has stay dirty.

        For rows that are being claimed: nobody steps them meanwhile, and no checkpoint drops them.

        Raises:
            StoreUnavailable: The store cannot be written; rows that are not written stay dirty.
        """
        if self.mode != Durability.NONE:
            table.dirty[rows] = True
            ended = asyncio.get_running_loop().create_future()
            self._aside.add(ended)
            self._asides += 1
            try:
                await self._save_rows(table, self.layout(table), rows)
            finally:
                self._aside.discard(ended)
                ended.set_result(None)

    async def checkpoint(self) -> None:
        """Returns once everything that is dirty now is written; at once in mode `none`.

        Raises:
            StoreUnavailable: The store cannot be written; the rows stay dirty and will be tried again.
        """
        if self._task is None:
            return
        self._wanted.set()
        if self._cycle is None:
            self._cycle = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._cycle)

    async def _run(self) -> None:
        while True:
            timeout = None if self.mode == Durability.SYNC else self._interval
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._wanted.wait()
            self._wanted.clear()
            cycle, self._cycle = self._cycle, None
            waiting, self._waiting = self._waiting, []
            self._releasing = bool(waiting)
            try:
                await (self._save_for_replies() if waiting else self._save())
            except errors.StoreUnavailable as error:
                self.failures += 1
                if self.failures == 1:
                    log.error("the store cannot be written, sessions go on without it: %s", error)
                self._waiting = waiting + self._waiting
                self._wanted.set()
                if cycle is not None:
                    cycle.set_exception(error)
                    cycle.exception()
                await asyncio.sleep(_BACKOFF_SECONDS)
                continue
            if self.failures:
                log.info("the store can be written again, after %d failures", self.failures)
                self.failures = 0
            for release in waiting:
                release()
            self._releasing = False
            if cycle is not None:
                cycle.set_result(None)

    def _let_go(self) -> None:
        waiting, self._waiting = self._waiting, []
        for release in waiting:
            release()

    async def _save_for_replies(self) -> None:
        """Writes every row that is dirty now; what `write` took before is written then, too."""
        before = self._asides - len(self._aside)
        await self._save()
        if self._asides != before:
            if self._aside:
                await asyncio.wait(self._aside)
            await self._save()  # What such a call could not write is dirty again.

    async def _save(self) -> None:
        """Writes every row that is dirty now."""
        for table, layout in list(self._layouts.values()):
            await self._save_rows(table, layout, np.flatnonzero(table.dirty & (table.epoch > 0)))

    async def _save_rows(self, table: Table, layout: Layout, dirty: Ints) -> None:
        """Writes those of the rows that are dirty still when their turn comes."""
        for start in range(0, len(dirty), _WRITTEN):
            part, captures = dirty[start : start + _WRITTEN], list[_Capture]()
            self._writing[id(captures)] = table, captures
            try:
                for first in range(0, len(part), _CAPTURED):
                    if captures:
                        await asyncio.sleep(0)  # The loop and the engine have their turns between two captures.
                    captures.append(await self._capture(table, layout, part[first : first + _CAPTURED]))
                asked = self._contact.ask()
                saved = await self._store.save([record for capture in captures for record in capture.records])
            except BaseException:
                for capture in captures:
                    same = table.serial[capture.rows] == capture.serials
                    table.dirty[capture.rows[same]] = True
                raise
            finally:
                del self._writing[id(captures)]
            answers = iter(saved)
            for capture in captures:
                self._settle(table, capture, np.fromiter(answers, np.bool_, len(capture.rows)), asked)

    async def _capture(self, table: Table, layout: Layout, rows: Ints) -> _Capture:
        """Takes those of the rows that are dirty, between two batches; they are not dirty any more."""
        async with self._engine.still():
            if self._engine.broken:
                raise errors.InternalError("the engine stopped in the midst of a batch; its rows are not saved")
            rows = rows[table.dirty[rows] & (table.epoch[rows] > 0)]
            serials, epochs, positions = table.serial[rows], table.epoch[rows], table.position[rows]
            states, replies = table.rows.read(rows), table.replies
            blobs = records.encode(layout, states, table.acked[rows], table.request[rows], replies, rows)
            columns = zip(
                table.keys(rows),
                repeat(table.model.version),
                epochs.tolist(),
                positions.tolist(),
                table.writer[rows].tolist(),
                table.incarnation[rows].tolist(),
                table.ephemeral[rows].tolist(),
                blobs,
                repeat(0.0),
                repeat(self._contact.owner),
            )
            capture = _Capture(rows, serials, epochs, positions, list(map(Record._make, columns)))
            table.dirty[rows] = False
            return capture

    def _settle(self, table: Table, capture: _Capture, saved: np.ndarray, asked: Asked) -> None:
        rows = capture.rows
        same = table.serial[rows] == capture.serials
        # A row that was claimed anew meanwhile has another epoch: what this save did is not about it.
        current = same & (table.epoch[rows] == capture.epochs)
        kept = rows[current & saved]
        self._contact.answered(asked, table, kept)
        table.durable[kept] = np.maximum(table.durable[kept], capture.positions[current & saved])
        fenced = current & ~saved & ~table.claiming[rows]
        table.dirty[rows[same & ~saved & ~fenced]] = True
        if len(kept) and self.mode == Durability.INTERVAL:
            self._on_durable(table, kept)
        if fenced.any():
            self._on_fenced(table, rows[fenced])
