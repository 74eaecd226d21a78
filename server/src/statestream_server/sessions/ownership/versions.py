"""Moving sessions to another version of their model: what must be the same, and what is carried.

A session moves with its position, its state and its kept replies. Its state means the same where the columns of both
versions' rows have the same names, dtypes and shapes, in the same order; nothing else is compared, the weights may
differ. A record says by digests what it holds, so the version it was written by need not be there any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Ints
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import Table
from statestream_server.models.rows import Column
from statestream_server.registry import Registry
from statestream_server.sessions import records
from statestream_server.sessions.checkpointer import Checkpointer
from statestream_server.sessions.ownership.held import Held
from statestream_server.sessions.ownership.openings import Carried, Opening
from statestream_server.sessions.records import Stored
from statestream_server.stores.base import NEWER, Mode, Record, Store


class Move(NamedTuple):
    """A session on its way to another version.

    Attributes:
        stored: It as that version has it; None where it starts as the model says.
        carried: What its claim carries.
    """

    stored: Stored | None
    carried: Carried


class Versions:
    """Knows which sessions can move to a version, and what they take along."""

    def __init__(self, registry: Registry, engine: Engine, checkpointer: Checkpointer, store: Store) -> None:
        """Sessions are rows of the registry's tables, or records of the store."""
        self._registry = registry
        self._engine = engine
        self._checkpointer = checkpointer
        self._store = store

    async def prepare(
        self, opening: Opening, table: Table, held: Held
    ) -> tuple[dict[int, Move], dict[int, errors.StatestreamError]]:
        """Makes what sessions of other versions take along to `table`, and finds those that cannot move.

        Nothing is claimed yet. Each claim carries its session in the form of `table`'s version, so that it is of one
        version or the other whatever happens on the way.

        Args:
            opening: Asks for the move.
            table: Of the version that is asked for.
            held: Where the sessions are in memory; nothing is queued for them.

        Returns:
            Those that move, and why others cannot, by their place.

        Raises:
            StoreUnavailable: The stored ones cannot be read.
        """
        moves, refused = dict[int, Move](), dict[int, errors.StatestreamError]()
        if opening.mode in (Mode.CREATE, Mode.REPLACE):
            return moves, refused
        stored = np.flatnonzero(~held.here).tolist()
        keys = opening.keys(stored)
        for place, record in zip(stored, await self._store.load(keys) if keys else (), strict=True):
            try:
                # Below an epoch that was seen the store forgot what was between: such a session is none.
                if record is not None and opening.seen_epochs[place] <= record.epoch != NEWER:
                    move = self._of_record(opening, place, table, record)
                    if move is not None:
                        moves[place] = move
            except errors.StatestreamError as error:
                refused[place] = error
        moving = [here for here in held.by_table() if here.table is not table]
        for source, places, rows in moving:
            for place, row in zip(places.tolist(), rows.tolist(), strict=True):
                try:
                    self._check_row(opening, place, table, source, row)
                except errors.ModelChanged as error:
                    refused[place] = error
        async with self._engine.still():
            for source, places, rows in moving:
                fit = ~np.isin(places, [*refused]) & (source.epoch[rows] >= opening.seen_epochs[places])
                lifted = self._lift(source, rows[fit], table)
                for place, row, item in zip(places[fit].tolist(), rows[fit].tolist(), lifted, strict=True):
                    moves[place] = self._move(table, item, int(source.position[row]), int(source.epoch[row]))
        return moves, refused

    def _of_record(self, opening: Opening, place: int, table: Table, record: Record) -> Move | None:
        """What a stored session takes along; None where it is of `table`'s version already."""
        layout = self._checkpointer.layout(table)
        if record.blob is None:
            moves = record.version != table.model.version
            return Move(None, Carried(None, record.position, record.epoch)) if moves else None
        header = records.read_header(record.blob, what=f"session {opening.ids[place]!r}")
        if header.model == layout.model and record.version == table.model.version:
            return None
        return self._move(table, self.read(opening, place, table, record, record.blob), record.position, record.epoch)

    def _move(self, table: Table, stored: Stored, position: int, epoch: int) -> Move:
        return Move(stored, Carried(records.encode_stored(self._checkpointer.layout(table), stored), position, epoch))

    def check_record(self, opening: Opening, place: int, table: Table, record: Record) -> None:
        """Checks that a stored session can go on in `table`.

        Raises:
            ModelChanged: Its state, or replies that the caller wants, do not fit that version.
            StateLost, StoreUnavailable: The record is damaged, or of a newer release.
        """
        if record.blob is None:
            return
        layout, session = self._checkpointer.layout(table), opening.ids[place]
        header = records.read_header(record.blob, what=f"session {session!r}")
        if header.model == layout.model:
            return
        old = record.version
        if header.columns != layout.columns_digest:
            raise _other_columns(opening, place, old, table, self._registry.columns(opening.model, old))
        if header.outputs != layout.outputs_digest and header.replies and opening.replies:
            raise _other_outputs(opening, place, old, table, header.replies)

    def read(self, opening: Opening, place: int, table: Table, record: Record, blob: bytes) -> Stored:
        """A stored session as `table`'s version has it. Replies that do not fit its outputs count as acknowledged.

        Raises:
            ModelChanged, StateLost, StoreUnavailable: As `check_record` does.
        """
        self.check_record(opening, place, table, record)
        layout, what = self._checkpointer.layout(table), f"session {opening.ids[place]!r}"
        stored = records.decode(layout, blob, what=what, moving=True)
        if records.read_header(blob, what=what).outputs != layout.outputs_digest:
            stored = replace(stored, acked=record.position)
        return stored

    def _check_row(self, opening: Opening, place: int, table: Table, source: Table, row: int) -> None:
        old, new = self._checkpointer.layout(source), self._checkpointer.layout(table)
        kept = int(source.replies.counts(np.asarray([row]))[0])
        if old.columns_digest != new.columns_digest:
            raise _other_columns(opening, place, source.model.version, table, old.columns)
        if old.outputs_digest != new.outputs_digest and kept and opening.replies:
            raise _other_outputs(opening, place, source.model.version, table, kept)

    def _lift(self, source: Table, rows: Ints, table: Table) -> list[Stored]:
        """Rows as records of `table`'s version would have them; see `read`. The slabs must be still."""
        layout = self._checkpointer.layout(table)
        carried = self._checkpointer.layout(source).outputs_digest == layout.outputs_digest
        values = source.rows.read(rows)
        return [
            Stored(
                [array[index] for array in values],
                source.replies.replies(row) if carried else [],
                int((source.acked if carried else source.position)[row]),
                int(source.request[row]),
                same_bits=True,
                fingerprint=layout.fingerprint,
                origin=int(source.origin[row]),
                cursor=source.cursors.get(row, b""),
            )
            for index, row in enumerate(rows.tolist())
        ]


