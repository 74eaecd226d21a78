"""Rows of sessions: which rows granted claims get, and which rows go when memory is short.

Nothing here decides whether a claim is granted: that is the store's (stores/base.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from statestream import errors
from statestream_server.arrays import Array, Ints, Positions
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.table import Table
from statestream_server.sessions import records
from statestream_server.sessions.openings import Opened, Opening, other_version, refusal
from statestream_server.sessions.peers import Peers
from statestream_server.sessions.records import Stored
from statestream_server.sessions.saver import Saver
from statestream_server.sessions.versions import Versions
from statestream_server.settings import Durability
from statestream_server.stores.base import Claim, Claimed, Verdict

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Granted:
    """Claims that went well, of one table.

    Attributes:
        table: The table.
        places: Which of the opening's columns they are.
        claimed: What the store answered.
        stored: What comes from the store; None for rows that are in memory, and for new sessions.
        moved: Whether they come from another version, and the store has yet to learn it.
    """

    table: Table
    places: list[int]
    claimed: list[Claimed]
    stored: list[Stored | None]
    moved: list[bool]


class Placement:
    """Gives rows to sessions and takes them back."""

    def __init__(
        self,
        saver: Saver,
        peers: Peers,
        versions: Versions,
        clock: Callable[[], float],
        *,
        pass_on: Callable[[], None],
    ) -> None:
        """`clock` gives Unix time, `pass_on` queues chunks that just arrived."""
        self.foreign = 0
        """Sessions whose record was written by another runtime or processor, so far."""
        self._reported: set[tuple[str, int, int]] = set()
        self._saver = saver
        self._peers = peers
        self._versions = versions
        self._clock = clock
        self.pass_on = pass_on

    def grant(
        self,
        opening: Opening,
        target: Table,
        held: Sequence[tuple[Table, int] | None],
        places: Sequence[int],
        claims: Sequence[Claim],
        answers: Sequence[Claimed],
        refused: dict[int, errors.StatestreamError],
    ) -> list[Granted]:
        """Granted claims by table; the others go to `refused`. There may be no room for them yet: see `fit`.

        Args:
            opening: Asked for them.
            target: The table of the version that the claims name.
            held: [N] where the opening's sessions are in memory.
            places: Which of them were claimed.
            claims: Their claims.
            answers: What the store answered.
            refused: Takes what is not granted.
        """
        groups: dict[int, Granted] = {}
        for place, claim, answer in zip(places, claims, answers, strict=True):
            if answer.verdict not in (Verdict.CREATED, Verdict.HELD, Verdict.TAKEN) or answer.record is None:
                refused[place] = refusal(opening, place, claim, answer)
                continue
            where = held[place] if answer.verdict is Verdict.HELD else None
            # A row in memory knows better than its record, which mode none never writes again.
            pinned = where[0].model.version if where is not None else answer.record.version
            if opening.version not in (0, pinned) and not opening.upgrade:
                refused[place] = other_version(opening, place, pinned)
                continue
            table = where[0] if where is not None and not opening.upgrade else target
            try:
                stored = self._decode(opening, place, table, answer)
            except errors.StatestreamError as error:
                refused[place] = error
                continue
            group = groups.get(id(table))
            if group is None:
                group = groups[id(table)] = Granted(table, [], [], [], [])
            group.places.append(place)
            group.claimed.append(answer)
            group.stored.append(stored)
            group.moved.append(pinned != table.model.version or answer.record.version != table.model.version)
        return list(groups.values())

    def fit(self, group: Granted, keep: Sequence[tuple[Table, Ints]]) -> None:
        """Makes room for sessions that are not in memory, in the table that they turned out to belong to.

        Args:
            group: The sessions.
            keep: Rows that must stay.

        Raises:
            TooManySessions: Too few sessions can go.
        """
        ids = [answer.record.key.id for answer in group.claimed if answer.record is not None]
        staying = [np.empty(0, np.int64), *(rows for table, rows in keep if table is group.table)]
        new = sum(session not in group.table.row_of for session in ids)
        self.make_room(group.table, new, keep=np.concatenate(staying))

    def fits(
        self, group: Granted, held: Sequence[tuple[Table, int] | None], refused: dict[int, errors.StatestreamError]
    ) -> bool:
        """As `fit`, whether it could; `refused` takes the group where it could not."""
        try:
            self.fit(group, [(where[0], np.asarray([where[1]])) for where in held if where is not None])
        except errors.TooManySessions as error:
            refused.update(dict.fromkeys(group.places, error))
            return False
        return True

    @staticmethod
    def has_rows(group: Granted, refused: dict[int, errors.StatestreamError]) -> bool:
        """Whether there is memory for a group's rows; `refused` takes it where there is none."""
        try:
            group.table.reserve(len(group.places))
        except errors.TooManySessions as error:
            refused.update(dict.fromkeys(group.places, error))
            return False
        return True

    def _decode(self, opening: Opening, place: int, table: Table, answer: Claimed) -> Stored | None:
        record, session = answer.record, opening.ids[place]
        if answer.verdict is not Verdict.TAKEN or record is None:
            return None
        if record.blob is None:
            if record.position:
                raise errors.StateLost(f"the record of session {session!r} has a position and no state")
            return None
        if opening.upgrade:
            stored = self._versions.read(opening, place, table, record, record.blob)
        else:
            stored = records.decode(self._saver.layout(table), record.blob, what=f"session {session!r}")
        if not stored.same_bits:
            self._report(table, stored.fingerprint)
        return stored

    def _report(self, table: Table, fingerprint: int) -> None:
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
                self._saver.layout(table).fingerprint,
            )

    def install(self, opening: Opening, group: Granted, held: Sequence[tuple[Table, int] | None]) -> Opened:
        """Makes rows of granted claims and binds them to their stream. The slab must be still."""
        table, places = group.table, np.asarray(group.places, np.int64)
        stored_positions = np.asarray([a.record.position for a in group.claimed if a.record], np.uint64)
        stored, positions = self._lifted(group, held, stored_positions)
        rows = self._rows(opening, group, held)
        verdicts = [answer.verdict for answer in group.claimed]
        created = np.asarray([verdict is Verdict.CREATED for verdict in verdicts])
        kept = np.asarray([v is Verdict.HELD and s is None for v, s in zip(verdicts, stored, strict=True)])
        bindings = self._peers.bind(
            table,
            rows,
            opening.owner,
            opening.handles[places] if opening.handles is not None else np.zeros(len(rows), np.uint32),
        )
        table.clear_columns(rows[~kept])
        fresh = np.asarray([item is None for item in stored]) & ~kept
        if fresh.any():
            table.rows.reset(rows[fresh])
        if opening.initial_states is not None and created.any():
            self._initialise(table, rows[created], [array[places[created]] for array in opening.initial_states])
        self._revive(table, rows, stored, positions)
        table.durable[rows] = stored_positions
        table.dirty[rows[kept & (stored_positions < table.position[rows])]] = True
        table.dirty[rows[np.asarray(group.moved)]] = True
        table.queued[rows] = table.position[rows]
        table.epoch[rows] = [answer.record.epoch for answer in group.claimed if answer.record]
        table.incarnation[rows] = [answer.record.incarnation for answer in group.claimed if answer.record]
        table.writer[rows] = np.frombuffer(
            b"".join(answer.record.writer for answer in group.claimed if answer.record), "V16"
        )
        table.ephemeral[rows] = [answer.record.ephemeral for answer in group.claimed if answer.record]
        table.used[rows] = self._clock()
        # What was never applied cannot be acknowledged: its reply is still to come.
        acked = np.maximum(np.minimum(opening.acked_positions[places], table.position[rows]), table.acked[rows])
        table.acked[rows] = acked
        table.replies.acknowledge(rows, acked)
        return Opened(table, rows, places, bindings, created)

    def _lifted(
        self, group: Granted, held: Sequence[tuple[Table, int] | None], positions: Positions
    ) -> tuple[list[Stored | None], Positions]:
        """What is written into the rows, and their positions: rows that move here from other tables are read there."""
        stored, positions = list(group.stored), positions.copy()
        moving = dict[int, tuple[Table, list[int], list[int]]]()
        for index, (place, answer) in enumerate(zip(group.places, group.claimed, strict=True)):
            where = held[place]
            if where is not None and where[0] is not group.table and answer.verdict is Verdict.HELD:
                _, indices, rows = moving.setdefault(id(where[0]), (where[0], [], []))
                indices.append(index)
                rows.append(where[1])
        for source, indices, rows in moving.values():
            positions[indices] = source.position[rows]
            for index, item in zip(indices, self._versions.lift(source, np.asarray(rows), group.table), strict=True):
                stored[index] = item
        return stored, positions

    def _rows(self, opening: Opening, group: Granted, held: Sequence[tuple[Table, int] | None]) -> Ints:
        """The rows of granted claims: the ones held, or new ones."""
        table, rows, missing = group.table, np.empty(len(group.places), np.int64), list[int]()
        for index, place in enumerate(group.places):
            where = held[place]
            if where is not None and where[0] is table:
                rows[index] = where[1]
                continue
            if where is not None:
                other = np.asarray([where[1]])
                self._peers.take(where[0], other, opening.owner)
                where[0].release(other)
            missing.append(index)
        if missing:
            new = table.allocate(len(missing))
            rows[missing] = new
            for index, row in zip(missing, new.tolist(), strict=True):
                table.bind_id(row, opening.ids[group.places[index]])
        return rows

    def _initialise(self, table: Table, rows: Ints, states: Sequence[Array]) -> None:
        values = table.rows.read(rows)
        values[: len(states)] = states
        table.rows.write(rows, values)
        table.dirty[rows] = True

    def _revive(self, table: Table, rows: Ints, stored: Sequence[Stored | None], positions: Positions) -> None:
        """Writes stored sessions into their rows, with their kept replies."""
        found = [(index, item) for index, item in enumerate(stored) if item is not None]
        if not found:
            return
        at = np.asarray([index for index, _ in found])
        columns = zip(*(item.values for _, item in found), strict=True)
        table.rows.write(rows[at], [_stacked(column) for column in columns])
        table.position[rows[at]] = positions[at]
        table.acked[rows[at]] = [item.acked for _, item in found]
        table.request[rows[at]] = [item.request for _, item in found]
        # The first reply of every session together, then the second: thousands come back at once.
        for turn in range(max(len(item.replies) for _, item in found)):
            replies = [(index, item.replies[turn]) for index, item in found if turn < len(item.replies)]
            starts = np.asarray([reply.start for _, reply in replies], np.uint64)
            steps = np.asarray([reply.steps for _, reply in replies])
            kept = rows[[index for index, _ in replies]]
            table.replies.append(
                kept,
                starts,
                starts + steps.astype(np.uint64),
                Lengths.of(steps),
                [np.concatenate(outputs) for outputs in zip(*(reply.outputs for _, reply in replies), strict=True)],
                digests=np.asarray([reply.digest for _, reply in replies], np.uint64),
            )
            table.unacknowledged[kept] += 1

    def make_room(self, table: Table, new: int, *, keep: Ints) -> None:
        """Makes room for `new` sessions; those not used for longest go to the store.

        Args:
            table: The table.
            new: How many rows are wanted.
            keep: Rows that must stay, because the caller is about to use them.

        Raises:
            TooManySessions: Too few sessions can go: the store is behind of them, or they have work to do.
        """
        excess = table.sessions + new - table.max_rows
        if excess <= 0:
            return
        rows = self.idle(table)
        rows = rows[~np.isin(rows, keep)]
        # A few more than needed, so that the next opening does not sort the table again.
        count = min(len(rows), excess + table.max_rows // 64)
        if count < excess:
            raise errors.TooManySessions(
                f"{new} more sessions of {table.model.name!r} would make {table.sessions + new}; the limit is"
                f" {table.max_rows} in memory and {len(rows)} can leave it now. Close some, try again after the next"
                " checkpoint, or raise --max-sessions",
                retry_after=1.0,
            )
        oldest = np.argpartition(table.used[rows], count - 1)[:count]
        self.hibernate(table, rows[oldest])

    def idle(self, table: Table) -> Ints:
        """Rows that the store knows as they are and that have nothing to do."""
        if self._saver.mode == Durability.NONE or not table.sessions:
            return np.empty(0, np.int64)
        self.pass_on()
        rows = np.fromiter(table.row_of.values(), np.int64, table.sessions)
        clean = ~table.dirty[rows] & ~table.claiming[rows] & (table.durable[rows] == table.position[rows])
        clean &= ~np.isin(rows, self._saver.needed(table))
        resting: Ints = rows[clean & table.lane.idle(rows)]
        return resting

    def hibernate(self, table: Table, rows: Ints) -> None:
        """Frees rows that are `idle`; their streams keep the handles and wake the sessions by using them."""
        self._peers.hibernate(table, rows)
        table.release(rows)


def _stacked(values: Sequence[Array]) -> Array:
    """What np.stack gives, in less time for thousands of small arrays."""
    shape = values[0].shape
    return np.concatenate(values).reshape(len(values), *shape) if shape else np.asarray(values)
