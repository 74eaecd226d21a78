"""Writes: rows on their way to the store, captured between two batches, written beside them, settled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Ints, Positions, every
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import Table
from statestream_server.sessions import records
from statestream_server.sessions.layouts import Layout
from statestream_server.sessions.lease import Asked, Lease
from statestream_server.stores.base import Store
from statestream_server.stores.batches import Batch, joined

_CAPTURED = 512
"""Rows captured at a time, so that a checkpoint of many holds the loop up for a millisecond or two only."""
_CAPTURED_BYTES = 16 << 20
_WRITTEN = 4096
"""Rows of one write."""
_WRITTEN_BYTES = 64 << 20
MAX_RECORD_BYTES: Final = 64 << 20
"""The largest record: what is larger keeps those of others waiting, and some stores refuse it."""
_REST_SECONDS = 0.005
"""How often it is looked whether writes have ended."""


class _Capture(NamedTuple):
    """Rows as they were at one instant."""

    rows: Ints
    serials: Ints
    epochs: Positions
    positions: Positions
    records: Batch


class Writes:
    """What is on its way to the store."""

    def __init__(
        self, store: Store, engine: Engine, lease: Lease, on_durable: Callable[[Table, Ints], None] | None
    ) -> None:
        """Nothing is.

        Args:
            store: Where records go.
            engine: Whose batches must not run while rows are captured.
            lease: Names this process in records, and says why the store refuses them.
            on_durable: Hears of rows whose durable position rose.
        """
        self.large: list[tuple[Table, Ints]] = []
        """Rows that were found too large to be saved."""
        self.records = self.nbytes = 0
        """Records that the store took so far, and the bytes of their states and replies."""
        self._store = store
        self._engine = engine
        self._lease = lease
        self._on_durable = on_durable
        self._under_way: dict[int, tuple[Table, list[_Capture]]] = {}
        """What each write has captured; the store has not answered for it yet."""

    def rows(self, table: Table) -> Ints:
        """Rows of a table that are captured for a write whose end is not known."""
        captures = (one.rows for other, some in self._under_way.values() if other is table for one in some)
        return np.concatenate([np.empty(0, np.int64), *captures])

    async def rest(self, moving: Sequence[tuple[Table, Ints]]) -> None:
        """Returns when no write of these rows is on its way; none begins until they are dirty again.

        For sessions that move to another version: a write of the old one behind the claim would undo the move.
        """
        while True:
            for table, rows in moving:
                table.dirty[rows] = False
            if not any(np.isin(rows, self.rows(table)).any() for table, rows in moving):
                return
            await asyncio.sleep(_REST_SECONDS)

    async def save(self, table: Table, layout: Layout, dirty: Ints) -> None:
        """Writes those of the rows that are dirty still when their turn comes.

        Raises:
            StoreUnavailable: The store did not take them; they are dirty again.
        """
        sizes = records.sizes(layout, table.replies, dirty, table.position[dirty])
        for written in _pieces(sizes, _WRITTEN, _WRITTEN_BYTES):
            part, captures = dirty[written], list[_Capture]()
            self._under_way[id(captures)] = table, captures
            try:
                for captured in _pieces(sizes[written], _CAPTURED, _CAPTURED_BYTES):
                    if captures:
                        await asyncio.sleep(0)  # The loop and the engine have their turns between two captures.
                    captures.append(await self._capture(table, layout, part[captured]))
                asked = self._lease.ask()
                saved = await self._store.save(joined([capture.records for capture in captures]))
            except BaseException:
                for capture in captures:
                    same = table.serial[capture.rows] == capture.serials
                    table.dirty[capture.rows[same]] = True
                raise
            finally:
                del self._under_way[id(captures)]
            answers = iter(saved)
            fenced = [
                self._settle(table, capture, np.fromiter(answers, np.bool_, len(capture.rows)), asked)
                for capture in captures
            ]
            for rows in fenced:
                if len(rows):  # The store says why; those that are not ours any more are dropped.
                    await self._lease.check(table, rows)

    async def _capture(self, table: Table, layout: Layout, rows: Ints) -> _Capture:
        """Takes those of the rows that are dirty, between two batches; they are not dirty any more."""
        async with self._engine.still():
            if self._engine.broken:
                raise errors.InternalError("the engine stopped in the midst of a batch; its rows are not saved")
            rows = rows[table.dirty[rows] & (table.epoch[rows] > 0)]
            large = records.sizes(layout, table.replies, rows, table.position[rows]) > MAX_RECORD_BYTES
            if large.any():
                self.large.append((table, rows[large]))
                rows = rows[~large]
            serials, epochs, positions = table.serial[rows], table.epoch[rows], table.position[rows]
            states, replies = table.rows.read(rows), table.replies
            blobs = records.encode(
                layout, states, table.acked[rows], table.request[rows], replies, rows,
                origins=table.origin[rows], cursors=table.cursors_of(rows),
            )  # fmt: skip
            ids = table.ids
            made = Batch(
                table.tenant[rows].tolist(),
                [ids[row] or "" for row in rows.tolist()],
                table.model.name,
                table.model.version,
                self._lease.owner,
                epochs,
                positions,
                table.incarnation[rows],
                table.writer[rows],
                table.ephemeral[rows],
                blobs,
            )
            capture = _Capture(rows, serials, epochs, positions, made)
            table.dirty[rows] = False
            return capture

    def _settle(self, table: Table, capture: _Capture, saved: np.ndarray, asked: Asked) -> Ints:
        """Notes what a save came to; the rows that were refused although nobody claims them here."""
        rows = capture.rows
        same = table.serial[rows] == capture.serials
        current = same & (table.epoch[rows] == capture.epochs)
        good = current & saved
        usual = every(good)
        kept, positions = (rows, capture.positions) if usual else (rows[good], capture.positions[good])
        self.records += int(np.count_nonzero(saved))
        self.nbytes += capture.records.nbytes
        self._lease.answered(asked, table, kept)
        table.durable[kept] = np.maximum(table.durable[kept], positions)
        if len(kept) and self._on_durable is not None:
            self._on_durable(table, kept)
        if usual:
            return rows[:0]
        # A row that was claimed anew meanwhile has another epoch. What its claim found stored it counts as durable;
        # where this save came after, it was refused.
        table.dirty[rows[same & ~current & (table.durable[rows] < table.position[rows])]] = True
        table.dirty[rows[same & ~saved]] = True
        fenced: Ints = rows[current & ~saved & ~table.claiming[rows]]
        return fenced


def check_size(session: str, size: int) -> None:
    """Checks that a store takes a record.

    Raises:
        RecordTooLarge: It does not.
    """
    if size > MAX_RECORD_BYTES:
        raise too_large(f"session {session!r}", size)


def too_large(what: str, size: int) -> errors.RecordTooLarge:
    """What is said of a record that is not stored."""
    return errors.RecordTooLarge(
        f"the record of {what} has {size} bytes; the largest that is stored has {MAX_RECORD_BYTES}. What was applied is"
        " in memory alone: acknowledge its replies, or send shorter chunks, and it is saved again",
        metadata={"bytes": str(size), "most": str(MAX_RECORD_BYTES)},
    )


def _pieces(sizes: Ints, most: int, most_bytes: int) -> Iterator[slice]:
    """Cuts rows into pieces of so many rows and bytes at most; one that is larger alone is a piece."""
    if 0 < len(sizes) <= most and int(sizes.sum()) <= most_bytes:
        yield slice(0, len(sizes))
        return
    start, ends = 0, np.cumsum(sizes)
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        fit = int(np.searchsorted(ends, before + most_bytes, side="right"))
        end = min(start + most, max(start + 1, fit))
        yield slice(start, end)
        start = end
