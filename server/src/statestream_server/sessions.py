"""Sessions between table and store: opening, taking over, closing. What rows mean is table.py's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from statestream import errors
from statestream.signature import numpy_dtype, row_shape
from statestream_server import records
from statestream_server.arrays import Array, Bools, Ints, Positions
from statestream_server.engine import Engine
from statestream_server.peers import Peers
from statestream_server.records import Stored
from statestream_server.registry import Registry
from statestream_server.saver import Saver
from statestream_server.stores.base import Claim, Claimed, Key, Mode, Store, Verdict
from statestream_server.table import UNBOUND, Table

TENANT = ""
"""The tenant of every session while there is no authentication."""
MAX_ID_BYTES = 256


@dataclass(frozen=True, slots=True)
class Opening:
    """A wish to open N sessions of one model; columns have N items.

    Attributes:
        model: Its name.
        version: 0 for the sessions' own.
        ids: Their ids.
        mode: Whether they must be new, must exist, or may be either.
        writer: 16 bytes that stand for the caller.
        incarnation: Orders claims.
        seen_epochs: [N] the last epoch that the caller saw.
        replay_positions: [N] the oldest position from which it can replay.
        acked_positions: [N] the position up to which it has the replies.
        ephemeral: Whether they end with their caller.
        initial_states: One array [N, ...] for every state, or None.
        owner: The stream that opens them, or UNBOUND.
        handles: [N] what that stream calls them.
    """

    model: str
    version: int
    ids: Sequence[str]
    mode: Mode
    writer: bytes
    incarnation: int
    seen_epochs: Positions
    replay_positions: Positions
    acked_positions: Positions
    ephemeral: bool = False
    initial_states: Sequence[Array] | None = None
    owner: int = UNBOUND
    handles: Array | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """Sessions that are open now, all of one version.

    Attributes:
        table: Their table.
        rows: [n] their rows.
        places: [n] which of the opening's columns they are.
        bindings: [n] what their frames are checked against.
        created: [n] whether they are new.
    """

    table: Table
    rows: Ints
    places: Ints
    bindings: Ints
    created: Bools


@dataclass(frozen=True, slots=True)
class _Granted:
    """Claims that went well, of one table."""

    table: Table
    places: list[int]
    claimed: list[Claimed]
    stored: list[Stored | None]


class Sessions:
    """Opens and closes sessions. One opening or closing at a time; steps go on meanwhile."""

    def __init__(
        self,
        registry: Registry,
        engine: Engine,
        store: Store,
        saver: Saver,
        peers: Peers,
        clock: Callable[[], float],
    ) -> None:
        """Nothing is open; `clock` gives Unix time."""
        self.draining = False
        self.lock = asyncio.Lock()
        self._registry = registry
        self._engine = engine
        self._store = store
        self._saver = saver
        self._peers = peers
        self._clock = clock

    def find(self, model: str, session: str) -> tuple[Table, int] | None:
        """The table and row of a session in memory, or None.

        Raises:
            ModelNotFound: The model is not served.
        """
        for table in self._registry.tables(model):
            row = table.row_of.get(session)
            if row is not None:
                return table, row
        return None

    async def open(self, opening: Opening) -> tuple[list[Opened], dict[int, errors.StatestreamError]]:
        """Opens or resumes sessions and fences whoever had them.

        Returns:
            What is open, by version, and why the others are not, by their place.

        Raises:
            ModelNotFound, Unsupported, BadFrame, TooManySessions, StoreUnavailable, Draining: Nothing was opened.
        """
        if self.draining:
            raise errors.Draining("the server is leaving and takes no new sessions; try another", retry_after=1.0)
        table = self.table(opening.model, opening.version)
        _check_ids(opening.ids)
        async with self.lock:
            held = [self.find(opening.model, session) for session in opening.ids]
            self._check_room(table, held)
            refused = _pinned_elsewhere(opening, held)
            await self._quiet([place for place in held if place is not None])
            places = [place for place in range(len(opening.ids)) if place not in refused]
            claims = [self._claim(opening, table, place, held[place]) for place in places]
            with _claiming([where for where in held if where is not None]):
                answers = await self._store.claim(claims)
                granted = self._sort(opening, places, claims, answers, refused)
                async with self._engine.still():
                    opened = [self._install(opening, group, held) for group in granted]
            if opening.initial_states is not None:
                for part in opened:
                    await self._saver.flush(part.table, part.rows[part.created])
            return opened, refused

    async def open_one(
        self, model: str, version: int, session: str, mode: Mode, writer: bytes, *, ephemeral: bool = False
    ) -> Opened:
        """Opens one session for a caller that has no stream and no incarnations of its own.

        Such a caller means what it says: a claim from a clock that is ahead is outbid.

        Raises:
            StatestreamError: It was not opened; see `open`.
        """
        nothing, incarnation = np.zeros(1, np.uint64), int(self._clock() * 1e6)
        for _ in range(2):
            opening = Opening(
                model, version, [session], mode, writer, incarnation, nothing, nothing, nothing, ephemeral
            )
            opened, refused = await self.open(opening)
            if opened:
                return opened[0]
            newest = refused[0].metadata.get("incarnation")
            if newest is None:
                break
            incarnation = int(newest) + 1
        raise refused[0]

    def detach(self, table: Table, rows: Ints) -> None:
        """Lets sessions go; they stay where they are."""
        table.owner[rows], table.binding[rows] = UNBOUND, 0

    async def delete(self, table: Table, rows: Ints) -> None:
        """Deletes sessions, once what they have queued has run.

        Raises:
            StoreUnavailable: Nothing was deleted.
        """
        async with self.lock:
            serials = table.serial[rows].copy()
            await self._engine.settled(table, rows)
            rows = rows[table.serial[rows] == serials]
            keys = [key for key in (table.keys[row] for row in rows.tolist()) if key is not None]
            await self._store.delete(keys, table.epoch[rows].tolist())
            gone = errors.SessionNotFound("the session was deleted")
            async with self._engine.still():
                self._engine.cancel(table, rows.tolist(), gone)
                self._peers.evict(table, rows, gone)
                table.release(rows)

    def table(self, model: str, version: int = 0) -> Table:
        """The table of a version, 0 for the one that serves by default.

        Raises:
            ModelNotFound: It is not served.
            Unsupported: It has no memory.
        """
        served = self._registry.get(model, version)
        if served.table is None or served.model.kind != "session":
            verb = "predict" if served.model.kind == "predict" else "generate"
            raise errors.Unsupported(f"model {model!r} has no sessions; call {verb} instead")
        return served.table

    def drop(self, table: Table, rows: Ints, error: errors.StatestreamError) -> None:
        """Forgets rows whose sessions a newer owner has; the store is not touched."""
        self._engine.cancel(table, rows.tolist(), error)
        self._peers.evict(table, rows, error)
        table.release(rows[table.lane.idle(rows)])

    def _check_room(self, table: Table, held: Sequence[tuple[Table, int] | None]) -> None:
        new = sum(place is None for place in held)
        if table.sessions + new > table.max_rows:
            raise errors.TooManySessions(
                f"{new} more sessions of {table.model.name!r} would make {table.sessions + new}; the limit is"
                f" {table.max_rows}. Close some, or raise --max-sessions",
                retry_after=1.0,
            )

    async def _quiet(self, held: Sequence[tuple[Table, int]]) -> None:
        """Drops what older claims have queued for rows, and waits for what runs."""
        moved = errors.SessionMoved("a newer writer opened the session")
        for table in {id(table): table for table, _ in held}.values():
            rows = np.asarray([row for other, row in held if other is table], np.int64)
            busy = rows[~table.lane.idle(rows)]
            if len(busy):
                self._engine.cancel(table, busy.tolist(), moved)
                await self._engine.settled(table, busy)

    def _claim(self, opening: Opening, table: Table, place: int, held: tuple[Table, int] | None) -> Claim:
        held_epoch = int(held[0].epoch[held[1]]) if held else 0
        held_position = int(held[0].position[held[1]]) if held else 0
        return Claim(
            Key(TENANT, opening.model, opening.ids[place]),
            opening.mode,
            opening.writer,
            opening.incarnation,
            int(opening.seen_epochs[place]),
            int(opening.replay_positions[place]),
            held_epoch,
            held_position,
            table.model.version,
            opening.ephemeral,
        )

    def _sort(
        self,
        opening: Opening,
        places: Sequence[int],
        claims: Sequence[Claim],
        answers: Sequence[Claimed],
        refused: dict[int, errors.StatestreamError],
    ) -> list[_Granted]:
        """Granted claims by table; the others go to `refused`."""
        groups: dict[int, _Granted] = {}
        for place, claim, answer in zip(places, claims, answers, strict=True):
            if answer.verdict not in (Verdict.CREATED, Verdict.HELD, Verdict.TAKEN) or answer.record is None:
                refused[place] = _refusal(opening, place, claim, answer)
                continue
            try:
                table = self._registry.load(opening.model, answer.record.version).table
                if table is None:
                    raise errors.ModelChanged(f"version {answer.record.version} of {opening.model!r} has no memory now")
                stored = self._decode(table, opening.ids[place], answer)
            except errors.StatestreamError as error:
                refused[place] = error
                continue
            group = groups.setdefault(id(table), _Granted(table, [], [], []))
            group.places.append(place)
            group.claimed.append(answer)
            group.stored.append(stored)
        return list(groups.values())

    def _decode(self, table: Table, session: str, answer: Claimed) -> Stored | None:
        record = answer.record
        if answer.verdict is not Verdict.TAKEN or record is None:
            return None
        if record.blob is None:
            if record.position:
                raise errors.StateLost(f"the record of session {session!r} has a position and no state")
            return None
        return records.decode(self._saver.layout(table), record.blob, what=f"session {session!r}")

    def _install(self, opening: Opening, group: _Granted, held: Sequence[tuple[Table, int] | None]) -> Opened:
        """Makes rows of granted claims and binds them to their stream. The slab must be still."""
        table, places = group.table, np.asarray(group.places, np.int64)
        rows = self._rows(opening, group, held)
        verdicts = [answer.verdict for answer in group.claimed]
        created = np.asarray([verdict is Verdict.CREATED for verdict in verdicts])
        kept = np.asarray([verdict is Verdict.HELD for verdict in verdicts])
        bindings = self._peers.bind(
            table,
            rows,
            opening.owner,
            opening.handles[places] if opening.handles is not None else np.zeros(len(rows), np.uint32),
        )
        stored_positions = np.asarray([a.record.position for a in group.claimed if a.record], np.uint64)
        table.clear_columns(rows[~kept])
        fresh = np.asarray([stored is None for stored in group.stored]) & ~kept
        if fresh.any():
            table.rows.reset(rows[fresh])
        if opening.initial_states is not None and created.any():
            self._initialise(table, rows[created], [array[places[created]] for array in opening.initial_states])
        self._revive(table, rows, group.stored, stored_positions)
        table.durable[rows] = stored_positions
        table.dirty[rows[kept & (stored_positions < table.position[rows])]] = True
        table.queued[rows] = table.position[rows]
        table.epoch[rows] = [answer.record.epoch for answer in group.claimed if answer.record]
        table.incarnation[rows] = opening.incarnation
        table.writer[rows] = np.void(opening.writer)
        table.ephemeral[rows] = [answer.record.ephemeral for answer in group.claimed if answer.record]
        table.used[rows] = self._clock()
        # What was never applied cannot be acknowledged: its reply is still to come.
        acked = np.maximum(np.minimum(opening.acked_positions[places], table.position[rows]), table.acked[rows])
        table.acked[rows] = acked
        table.replies.acknowledge(rows, acked)
        return Opened(table, rows, places, bindings, created)

    def _rows(self, opening: Opening, group: _Granted, held: Sequence[tuple[Table, int] | None]) -> Ints:
        """The rows of granted claims: the ones held, or new ones."""
        table, rows, missing = group.table, np.empty(len(group.places), np.int64), list[int]()
        for index, place in enumerate(group.places):
            where = held[place]
            if where is not None and where[0] is table:
                rows[index] = where[1]
                continue
            if where is not None:
                where[0].release(np.asarray([where[1]]))
            missing.append(index)
        if missing:
            new = table.allocate(len(missing))
            rows[missing] = new
            for index, row in zip(missing, new.tolist(), strict=True):
                table.bind_key(row, Key(TENANT, opening.model, opening.ids[group.places[index]]))
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
        table.rows.write(rows[at], [np.stack(column) for column in columns])
        table.position[rows[at]] = positions[at]
        table.acked[rows[at]] = [item.acked for _, item in found]
        table.request[rows[at]] = [item.request for _, item in found]
        for index, item in found:
            for reply in item.replies:
                table.replies.append(
                    rows[index : index + 1],
                    np.asarray([reply.start], np.uint64),
                    np.asarray([reply.steps]),
                    np.asarray([reply.digest], np.uint64),
                    reply.outputs,
                    np.zeros(1, np.int64),
                )


@contextmanager
def _claiming(held: Sequence[tuple[Table, int]]) -> Iterator[None]:
    """Marks rows whose claim is on its way."""
    for table, row in held:
        table.claiming[row] = True
    try:
        yield
    finally:
        for table, row in held:
            table.claiming[row] = False


def check_initial_states(table: Table, states: Sequence[Array], count: int) -> None:
    """Checks start values that a caller sent, one array [N, ...] for every state.

    Raises:
        BadTensor: One has the wrong dtype or shape.
    """
    specs = table.model.signature.states
    if len(states) != len(specs):
        raise errors.BadTensor(
            f"{len(states)} initial states came; the model has {len(specs)}: {', '.join(s.input for s in specs)}",
            metadata={"field": "initial_states"},
        )
    for spec, array in zip(specs, states, strict=True):
        expected = (count, *row_shape(spec))
        if array.shape != expected or array.dtype != numpy_dtype(spec.dtype):
            raise errors.BadTensor(
                f"initial state {spec.input!r} is {array.dtype}{list(array.shape)};"
                f" expected {spec.dtype}{list(expected)}",
                metadata={"field": "initial_states"},
            )


def _check_ids(ids: Sequence[str]) -> None:
    if len(set(ids)) != len(ids):
        twice = next(session for session in ids if list(ids).count(session) > 1)
        raise errors.BadFrame(f"session id {twice!r} comes twice; each may come once", metadata={"field": "ids"})
    for session in ids:
        if not 1 <= len(session.encode()) <= MAX_ID_BYTES:
            raise errors.BadFrame(
                f"a session id has {len(session.encode())} bytes; expected 1 to {MAX_ID_BYTES}",
                metadata={"field": "ids"},
            )


def _pinned_elsewhere(opening: Opening, held: Sequence[tuple[Table, int] | None]) -> dict[int, errors.StatestreamError]:
    """Sessions in memory that are pinned to another version than the one asked for."""
    refused: dict[int, errors.StatestreamError] = {}
    for place, where in enumerate(held):
        pinned = where[0].model.version if where else opening.version
        if opening.version and pinned != opening.version and opening.mode != Mode.REPLACE:
            refused[place] = errors.ModelChanged(
                f"session {opening.ids[place]!r} is pinned to version {pinned}, {opening.version} was asked for;"
                " open it without a version, or replace it"
            )
    return refused


def _refusal(opening: Opening, place: int, claim: Claim, answer: Claimed) -> errors.StatestreamError:
    session, record = opening.ids[place], answer.record
    if answer.verdict is Verdict.EXISTS:
        return errors.SessionExists(
            f"session {session!r} exists already; choose another id, or open it with mode either or resume"
        )
    if answer.verdict is Verdict.MISSING:
        return errors.SessionNotFound(f"no session {session!r} of model {opening.model!r}; create it first")
    if answer.verdict is Verdict.REFUSED:
        newest = record.incarnation if record else 0
        return errors.SessionMoved(
            f"session {session!r} was claimed with incarnation {newest}; this claim has {opening.incarnation}",
            metadata={"incarnation": str(newest), "epoch": str(record.epoch if record else 0)},
        )
    position = record.position if record else 0
    if claim.held_epoch and (record is None or record.epoch == claim.held_epoch):
        position = claim.held_position  # The row in memory is newer than its record.
    return errors.StateLost(
        f"session {session!r} is at position {position} here; the caller can replay from"
        f" {int(opening.replay_positions[place])} only, so steps between are lost. Replay your inputs from"
        f" {position}, or start the session anew",
        metadata={"position": str(position)},
    )
