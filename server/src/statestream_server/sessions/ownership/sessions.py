"""Sessions between table and store: found, opened, let go. What rows mean is table.py's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from statestream.contract import errors
from statestream_server import caller
from statestream_server.arrays import Array, Ints
from statestream_server.engine.table import UNBOUND, Table
from statestream_server.registry import Registry
from statestream_server.sessions.ownership.claims import Claims
from statestream_server.sessions.ownership.hibernation import Hibernation
from statestream_server.sessions.ownership.openings import (
    Opened,
    Opening,
    Start,
    check_ids,
    check_numbers,
    unloadable,
)
from statestream_server.sessions.ownership.placement import Placement
from statestream_server.sessions.ownership.streams import Streams
from statestream_server.sessions.ownership.tasks import Tasks
from statestream_server.sessions.ownership.turns import Turns
from statestream_server.stores.base import Key, Mode


class Sessions:
    """Opens sessions and lets them go. Claims of one session are made one after the other; none waits for another's."""

    def __init__(
        self,
        registry: Registry,
        streams: Streams,
        placement: Placement,
        hibernation: Hibernation,
        claims: Claims,
        turns: Turns,
        tasks: Tasks,
        clock: Callable[[], float],
    ) -> None:
        """Nothing is open; `clock` gives Unix time."""
        self.draining = False
        self.turns = turns
        self.placement = placement
        self.hibernation = hibernation
        self._registry = registry
        self._streams = streams
        self._claims = claims
        self._tasks = tasks
        self._clock = clock

    def find(self, key: Key) -> tuple[Table, int] | None:
        """The table and row of a session in memory, or None.

        Raises:
            ModelNotFound: The model is not served.
        """
        for table in self._registry.tables(key.model):
            row = table.rows_of(key.tenant).get(key.id)
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
        with self._within(opening):
            return await self._open(opening)

    @contextmanager
    def _within(self, opening: Opening) -> Iterator[None]:
        """Counts sessions that come into memory for a tenant, while they do.

        Raises:
            TooManySessions: The tenant would have more there than it may.
        """
        grant = caller.current.get().grant
        if grant is None or grant.token.tenant != opening.tenant:
            yield
            return
        tables = [served.table for served in self._registry if served.table is not None]
        own = [table.rows_of(opening.tenant) for table in tables if table.model.name == opening.model]
        coming = sum(not any(id in rows for rows in own) for id in opening.ids)
        if not coming:
            yield
            return
        usage = grant.usage
        here = sum(len(table.rows_of(opening.tenant)) for table in tables)
        usage.check("sessions", coming, here + usage.held.get("opening", 0))
        usage.held["opening"] = usage.held.get("opening", 0) + coming
        try:
            yield
        finally:
            usage.held["opening"] -= coming

    async def _open(self, opening: Opening) -> tuple[list[Opened], dict[int, errors.StatestreamError]]:
        opened, refused = list[Opened](), dict[int, errors.StatestreamError]()
        rounds: list[tuple[int, Sequence[int]]] = [(opening.version, range(len(opening.ids)))]
        while rounds:
            version, places = rounds.pop(0)
            whole = version == opening.version and len(places) == len(opening.ids)
            asked = opening if whole else opening.some(places, version)
            try:
                table = await self.table(opening.model, version or opening.fresh)  # Nothing is claimed yet.
                self._check_staying()
                ready = await self._claims.ready(asked, version, table)
                if ready is None:
                    rounds.append((version, places))
                    continue
                more, refusals, elsewhere = await self._tasks.finish(self._claims.claim(ready))
            except errors.StatestreamError as error:
                if version == opening.version and not opened and not refused:
                    raise
                refused |= {place: unloadable(opening, place, version, error) for place in places}
                continue
            opened += [replace(part, places=np.asarray(places, np.int64)[part.places]) for part in more]
            refused |= {places[place]: error for place, error in refusals.items()}
            rounds += [(found, [places[place] for place in some]) for found, some in elsewhere.items()]
        return opened, refused

    def is_loaded(self, model: str, version: int) -> bool:
        """Whether `table` does not have to load."""
        return not version or self._registry.is_loaded(model, version)

    def unloaded(self, table: Table) -> None:
        """Keeps nothing of a table that is gone."""
        self._claims.forget(table)
        self._streams.unloaded(table)

    async def undisputed(self, table: Table, rows: Ints) -> None:
        """Returns when no claim on these rows that is on its way now is so any more: see then who has them."""
        disputed = rows[table.claiming[rows]]
        await self.turns.passed(key for row in disputed.tolist() if (key := table.key(row)) is not None)

    async def open_one(
        self,
        key: Key,
        version: int,
        mode: Mode,
        writer: bytes,
        *,
        ephemeral: bool = False,
        upgrade: bool = False,
        start: Start | None = None,
        initial_states: Sequence[Array | None] | None = None,
        alias: str = "",
    ) -> Opened:
        """Opens one session for a caller that has no stream and no incarnations of its own; `alias` as in `fresh`.

        Such a caller means what it says: a claim from a clock that is ahead is outbid.

        Raises:
            StatestreamError: It was not opened; see `open`.
        """
        nothing, incarnation = np.zeros(1, np.uint64), int(self._clock() * 1e6)
        fresh = self.fresh(key.model, version, alias, mode, upgrade=upgrade)
        for _ in range(2):
            opening = Opening(
                key.tenant,
                key.model,
                version,
                [key.id],
                mode,
                writer,
                incarnation,
                nothing,
                nothing,
                nothing,
                ephemeral,
                initial_states,
                upgrade=upgrade,
                start=start,
                fresh=fresh,
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

    def _check_staying(self) -> None:
        if self.draining:
            raise errors.Draining("the server is leaving and takes no new sessions; try another", retry_after=1.0)

    def fresh(self, model: str, version: int, alias: str, mode: Mode, *, upgrade: bool = False) -> int:
        """The version of sessions that are new, or move, where a caller names it by an alias; 0 where none is named.

        Where there can be none of these, nobody asks what the alias names: a session goes on in its own version though
        the alias is gone, or this server has not heard of it yet.

        Raises:
            ModelNotFound: There is no such alias.
            BadFrame: The caller names a version as well.
        """
        if alias and not version and mode is Mode.RESUME and not upgrade:
            return 0
        return self._registry.number(model, version, alias) if alias else 0

    async def table(self, model: str, version: int = 0, alias: str = "") -> Table:
        """The table of a version, by number or alias, which is loaded if need be; 0 for the one that serves by default.

        Raises:
            ModelNotFound: It is not served.
            Unsupported: It has no memory.
        """
        version = self._registry.number(model, version, alias)
        served = await self._registry.load(model, version) if version else self._registry.get(model)
        if served.table is None or served.model.kind != "session":
            verb = "predict" if served.model.kind == "predict" else "generate"
            raise errors.Unsupported(f"model {model!r} has no sessions; call {verb} instead")
        return served.table

    async def hibernate(self, table: Table, before: float) -> None:
        """Frees rows that were not used since that time and that the store knows as they are.

        Those that end with their caller stay: in the store alone, their time would go on.
        """
        rows = self.hibernation.idle(table)
        self.hibernation.hibernate(table, rows[(table.used[rows] < before) & ~table.ephemeral[rows]])