def difference(came: Sequence[Column], expected: Sequence[Column]) -> tuple[str, str, str] | None:
    """The first column in which two rows differ: its name, what came and what was expected; None where none does."""
    for one, other in zip_longest(came, expected):
        if one != other:
            return (other if one is None else one).name, _spelled(one), _spelled(other)
    return None


def _spelled(column: Column | None) -> str:
    return "nothing" if column is None else f"{column.name!r} {column.dtype}{list(column.shape)}"


def _other_columns(
    opening: Opening, place: int, old: int, table: Table, columns: Sequence[Column] | None
) -> errors.ModelChanged:
    new, metadata = table.model.version, {"version": str(old)}
    found = difference(columns, table.rows.columns) if columns is not None else None
    if found is None:
        what = f"version {old} is not in the models folder as it was, so what differs cannot be told"
    else:
        name, came, expected = found
        what = f"its state has {came}, expected is {expected}"
        metadata |= {"column": name, "came": came, "expected": expected}
    return errors.ModelChanged(
        f"session {opening.ids[place]!r} stays with version {old} of {opening.model!r}, because version {new} keeps"
        f" another state: {what}. Open it without upgrade to go on with version {old}, upgrade it to a version that"
        f" keeps the same state, or start it anew (mode replace)",
        metadata=metadata,
    )


def _other_outputs(opening: Opening, place: int, old: int, table: Table, kept: int) -> errors.ModelChanged:
    return errors.ModelChanged(
        f"session {opening.ids[place]!r} stays with version {old} of {opening.model!r}: nobody acknowledged {kept} of"
        f" its replies, which the caller wants, and version {table.model.version} has other outputs. Take the replies"
        f" with version {old} first, or open it without them",
        metadata={"version": str(old), "replies": str(kept)},
    )
