"""Sessions between table and store: opening, taking over, closing. What rows mean is table.py's."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from statestream import errors
from statestream_server.arrays import Bools, Ints
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import UNBOUND, Table, claiming
from statestream_server.registry import Registry
from statestream_server.sessions.contact import Contact
from statestream_server.sessions.openings import (
    Opened,
    Opening,
    check_ids,
    check_numbers,
    claims_of,
    outbid,
    pinned_elsewhere,
    pinned_to_others,
    unloadable,
)
from statestream_server.sessions.peers import Peers
from statestream_server.sessions.placement import Placement
from statestream_server.sessions.saver import Saver
from statestream_server.sessions.versions import Versions
from statestream_server.settings import Durability
from statestream_server.stores.base import Mode, Store


class Sessions:
    """Opens and closes sessions. One opening or closing at a time; steps go on meanwhile."""

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
        self.placement = placement
        self._versions = versions
        self._contact = contact
        self._clock = clock
        self._leaving: set[asyncio.Task[None]] = set()
        self._making_way: dict[int, asyncio.Task[None]] = {}

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

    def _find_all(self, opening: Opening) -> list[tuple[Table, int] | None]:
        held: list[tuple[Table, int] | None] = [None] * len(opening.ids)
        for table in reversed(self._registry.tables(opening.model)):
            for place, row in enumerate(map(table.row_of.get, opening.ids)):
                if row is not None:
                    held[place] = table, row
        return held

    async def open(
        self, opening: Opening, loading: Callable[[], None] = lambda: None
    ) -> tuple[list[Opened], dict[int, errors.StatestreamError]]:
        """Opens or resumes sessions and fences whoever had them.

        A session whose version cannot be had here is refused before it is claimed: its owner keeps it.

        Args:
            opening: What is asked for.
            loading: Is called before the caller waits for a version that has to load.

        Returns:
            What is open, by version, and why the others are not, by their place.

        Raises:
            ModelNotFound, Unsupported, BadFrame, TooManySessions, StoreUnavailable, Draining: Nothing was opened.
        """
        self._check_staying()
        check_ids(opening.ids)
        check_numbers(opening)
        opened, refused = list[Opened](), dict[int, errors.StatestreamError]()
        rounds: list[tuple[int, Sequence[int]]] = [(opening.version, range(len(opening.ids)))]
        while rounds:
            version, places = rounds.pop(0)
            asked = opening if version == opening.version and not opened else opening.some(places, version)
            try:
                await self.table(opening.model, version, loading)  # Nothing is claimed yet, and others open sessions.
                self._check_staying()
                async with self.lock:
                    if not self.is_loaded(opening.model, version):
                        rounds.append((version, places))
                        continue
                    table = await self.table(opening.model, version)
                    more, refusals, elsewhere = await self._open(asked, table)
            except errors.StatestreamError as error:
                if version == opening.version and not opened and not refused:
                    raise
                refused |= {place: unloadable(opening, place, version, error) for place in places}
                continue
            opened += [replace(part, places=np.asarray(places, np.int64)[part.places]) for part in more]
            refused |= {places[place]: error for place, error in refusals.items()}
            rounds += [(found, [places[place] for place in some]) for found, some in elsewhere.items()]
        return opened, refused

    async def _open(
        self, opening: Opening, table: Table
    ) -> tuple[list[Opened], dict[int, errors.StatestreamError], dict[int, list[int]]]:
        """Opens sessions that are new in `table`, pinned to its version, or in memory.

        Returns:
            What is open, why others are not, and which are pinned to other versions: nothing of these was claimed.
        """
        held = await self._settled(opening, self._find_all(opening))
        here = np.asarray([where[1] for where in held if where is not None and where[0] is table], np.int64)
        coming = [where is None or (opening.upgrade and where[0] is not table) for where in held]
        self.placement.make_room(table, sum(coming), keep=here)
        refused = {**pinned_elsewhere(opening, held), **outbid(opening, held)}
        with claiming([where for where in held if where is not None]):
            if opening.upgrade:
                refused |= await self._versions.prepare(opening, table, held)
            places = [place for place in range(len(opening.ids)) if place not in refused]
            claims = claims_of(opening, table.model.version, places, held, self._contact.owner)
            asked = self._contact.ask()
            answers = await self._store.claim(claims)
            elsewhere = pinned_to_others(opening, places, answers)
            granted = self.placement.grant(opening, table, held, places, claims, answers, refused)
            for place in itertools.chain.from_iterable(elsewhere.values()):
                del refused[place]
            granted = [group for group in granted if self.placement.fits(group, held, refused)]
            async with self._engine.still():
                granted = [group for group in granted if self.placement.has_rows(group, refused)]
                opened = [self.placement.install(opening, group, held) for group in granted]
            for part in opened:
                self._contact.answered(asked, part.table, part.rows)
            if opening.upgrade:
                opened = [
                    await self._moved(opening, part, np.asarray(group.moved), refused)
                    for part, group in zip(opened, granted, strict=True)
                ]
        if opening.initial_states is not None:
            for part in opened:
                await self._saver.flush(part.table, part.rows[part.created])
        return opened, refused, elsewhere

    async def _moved(
        self, opening: Opening, part: Opened, moved: Bools, refused: dict[int, errors.StatestreamError]
    ) -> Opened:
        """Saves sessions that came from another version; those that are open then.

        Until their record is of the new version, no step of it may be answered: after a crash it would be repeated by
        the old one. A session that cannot be saved leaves memory: the store has its last step, in one of the versions.
        """
        table, rows = part.table, part.rows[moved]
        failed: errors.StatestreamError = errors.SessionMoved("another server opened the session while it moved")
        with claiming([(table, row) for row in rows.tolist()]):
            try:
                await self._saver.write(table, rows)
            except errors.StoreUnavailable as error:
                failed = error
            unsaved = moved & table.dirty[part.rows] & (self._saver.mode != Durability.NONE)
        refused.update(dict.fromkeys(part.places[unsaved].tolist(), failed))
        self.detach(table, part.rows[unsaved])
        self.drop(table, part.rows[unsaved], failed)
        return part.some(~unsaved)

    def is_loaded(self, model: str, version: int) -> bool:
        """Whether `table` does not have to load."""
        return not version or self._registry.is_loaded(model, version)

    async def unload(self, model: str, version: int) -> None:
        """Unloads a version, 0 for every one; nobody is opening a session of it meanwhile.

        Raises:
            ModelNotFound, ModelInUse: It stays as it is.
        """
        async with self.lock:
            tables = [table for table in self._registry.tables(model) if version in (0, table.model.version)]
            self._registry.unload(model, version)
            for table in tables:
                self._peers.unloaded(table)

    async def undisputed(self, table: Table, rows: Ints) -> None:
        """Returns when no claim on these rows is on its way: what came meanwhile waits to see who has them."""
        while table.claiming[rows].any():
            async with self.lock:
                pass

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

    async def delete(self, table: Table, rows: Ints, *, asker: int = UNBOUND) -> None:
        """Deletes sessions as they are claimed now, once what they have queued has run.

        One that leaves memory meanwhile is deleted all the same; one that is claimed anew meanwhile stays.

        Args:
            table: Their table.
            rows: [n] their rows.
            asker: The stream that asked, which hears of it by its answer; others that have them are told.

        Raises:
            StoreUnavailable: Nothing was deleted.
        """
        rows = rows[[table.ids[row] is not None and table.epoch[row] > 0 for row in rows.tolist()]]
        incarnations = table.incarnation[rows].tolist()
        keys, claims = [key for row in rows.tolist() if (key := table.key(row)) is not None], table.claims(rows)

        def here() -> Bools:
            resident = np.asarray([table.key(row) == key for row, key in zip(rows.tolist(), keys, strict=True)], bool)
            return resident & table.are_claimed(rows, claims)

        async with self.lock:
            await self._engine.settled(table, rows[here()])
            await self._store.delete(keys, claims[1].tolist(), incarnations)
            gone = errors.SessionNotFound("the session was deleted")
            async with self._engine.still():
                rows = rows[here()]
                self._engine.cancel(table, rows, gone)
                self._peers.evict(table, rows, gone, asker=asker)
                table.release(rows)

    def _check_staying(self) -> None:
        if self.draining:
            raise errors.Draining("the server is leaving and takes no new sessions; try another", retry_after=1.0)

    async def table(self, model: str, version: int = 0, loading: Callable[[], None] = lambda: None) -> Table:
        """The table of a version, which is loaded if need be; 0 for the one that serves by default.

        `loading` is called before the caller waits for it to load.

        Raises:
            ModelNotFound: It is not served.
            Unsupported: It has no memory.
        """
        if not self.is_loaded(model, version):
            loading()
        served = await self._registry.load(model, version) if version else self._registry.get(model)
        if served.table is None or served.model.kind != "session":
            verb = "predict" if served.model.kind == "predict" else "generate"
            raise errors.Unsupported(f"model {model!r} has no sessions; call {verb} instead")
        return served.table

    def drop(self, table: Table, rows: Ints, error: errors.StatestreamError) -> None:
        """Forgets rows whose sessions a newer owner has; the store is not touched."""
        rows = rows[table.epoch[rows] > 0]
        table.epoch[rows] = 0  # From now on no reply of theirs leaves and nothing of them is saved.
        self._engine.cancel(table, rows, error)
        self._peers.evict(table, rows, error)
        idle = table.lane.idle(rows)
        table.release(rows[idle])
        if not idle.all():
            task = asyncio.create_task(self._release_later(table, rows[~idle], error))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    def make_way(self, table: Table) -> None:
        """Has sessions that nobody has leave memory, soon and with their replies, as far as the store knows them."""
        if id(table) not in self._making_way:
            task = asyncio.create_task(self._hibernate_detached(table), name="make-way")
            self._making_way[id(table)] = task
            task.add_done_callback(lambda _: self._making_way.pop(id(table)))

    async def _hibernate_detached(self, table: Table) -> None:
        async with self.lock:
            rows = self.placement.idle(table)
            alone = (table.owner[rows] == UNBOUND) & (table.position[rows] > table.acked[rows])
            self.placement.hibernate(table, rows[alone & ~table.ephemeral[rows]])

    async def hibernate(self, table: Table, before: float) -> None:
        """Frees rows that were not used since that Unix time and that the store knows as they are.

        Those that end with their caller stay: in the store alone, their time would go on.
        """
        async with self.lock:
            rows = self.placement.idle(table)
            self.placement.hibernate(table, rows[(table.used[rows] < before) & ~table.ephemeral[rows]])

    async def _release_later(self, table: Table, rows: Ints, error: errors.StatestreamError) -> None:
        """Releases rows once the batch that runs them is over; what they had queued is gone already."""
        serials = table.serial[rows].copy()
        await self._engine.idle(table, rows)
        # One that was opened here again meanwhile is in use.
        table.release(rows[(table.serial[rows] == serials) & (table.epoch[rows] == 0)])

    async def _settled(self, opening: Opening, held: list[tuple[Table, int] | None]) -> list[tuple[Table, int] | None]:
        """Where the sessions are once what they had queued has run; until they are bound anew, nothing joins it.

        The claim before this one keeps what it sent in time: if this claim is refused, nothing happened to it.
        """
        while True:
            with claiming([where for where in held if where is not None]):
                self.placement.pass_on()
                for table in {id(where[0]): where[0] for where in held if where is not None}.values():
                    rows = [where[1] for where in held if where is not None and where[0] is table]
                    await self._engine.settled(table, np.asarray(rows, np.int64))
            found = self._find_all(opening)
            if found == held and all(
                where is None or where[0].lane.idle(np.asarray([where[1]])).all() for where in found
            ):
                return found
            held = found
