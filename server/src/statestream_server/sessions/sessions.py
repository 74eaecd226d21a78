"""Sessions between table and store: opening, taking over, closing. What rows mean is table.py's."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Bools, Ints
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import UNBOUND, Claiming, Table
from statestream_server.registry import Registry
from statestream_server.sessions import records
from statestream_server.sessions.contact import Contact
from statestream_server.sessions.departures import Departures
from statestream_server.sessions.held import Held
from statestream_server.sessions.openings import (
    Carried,
    Opened,
    Opening,
    Start,
    check_ids,
    check_numbers,
    claims_of,
    outbid,
    pinned_elsewhere,
    pinned_to_others,
    unloadable,
)
from statestream_server.sessions.peers import Peers
from statestream_server.sessions.placement import Placement, Promise
from statestream_server.sessions.saver import Saver
from statestream_server.sessions.turns import Turn, Turns
from statestream_server.sessions.versions import Move, Versions
from statestream_server.stores.base import TENANT, Claim, Claimed, Key, Mode, Store, Verdict

log = logging.getLogger(__name__)

T = TypeVar("T")

_DELETED = "the session was deleted"
_PAUSE_SECONDS = 0.2
"""How long a store that did not answer is left alone."""


@dataclass(frozen=True, slots=True)
class _Ready:
    """An opening of which all is known that its claim needs.

    Attributes:
        opening: It, with the whole state of new sessions.
        table: Of the version that is claimed.
        held: Where its sessions are in memory.
        places: [n] which of them are claimed.
        claims: Their claims.
        moves: What sessions of other versions take along.
        refused: Why others are not claimed.
        promise: Rows for those that are not in memory.
        claiming: The rows of those that are.
        turn: Its turn on the sessions.
        resting: Rows that are not saved meanwhile, because their sessions move.
    """

    opening: Opening
    table: Table
    held: Held
    places: Ints
    claims: Sequence[Claim]
    moves: Mapping[int, Move]
    refused: Mapping[int, errors.StatestreamError]
    promise: Promise
    claiming: Claiming
    turn: Turn
    resting: Sequence[_Resting]

    def end(self) -> None:
        """Gives back what is not needed any more."""
        _rouse(self.resting)
        self.promise.end()
        self.claiming.end()
        self.turn.end()


class _Resting(NamedTuple):
    """Rows [n] that are not saved, and the serials [n] by which they are known."""

    table: Table
    rows: Ints
    serials: Ints


def _rouse(resting: Sequence[_Resting]) -> None:
    """Has rows saved again that did not move after all."""
    for table, rows, serials in resting:
        table.dirty[rows[(table.serial[rows] == serials) & (table.epoch[rows] > 0)]] = True


class Sessions:
    """Opens and closes sessions. Claims of one session are made one after the other; nothing waits for another's."""

    def __init__(
        self,
        registry: Registry,
        engine: Engine,
        store: Store,
        saver: Saver,
        peers: Peers,
        placement: Placement,
        versions: Versions,
        contact: Contact,
        departures: Departures,
        clock: Callable[[], float],
    ) -> None:
        """Nothing is open; `clock` gives Unix time."""
        self.draining = False
        self.turns = Turns()
        self._registry = registry
        self._engine = engine
        self._store = store
        self._saver = saver
        self._peers = peers
        self.placement = placement
        self._versions = versions
        self._contact = contact
        self._departures = departures
        self._clock = clock
        self._starts: dict[int, tuple[Table, list[Array]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        """What was begun and must end, whoever waits for it."""
        self._asking: set[asyncio.Task[None]] = set()

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

        A session whose version cannot be had here is refused before it is claimed: its owner keeps it. Cancelled before
        a claim is on its way, nothing happened; after it, the sessions are claimed and left to nobody, or to the stream
        that asked, where that is still there.

        Returns:
            What is open, by version, and why the others are not, by their place.

        Raises:
            ModelNotFound, Unsupported, BadFrame, TooManySessions, RecordTooLarge, Draining: Nothing was opened.
            StoreUnavailable: Nothing was opened; the store may have the claims, which cost the sessions nothing.
        """
        self._check_staying()
        check_ids(opening.ids)
        check_numbers(opening, self._clock())
        opened, refused = list[Opened](), dict[int, errors.StatestreamError]()
        rounds: list[tuple[int, Sequence[int]]] = [(opening.version, range(len(opening.ids)))]
        while rounds:
            version, places = rounds.pop(0)
            whole = version == opening.version and len(places) == len(opening.ids)
            asked = opening if whole else opening.some(places, version)
            try:
                table = await self.table(opening.model, version)  # Nothing is claimed yet.
                self._check_staying()
                ready = await self._ready(asked, version, table)
                if ready is None:
                    rounds.append((version, places))
                    continue
                more, refusals, elsewhere = await self._finish(self._claim(ready))
            except errors.StatestreamError as error:
                if version == opening.version and not opened and not refused:
                    raise
                refused |= {place: unloadable(opening, place, version, error) for place in places}
                continue
            opened += [replace(part, places=np.asarray(places, np.int64)[part.places]) for part in more]
            refused |= {places[place]: error for place, error in refusals.items()}
            rounds += [(found, [places[place] for place in some]) for found, some in elsewhere.items()]
        return opened, refused

    async def _ready(self, opening: Opening, version: int, table: Table) -> _Ready | None:
        """Everything that a claim needs, once the turn of its sessions has come; None where the version is unloaded.

        Once what is claimed is granted nothing may be missing any more: rows, room in the store, a state that fits.
        """
        turn, claiming = self.turns.take(opening.model, opening.ids), Claiming()
        promise: Promise | None = None
        resting = list[_Resting]()
        try:
            await turn.come()
            if self._registry.table(opening.model, table.model.version) is not table:
                turn.end()
                return None
            held = await self._settled(opening, claiming)
            if await self._drop_overtaken(opening, held):
                held = await self._settled(opening, claiming)
            here = held.within(table)
            coming = ~here if opening.upgrade or opening.mode is Mode.REPLACE else ~held.here
            promise = await self.placement.promise(table, int(coming.sum()), keep=held.rows[here])
            opening = await self._with_start(opening, table)
            moves = dict[int, Move]()
            refused = {**pinned_elsewhere(opening, held), **outbid(opening, held)}
            if opening.upgrade:
                moving = [(source, rows) for source, _, rows in held.by_table() if source is not table]
                resting += [_Resting(source, rows, source.serial[rows]) for source, rows in moving]
                await self._saver.rest(moving)
                moves, unfit = await self._versions.prepare(opening, table, held)
                refused |= unfit
                if self._registry.table(opening.model, table.model.version) is not table:
                    raise errors.ModelNotFound(f"version {version} of {opening.model!r} was unloaded meanwhile")
            places = np.delete(np.arange(len(opening.ids)), [*refused])
            carried = self._carried(opening, table, moves)
            for place, state in carried.items():
                self._saver.check_size(opening.ids[place], len(state.blob or b""))
            claims = claims_of(opening, table.model.version, places, held, self._contact.owner, carried)
        except BaseException:
            if promise is not None:
                promise.end()
            _rouse(resting)
            claiming.end()
            turn.end()
            raise
        return _Ready(opening, table, held, places, claims, moves, refused, promise, claiming, turn, resting)

    async def _claim(
        self, ready: _Ready
    ) -> tuple[list[Opened], dict[int, errors.StatestreamError], dict[int, list[int]]]:
        """Claims sessions and installs what the store grants; begun, it ends, whoever waits for it.

        Where the store does not answer, its decision is not known, and nothing depends on it: until a claim is heard
        of, the row that it went on from is as good as before (see stores/base.py, `fence`).

        Returns:
            What is open, why others are not, and which are pinned to other versions: nothing of these was claimed.
        """
        opening, table, held = ready.opening, ready.table, ready.held
        try:
            asked, resets = self._contact.ask(), self._contact.resets
            answers = await self._store.claim(ready.claims)
            elsewhere = pinned_to_others(opening, ready.places, answers)
            if opening.upgrade:
                other = [answer.verdict is Verdict.OTHER for answer in answers]
                again = ready.places[other].tolist()
                elsewhere = {opening.version: again} if again else {}
            self._drop_stale(held, ready.places, answers)
            granted, refusals = self.placement.grant(
                opening, table, held, ready.places, ready.claims, answers, ready.moves
            )
            refused = {**ready.refused, **refusals}
            for place in itertools.chain.from_iterable(elsewhere.values()):
                del refused[place]
            opened = list[Opened]()
            async with self._engine.still():
                for group in granted:
                    try:
                        opened.append(self.placement.install(opening, group, held, ready.promise))
                    except errors.TooManySessions as error:
                        refused.update(dict.fromkeys(group.places.tolist(), error))
            for part in opened:
                self._contact.answered(asked, part.table, part.rows)
                if self._contact.resets != resets:  # The store was emptied behind the claim.
                    part.table.dirty[part.rows] = True
            return opened, refused, elsewhere
        finally:
            ready.end()
            self._saver.look_again()

    async def _drop_overtaken(self, opening: Opening, held: Held) -> bool:
        """Drops rows because of which an opening would be refused, where they are not the sessions any more.

        A session that moved to another version on another server may have left its old row here, which nobody has
        asked for since. Whether there were any.

        Raises:
            StoreUnavailable: It is not known.
        """
        dropped = False
        for table, places, rows in held.by_table():
            if not set(pinned_elsewhere(opening, held)).isdisjoint(places.tolist()):
                claims = table.claims(rows)
                heads = await self._store.heads(table.keys(rows))
                fences = [0 if head is None else head.fence if head.live else head.epoch + 1 for head in heads]
                stale = rows[table.are_claimed(rows, claims) & (np.asarray(fences, np.uint64) > claims[1])]
                dropped |= len(stale) > 0
                self.drop(table, stale, errors.SessionMoved("another server took the session over"))
        return dropped

    def _drop_stale(self, held: Held, places: Ints, answers: Sequence[Claimed]) -> None:
        """Drops rows that a claim which was not granted found overtaken."""
        fences = np.zeros(len(held.rows), np.uint64)
        for place, (verdict, record) in zip(places.tolist(), answers, strict=True) if held.here.any() else ():
            if verdict > Verdict.TAKEN and record is not None and record.live:
                fences[place] = record.fence
        for table, at, rows in held.by_table():
            stale = rows[fences[at] > table.epoch[rows]]
            if len(stale):
                self.drop(table, stale, errors.SessionMoved("another server took the session over"))

    async def _with_start(self, opening: Opening, table: Table) -> Opening:
        """An opening that says the whole state of new sessions, where it says anything of it."""
        if opening.initial_states is None:
            return opening
        count = len(opening.ids)
        values = [np.repeat(value[None], count, axis=0) for value in await self.start(table)]
        values[: len(opening.initial_states)] = opening.initial_states
        nothing = np.zeros(count, np.uint64)
        return replace(opening, start=Start(values, nothing, nothing), initial_states=None)

    def _carried(self, opening: Opening, table: Table, moves: Mapping[int, Move]) -> dict[int, Carried]:
        """What claims carry: the states of new sessions, and sessions that move."""
        carried, start = dict[int, Carried](), opening.start
        if start is not None and opening.mode is not Mode.RESUME:
            rows = np.arange(len(opening.ids))
            blobs = records.encode(self._saver.layout(table), start.values, start.positions, start.requests, None, rows)
            states = zip(blobs, start.positions.tolist(), strict=True)
            carried = {place: Carried(blob, position) for place, (blob, position) in enumerate(states)}
        return carried | {place: move.carried for place, move in moves.items()}

    async def start(self, table: Table) -> list[Array]:
        """The values of a new session: one array for every column of the slab, without the row axis."""
        found = self._starts.get(id(table))
        if found is None or found[0] is not table:
            async with self._engine.still():
                rows = table.allocate(1, scratch=True)
                table.rows.reset(rows)
                found = self._starts[id(table)] = table, [array[0].copy() for array in table.rows.read(rows)]
                table.release(rows)
        return found[1]

    async def _finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Does something to the end, whoever is cancelled meanwhile."""
        task = asyncio.create_task(work, name="session-work")
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()  # Who still waits for it hears of it.
        if error is not None and not isinstance(error, errors.StatestreamError):
            log.error("a claim or a delete failed in a way that was not expected", exc_info=error)

    async def finished(self) -> None:
        """Returns when everything that was begun so far has ended."""
        if self._tasks:
            await asyncio.wait([*self._tasks])
        await self._departures.finished()

    def is_loaded(self, model: str, version: int) -> bool:
        """Whether `table` does not have to load."""
        return not version or self._registry.is_loaded(model, version)

    async def unload(self, model: str, version: int) -> None:
        """Unloads a version, 0 for every one.

        Raises:
            ModelNotFound, ModelInUse: It stays as it is.
        """
        tables = [table for table in self._registry.tables(model) if version in (0, table.model.version)]
        self._registry.unload(model, version)
        for table in tables:
            self._starts.pop(id(table), None)
            self._peers.unloaded(table)

    async def undisputed(self, table: Table, rows: Ints) -> None:
        """Returns when no claim on these rows that is on its way now is so any more: see then who has them."""
        disputed = rows[table.claiming[rows]]
        await self.turns.passed(table.model.name, [id_ for row in disputed.tolist() if (id_ := table.ids[row])])

    async def open_one(
        self,
        model: str,
        version: int,
        session: str,
        mode: Mode,
        writer: bytes,
        *,
        ephemeral: bool = False,
        upgrade: bool = False,
        start: Start | None = None,
    ) -> Opened:
        """Opens one session for a caller that has no stream and no incarnations of its own.

        Such a caller means what it says: a claim from a clock that is ahead is outbid.

        Raises:
            StatestreamError: It was not opened; see `open`.
        """
        nothing, incarnation = np.zeros(1, np.uint64), int(self._clock() * 1e6)
        for _ in range(2):
            opening = Opening(
                model,
                version,
                [session],
                mode,
                writer,
                incarnation,
                nothing,
                nothing,
                nothing,
                ephemeral,
                upgrade=upgrade,
                start=start,
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
        turn, claiming, claims = self._turn_on(table, rows), Claiming(), table.claims(rows)
        keys, incarnations = table.keys(rows), table.incarnation[rows].tolist()

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
                            self._departures.let_go(table, left, error, asker if which is done else UNBOUND)
                return done
            except errors.StoreUnavailable:
                claiming.end()
                self._ask_later(table, rows[here()])
                raise
            finally:
                claiming.end()
                turn.end()
                self._saver.look_again()

        try:
            await turn.come()
            await self._engine.settled(table, rows[here()])
        except BaseException:
            turn.end()
            raise
        gone[named] = await self._finish(delete())
        return gone

    def _turn_on(self, table: Table, rows: Ints) -> Turn:
        return self.turns.take(table.model.name, [id_ for row in rows.tolist() if (id_ := table.ids[row]) is not None])

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
                    left = await self._contact.check(table, left)
                except errors.StoreUnavailable:
                    await asyncio.sleep(_PAUSE_SECONDS)

        if len(rows):
            task = asyncio.create_task(ask(), name="session-check")
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def delete_stored(self, model: str, session: str, epoch: int, incarnation: int) -> bool:
        """Deletes a session that is not in memory; False where a newer claim than that epoch has it.

        Raises:
            StoreUnavailable: What was deleted is not known.
        """
        key = Key(TENANT, model, session)

        async def delete() -> bool:
            try:
                answers = await self._store.delete([key], [epoch], [incarnation])
                return bool((await self._spared([key], [epoch], answers)).all())
            finally:
                turn.end()

        turn = self.turns.take(model, [session])
        try:
            await turn.come()
        except BaseException:
            turn.end()
            raise
        return await self._finish(delete())

    def _check_staying(self) -> None:
        if self.draining:
            raise errors.Draining("the server is leaving and takes no new sessions; try another", retry_after=1.0)

    async def table(self, model: str, version: int = 0) -> Table:
        """The table of a version, which is loaded if need be; 0 for the one that serves by default.

        Raises:
            ModelNotFound: It is not served.
            Unsupported: It has no memory.
        """
        served = await self._registry.load(model, version) if version else self._registry.get(model)
        if served.table is None or served.model.kind != "session":
            verb = "predict" if served.model.kind == "predict" else "generate"
            raise errors.Unsupported(f"model {model!r} has no sessions; call {verb} instead")
        return served.table

    def drop(self, table: Table, rows: Ints, error: errors.StatestreamError) -> None:
        """Forgets rows whose sessions a newer owner has; the store is not touched."""
        self._departures.drop(table, rows, error)

    async def hibernate(self, table: Table, before: float) -> None:
        """Frees rows that were not used since that time and that the store knows as they are.

        Those that end with their caller stay: in the store alone, their time would go on.
        """
        rows = self.placement.idle(table)
        self.placement.hibernate(table, rows[(table.used[rows] < before) & ~table.ephemeral[rows]])

    async def _settled(self, opening: Opening, claiming: Claiming) -> Held:
        """Where the sessions are once what they had queued has run; until they are bound anew, nothing joins it.

        The claim before this one keeps what it sent in time: if this claim is refused, nothing happened to it.
        """
        while True:
            held = Held.find(self._registry.tables(opening.model), opening.ids)
            claiming.end()
            there = [*held.by_table()]
            for table, _, rows in there:
                claiming.mark(table, rows)
            self._engine.take_in()
            waits = False
            for table, _, rows in there:
                if not table.lane.idle(rows).all():
                    waits = True
                    await self._engine.settled(table, rows)
            if not waits:
                return held
