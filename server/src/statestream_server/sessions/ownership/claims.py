"""One round of claims: what it needs, the store's word, the rows of what it grants."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Ints
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import Claiming, Table
from statestream_server.registry import Registry
from statestream_server.sessions import records
from statestream_server.sessions.checkpointer import Checkpointer
from statestream_server.sessions.lease import Lease
from statestream_server.sessions.ownership.evictions import Evictions
from statestream_server.sessions.ownership.held import Held
from statestream_server.sessions.ownership.openings import (
    Carried,
    Opened,
    Opening,
    Start,
    claims_of,
    outbid,
    pinned_elsewhere,
    pinned_to_others,
)
from statestream_server.sessions.ownership.placement import Placement, Promise
from statestream_server.sessions.ownership.turns import Turn, Turns
from statestream_server.sessions.ownership.versions import Move, Versions
from statestream_server.sessions.writes import check_size
from statestream_server.stores.base import NEWER, Claim, Claimed, Mode, Store, Verdict

FEW: Final = 64
"""Claims of more sessions are large."""
LARGE: Final = 2
"""So many large claims are with the store at a time: one is decided, the next is there when it is."""


class Ready(NamedTuple):
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


class Claims:
    """Claims sessions of one version for an opening, and installs what the store grants."""

    def __init__(
        self,
        registry: Registry,
        engine: Engine,
        store: Store,
        checkpointer: Checkpointer,
        placement: Placement,
        versions: Versions,
        lease: Lease,
        evictions: Evictions,
        turns: Turns,
    ) -> None:
        """Nothing is claimed."""
        self._registry = registry
        self._engine = engine
        self._store = store
        self._checkpointer = checkpointer
        self._placement = placement
        self._versions = versions
        self._lease = lease
        self._evictions = evictions
        self._turns = turns
        self._starts: dict[int, tuple[Table, list[Array]]] = {}
        # A question that waits for hundreds before it says, once answered, nothing of now: the lease would run out.
        self._large = asyncio.Semaphore(LARGE)

    async def ready(self, opening: Opening, version: int, table: Table) -> Ready | None:
        """Everything that a claim needs, once the turn of its sessions has come; None where the version is unloaded.

        Once what is claimed is granted nothing may be missing any more: rows, room in the store, a state that fits.
        """
        turn, claiming = self._turns.take(opening.tenant, opening.model, opening.ids), Claiming()
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
            promise = await self._placement.promise(table, int(coming.sum()), keep=held.rows[here])
            opening = await self._with_start(opening, table)
            moves = dict[int, Move]()
            refused = {**pinned_elsewhere(opening, held), **outbid(opening, held)}
            if opening.upgrade:
                moving = [(source, rows) for source, _, rows in held.by_table() if source is not table]
                resting += [_Resting(source, rows, source.serial[rows]) for source, rows in moving]
                await self._checkpointer.writes.rest(moving)
                moves, unfit = await self._versions.prepare(opening, table, held)
                refused |= unfit
                if self._registry.table(opening.model, table.model.version) is not table:
                    raise errors.ModelNotFound(f"version {version} of {opening.model!r} was unloaded meanwhile")
            places = np.delete(np.arange(len(opening.ids)), [*refused])
            carried = self._carried(opening, table, moves)
            for place, state in carried.items():
                check_size(opening.ids[place], len(state.blob or b""))
            claims = claims_of(opening, table.model.version, places, held, self._lease.owner, carried)
        except BaseException:
            if promise is not None:
                promise.end()
            _rouse(resting)
            claiming.end()
            turn.end()
            raise
        return Ready(opening, table, held, places, claims, moves, refused, promise, claiming, turn, resting)

    async def claim(
        self, ready: Ready
    ) -> tuple[list[Opened], dict[int, errors.StatestreamError], dict[int, list[int]]]:
        """Claims sessions and installs what the store grants; begun, it ends, whoever waits for it.

        Where the store does not answer, its decision is not known, and nothing depends on it: until a claim is heard
        of, the row that it went on from is as good as before (see stores/base.py, `fence`).

        Returns:
            What is open, why others are not, and which are pinned to other versions: nothing of these was claimed.
        """
        opening, table, held = ready.opening, ready.table, ready.held
        try:
            async with self._large if len(ready.claims) > FEW else contextlib.nullcontext():
                asked, resets = self._lease.ask(), self._lease.resets
                answers = await self._store.claim(ready.claims)
            elsewhere = pinned_to_others(opening, ready.places, answers)
            if opening.upgrade:
                other = [answer.verdict is Verdict.OTHER for answer in answers]
                again = ready.places[other].tolist()
                elsewhere = {opening.version: again} if again else {}
            self._drop_stale(held, ready.places, answers)
            granted, refusals = self._placement.grant(
                opening, table, held, ready.places, ready.claims, answers, ready.moves
            )
            refused = {**ready.refused, **refusals}
            for place in itertools.chain.from_iterable(elsewhere.values()):
                del refused[place]
            opened = list[Opened]()
            async with self._engine.still():
                for group in granted:
                    try:
                        opened.append(self._placement.install(opening, group, held, ready.promise))
                    except errors.TooManySessions as error:
                        refused.update(dict.fromkeys(group.places.tolist(), error))
            for part in opened:
                self._lease.answered(asked, part.table, part.rows)
                if self._lease.resets != resets:  # The store was emptied behind the claim.
                    part.table.dirty[part.rows] = True
            return opened, refused, elsewhere
        finally:
            ready.end()
            self._checkpointer.look_again()

    async def _drop_overtaken(self, opening: Opening, held: Held) -> bool:
        """Drops rows because of which an opening would be refused, where they are not the sessions any more.

        A session that moved to another version on another server may have left its old row here, which nobody has
        asked for since. Whether there were any.

        Raises:
            StoreUnavailable: It is not known.
        """
        dropped, pinned = False, pinned_elsewhere(opening, held)
        for table, places, rows in held.by_table() if pinned else ():
            if not pinned.keys().isdisjoint(places.tolist()):
                claims = table.claims(rows)
                heads = await self._store.heads(table.keys(rows))
                fences = [0 if head is None else head.fence if head.live else head.epoch + 1 for head in heads]
                stale = rows[table.are_claimed(rows, claims) & (np.asarray(fences, np.uint64) > claims[1])]
                dropped |= len(stale) > 0
                self._evictions.drop(table, stale, errors.SessionMoved("another server took the session over"))
        return dropped

    def _drop_stale(self, held: Held, places: Ints, answers: Sequence[Claimed]) -> None:
        """Drops rows that a claim which was not granted found overtaken."""
        fences = np.zeros(len(held.rows), np.uint64)
        for place, (verdict, record) in zip(places.tolist(), answers, strict=True) if held.here.any() else ():
            if verdict > Verdict.TAKEN and record is not None and record.live:
                fences[place] = record.fence
            elif verdict is Verdict.OTHER and record is None:  # What was to move is buried.
                fences[place] = NEWER
        for table, at, rows in held.by_table():
            stale = rows[fences[at] > table.epoch[rows]]
            if len(stale):
                self._evictions.drop(table, stale, errors.SessionMoved("another server took the session over"))

    async def _with_start(self, opening: Opening, table: Table) -> Opening:
        """An opening that says the whole state of new sessions, where it says anything of it."""
        if opening.initial_states is None:
            return opening
        count = len(opening.ids)
        values = [np.repeat(value[None], count, axis=0) for value in await self.start(table)]
        for place, given in enumerate(opening.initial_states):
            if given is not None:
                values[place] = given
        nothing = np.zeros(count, np.uint64)
        return replace(opening, start=Start(values, nothing, nothing, nothing), initial_states=None)

    def _carried(self, opening: Opening, table: Table, moves: Mapping[int, Move]) -> dict[int, Carried]:
        """What claims carry: the states of new sessions, and sessions that move."""
        carried, start = dict[int, Carried](), opening.start
        if start is not None and opening.mode is not Mode.RESUME:
            rows = np.arange(len(opening.ids))
            blobs = records.encode(
                self._checkpointer.layout(table), start.values, start.positions, start.requests, None, rows,
                origins=start.origins, cursors=start.cursors,
            )  # fmt: skip
            states = zip(blobs, start.positions.tolist(), strict=True)
            carried = {place: Carried(blob, position) for place, (blob, position) in enumerate(states)}
        return carried | {place: move.carried for place, move in moves.items()}

    def forget(self, table: Table) -> None:
        """Keeps nothing of a table that is unloaded."""
        self._starts.pop(id(table), None)

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

    async def _settled(self, opening: Opening, claiming: Claiming) -> Held:
        """Where the sessions are once what they had queued has run; until they are bound anew, nothing joins it.

        The claim before this one keeps what it sent in time: if this claim is refused, nothing happened to it.
        """
        while True:
            held = Held.find(self._registry.tables(opening.model), opening.tenant, opening.ids)
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
