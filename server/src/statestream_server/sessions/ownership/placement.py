"""Rows of sessions: which rows granted claims get.

Nothing here decides whether a claim is granted: that is the store's (stores/rules.py); `grant` sorts its answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Bools, Ints, Positions
from statestream_server.engine.engine import Engine
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.marks import ends as ends_of
from statestream_server.engine.table import Table
from statestream_server.sessions import records
from statestream_server.sessions.checkpointer import Checkpointer
from statestream_server.sessions.ownership.held import NOWHERE, Held
from statestream_server.sessions.ownership.hibernation import Hibernation
from statestream_server.sessions.ownership.openings import Opened, Opening, Start, refusal
from statestream_server.sessions.ownership.streams import Streams
from statestream_server.sessions.ownership.versions import Move
from statestream_server.sessions.records import Stored
from statestream_server.settings import Durability
from statestream_server.stores.base import Claim, Claimed, Key, Record, Verdict

log = logging.getLogger(__name__)


class Granted(NamedTuple):
    """Claims that went well, of one table; columns have n items.

    Attributes:
        table: The table.
        places: [n] which of the opening's columns they are.
        rows: [n] the rows of the table that have them already, NOWHERE for the others.
        kept: [n] whether that row goes on as it is.
        created: [n] whether they are new.
        records: What is stored of them now.
        stored: What comes from the store, or from another version, by index.
    """

    table: Table
    places: Ints
    rows: Ints
    kept: Bools
    created: Bools
    records: Columns
    stored: Mapping[int, Stored]


class Columns(NamedTuple):
    """Records that were granted, column by column; each has n items."""

    keys: Sequence[Key]
    epochs: Positions
    positions: Positions
    writers: Array
    incarnations: Positions
    ephemeral: Bools

    @classmethod
    def of(cls, records: Sequence[Record]) -> Columns:
        """The columns of some records, one at least."""
        keys, _, epochs, positions, writers, incarnations, ephemeral, *_ = zip(*records, strict=True)
        return cls(
            keys,
            np.asarray(epochs, np.uint64),
            np.asarray(positions, np.uint64),
            np.frombuffer(b"".join(writers), "V16"),
            np.asarray(incarnations, np.uint64),
            np.asarray(ephemeral, np.bool_),
        )


class Promise:
    """Rows of a table for sessions that are about to be claimed: once they are, nothing can be missing."""

    def __init__(self, table: Table, rows: Ints) -> None:
        """Rows that were just allocated."""
        self._table = table
        self._rows = rows
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once nothing of it is held any more."""
        table.promised += len(rows)

    @property
    def left(self) -> int:
        """How many rows are not taken yet."""
        return len(self._rows)

    def take(self, count: int) -> Ints:
        """Some of the rows, for sessions that are there now."""
        rows, self._rows = self._rows[:count], self._rows[count:]
        self._table.promised -= len(rows)
        return rows

    def end(self) -> None:
        """Gives back what was not taken."""
        self._table.release(self.take(len(self._rows)))
        if not self.over.done():
            self.over.set_result(None)


class Placement:
    """Gives rows to sessions."""

    def __init__(
        self,
        engine: Engine,
        checkpointer: Checkpointer,
        streams: Streams,
        hibernation: Hibernation,
        clock: Callable[[], float],
    ) -> None:
        """`clock` gives seconds and is never set."""
        self.foreign = 0
        """Sessions whose record was written by another runtime or processor, so far."""
        self._reported: set[tuple[str, int, int]] = set()
        self._engine = engine
        self._checkpointer = checkpointer
        self._streams = streams
        self._hibernation = hibernation
        self._clock = clock
        self._promises: dict[int, set[asyncio.Future[None]]] = {}
        """The promises that are not over, by table."""

    async def promise(self, table: Table, count: int, *, keep: Ints) -> Promise:
        """Hands out rows for sessions that are not in memory; those not used for longest make room.

        Where they do not suffice it waits for promises that are not over: what they bring in may leave memory again.
        Whoever has one waits for nobody here.

        Args:
            table: Their table.
            count: How many.
            keep: Rows that must stay.

        Raises:
            TooManySessions: Too few sessions can go, or there is no memory.
        """
        promises = self._promises.setdefault(id(table), set())
        while True:
            try:
                self._hibernation.make_room(table, count, keep=keep)
                async with self._engine.still():
                    promise = Promise(table, table.allocate(count))
                promises.add(promise.over)
                promise.over.add_done_callback(promises.discard)
                return promise
            except errors.TooManySessions:
                if not promises:
                    raise
            await asyncio.wait([*promises], return_when=asyncio.FIRST_COMPLETED)

    def grant(
        self,
        opening: Opening,
        target: Table,
        held: Held,
        places: Ints,
        claims: Sequence[Claim],
        answers: Sequence[Claimed],
        moves: Mapping[int, Move],
    ) -> tuple[list[Granted], dict[int, errors.StatestreamError]]:
        """Sorts what the store answered.

        A record that cannot be read is refused although it was claimed: it stays as it is, for a server that can.

        Args:
            opening: Asked for them.
            target: The table of the version that the claims name.
            held: Where the opening's sessions are in memory.
            places: [n] which of them were claimed.
            claims: [n] their claims.
            answers: [n] what the store answered.
            moves: What sessions of other versions took along.

        Returns:
            Granted claims by table, and why others are not, by their place.
        """
        verdicts = np.fromiter([verdict for verdict, _ in answers], np.int8, len(answers))
        good = verdicts <= Verdict.TAKEN
        refused = {
            int(places[index]): refusal(opening, int(places[index]), claims[index], answers[index])
            for index in np.flatnonzero(~good).tolist()
        }
        moved = np.isin(places, np.fromiter(moves, np.int64, len(moves)))
        stays = (verdicts == Verdict.HELD) & ~moved
        stored = dict[int, Stored]()
        for index in np.flatnonzero(good & ((verdicts == Verdict.TAKEN) | moved)).tolist():
            place = int(places[index])
            try:
                move = moves.get(place)
                found = move.stored if move is not None else self._decode(opening, place, target, answers[index])
            except errors.StatestreamError as error:
                refused[place], good[index] = error, False
                continue
            if found is not None:
                stored[index] = found
        groups = list[Granted]()
        for table in dict.fromkeys((target, *held.tables)):
            here = held.within(table)[places]
            # What goes on as it is does so where it is; the rest comes to the version that was claimed.
            at = np.flatnonzero(good & np.where(stays, here, table is target))
            if len(at):
                chosen = at.tolist()
                groups.append(
                    Granted(
                        table,
                        places[at],
                        np.where(here[at], held.rows[places[at]], NOWHERE),
                        stays[at],
                        np.asarray(verdicts[at] == Verdict.CREATED),
                        Columns.of([record for index in chosen if (record := answers[index].record) is not None]),
                        {to: stored[index] for to, index in enumerate(chosen) if index in stored} if stored else {},
                    )
                )
        return groups, refused

    def _decode(self, opening: Opening, place: int, table: Table, answer: Claimed) -> Stored | None:
        record, session = answer.record, opening.ids[place]
        if record is None:
            return None
        if record.blob is None:
            if record.position:
                raise errors.StateLost(f"the record of session {session!r} has a position and no state")
            return None
        stored = records.decode(self._checkpointer.layout(table), record.blob, what=f"session {session!r}")
        if not stored.same_bits:
            self.report(table, stored.fingerprint)
        return stored

    def report(self, table: Table, fingerprint: int) -> None:
        """Tells, once, that sessions of a model come from a runtime or processor of another kind."""
        self.foreign += 1
        model = table.model
        if (model.name, model.version, fingerprint) not in self._reported:
            self._reported.add((model.name, model.version, fingerprint))
            log.warning(
                "sessions of %s version %d were saved by a server with fingerprint %016x, this one has %016x: they go"
                " on, but outputs may differ from before in their last bits",
                model.name,
                model.version,
                fingerprint,
                self._checkpointer.layout(table).fingerprint,
            )

    def install(self, opening: Opening, group: Granted, held: Held, promise: Promise) -> Opened:
        """Makes rows of granted claims and binds them to their stream. The slab must be still.

        Raises:
            TooManySessions: A session was taken that was believed to be elsewhere, and there is no row for it.
        """
        table, places, records, kept = group.table, group.places, group.records, group.kept
        rows = self._rows(opening, group, held, promise)
        handles = opening.handles[places] if opening.handles is not None else np.zeros(len(rows), np.uint32)
        bindings = self._streams.bind(table, rows, opening.owner, handles)
        self._streams.claimed(records.keys, opening.owner, handles)
        table.clear_columns(rows[~kept])
        fresh = ~kept
        fresh[[*group.stored]] = False
        if opening.start is not None:
            fresh &= ~group.created
            self._begin(table, rows[group.created], opening.start.some(places[group.created]))
        if fresh.any():
            table.rows.reset(rows[fresh])
        self._revive(table, rows, group.stored, records.positions)
        table.counts.created += int(np.count_nonzero(group.created))
        table.counts.recovered += len(group.stored)
        # In mode none the store knows a session as it began, and promises nothing.
        table.durable[rows] = 0 if self._checkpointer.mode == Durability.NONE else records.positions
        # Where the store was emptied it has, at position 0, nothing of a row that is held.
        behind = (records.positions < table.position[rows]) | (records.positions == 0)
        table.dirty[rows[kept & behind]] = True
        table.queued[rows] = table.position[rows]
        table.epoch[rows] = records.epochs
        table.incarnation[rows] = records.incarnations
        table.writer[rows] = records.writers
        table.ephemeral[rows] = records.ephemeral
        table.used[rows] = self._clock()
        # What was never applied cannot be acknowledged: its reply is still to come.
        acked = np.maximum(np.minimum(opening.acked_positions[places], table.position[rows]), table.acked[rows])
        table.acked[rows] = acked
        table.replies.acknowledge(rows, acked)
        return Opened(table, rows, places, bindings, group.created, table.claims(rows))

    def _rows(self, opening: Opening, group: Granted, held: Held, promise: Promise) -> Ints:
        """The rows of granted claims: the ones that have them, or new ones."""
        table, missing = group.table, np.flatnonzero(group.rows == NOWHERE)
        if not len(missing):
            return group.rows
        rows, places = group.rows.copy(), group.places[missing]
        more = table.allocate(max(0, len(missing) - promise.left))
        new = np.concatenate([promise.take(len(missing) - len(more)), more])
        rows[missing] = new
        for other, at, theirs in held.by_table():
            gone = np.isin(at, places) if other is not table else np.zeros(len(at), np.bool_)
            if gone.any():
                handles = opening.handles[at[gone]] if opening.handles is not None else np.zeros(gone.sum(), np.uint32)
                self._streams.take(other, theirs[gone], opening.owner, handles)
                other.release(theirs[gone])
        table.bind_ids(new, opening.tenant, [opening.ids[place] for place in places.tolist()])
        return rows

    @staticmethod
    def _begin(table: Table, rows: Ints, start: Start) -> None:
        """Writes the states of new sessions."""
        table.rows.write(rows, start.values)
        table.position[rows] = table.acked[rows] = start.positions
        table.request[rows] = start.requests
        table.named = table.named or bool(np.any(start.requests))
        table.origin[rows] = start.origins
        if start.cursors:
            table.cursors.update(
                (row, cursor) for row, cursor in zip(rows.tolist(), start.cursors, strict=True) if cursor
            )

    def _revive(self, table: Table, rows: Ints, stored: Mapping[int, Stored], positions: Positions) -> None:
        """Writes stored sessions into their rows, with their kept replies."""
        found = list(stored.items())
        if not found:
            return
        at = np.asarray([index for index, _ in found])
        columns = zip(*(item.values for _, item in found), strict=True)
        table.rows.write(rows[at], [_stacked(column) for column in columns])
        table.position[rows[at]] = positions[at]
        table.acked[rows[at]] = [item.acked for _, item in found]
        table.request[rows[at]] = [item.request for _, item in found]
        table.named = table.named or any(item.request for _, item in found)
        table.origin[rows[at]] = [item.origin for _, item in found]
        table.cursors.update((int(rows[index]), item.cursor) for index, item in found if item.cursor)
        # The first reply of every session together, then the second: thousands come back at once.
        for turn in range(max(len(item.replies) for _, item in found)):
            replies = [(index, item.replies[turn]) for index, item in found if turn < len(item.replies)]
            starts = np.asarray([reply.start for _, reply in replies], np.uint64)
            lengths = Lengths.of(np.asarray([reply.steps for _, reply in replies]))
            kept = rows[[index for index, _ in replies]]
            table.replies.append(
                kept,
                starts,
                ends_of(starts, lengths),
                lengths,
                [np.concatenate(outputs) for outputs in zip(*(reply.outputs for _, reply in replies), strict=True)],
                digests=np.asarray([reply.digest for _, reply in replies], np.uint64),
            )
            table.unacknowledged[kept] += 1


def _stacked(values: Sequence[Array]) -> Array:
    """What np.stack gives, in less time for thousands of small arrays."""
    shape = values[0].shape
    return np.concatenate(values).reshape(len(values), *shape) if shape else np.asarray(values)
