"""Sessions that hibernate come back: from the store into rows, for the stream that never let them go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Ints
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import Table
from statestream_server.sessions.lease import Asked, Lease
from statestream_server.sessions.ownership.held import Held
from statestream_server.sessions.ownership.openings import Opened, Opening, claims_of, unloadable
from statestream_server.sessions.ownership.sessions import Sessions
from statestream_server.sessions.ownership.streams import Sleeper
from statestream_server.stores.base import Claimed, Mode, Record, Store, Verdict


class Activation:
    """Brings sessions back."""

    def __init__(self, sessions: Sessions, engine: Engine, store: Store, lease: Lease) -> None:
        """Nobody sleeps yet."""
        self._sessions = sessions
        self._placement = sessions.placement
        self._engine = engine
        self._store = store
        self._lease = lease

    async def wake(
        self, sleepers: Sequence[Sleeper], owner: int, handles: Array, *, keep: Sequence[tuple[Table, Ints]]
    ) -> tuple[list[Opened], dict[int, errors.StatestreamError]]:
        """Brings hibernated sessions back for the stream that has them; nobody is fenced.

        Args:
            sleepers: [N] the sessions, all of one tenant and model.
            owner: The stream.
            handles: [N] what it calls them.
            keep: Rows that must stay in memory, because the same frame is about them.

        Returns:
            As `open` does.

        Raises:
            TooManySessions, StoreUnavailable: Nothing was brought back; they still sleep.
        """
        keys, nothing = [sleeper.key for sleeper in sleepers], np.zeros(len(sleepers), np.uint64)
        opening = Opening(
            keys[0].tenant, keys[0].model, 0, [key.id for key in keys], Mode.RESUME, b"", 0, nothing, nothing, nothing,
            owner=owner, handles=handles,
        )  # fmt: skip
        unloaded = dict[int, errors.StatestreamError]()
        while True:
            turn = self._sessions.turns.take(opening.tenant, opening.model, opening.ids)
            try:
                await turn.come()
                asked = self._lease.ask()
                stored = await self._store.load(keys)
                versions = {record.version for record in stored if record is not None} - unloaded.keys()
                missing = [version for version in versions if not self._sessions.is_loaded(opening.model, version)]
                if not missing:
                    return await self._awake(opening, sleepers, stored, unloaded, keep, asked)
            finally:
                turn.end()
            for version in missing:
                try:
                    await self._sessions.table(opening.model, version)
                except errors.StatestreamError as error:
                    unloaded[version] = error

    async def _awake(
        self,
        opening: Opening,
        sleepers: Sequence[Sleeper],
        stored: Sequence[Record | None],
        unloaded: Mapping[int, errors.StatestreamError],
        keep: Sequence[tuple[Table, Ints]],
        asked: Asked,
    ) -> tuple[list[Opened], dict[int, errors.StatestreamError]]:
        refused, places = dict[int, errors.StatestreamError](), dict[int, list[int]]()
        for place, (sleeper, record) in enumerate(zip(sleepers, stored, strict=True)):
            session, here = sleeper.key.id, self._sessions.find(sleeper.key)
            if here is not None and self._is_awake(opening, place, *here):
                continue  # Another frame of the stream woke it.
            if record is None:
                refused[place] = errors.SessionNotFound(f"session {session!r} was deleted while it slept")
            elif not record.fence <= sleeper.epoch <= record.epoch or here is not None:
                said = f"a newer writer opened session {session!r} while it slept; open it to take it back"
                refused[place] = errors.SessionMoved(said)
            elif record.version in unloaded:
                refused[place] = unloadable(opening, place, record.version, unloaded[record.version])
            else:
                places.setdefault(record.version, []).append(place)
        nowhere, opened = Held.nowhere(len(sleepers)), list[Opened]()
        for version, chosen in places.items():
            some = np.asarray(chosen)
            table = await self._sessions.table(opening.model, version)
            claims = claims_of(opening, version, some, nowhere, self._lease.owner)
            answers = [Claimed(Verdict.TAKEN, stored[place]) for place in chosen]
            staying = [np.empty(0, np.int64), *(rows for other, rows in keep if other is table)]
            promise = await self._placement.promise(table, len(some), keep=np.concatenate(staying))
            try:
                granted, refusals = self._placement.grant(opening, table, nowhere, some, claims, answers, {})
                refused |= refusals
                async with self._engine.still():
                    opened += [self._placement.install(opening, group, nowhere, promise) for group in granted]
            finally:
                promise.end()
        for part in opened:
            self._lease.answered(asked, part.table, part.rows)
        return opened, refused

    @staticmethod
    def _is_awake(opening: Opening, place: int, table: Table, row: int) -> bool:
        """Whether a row is what the stream calls by that handle."""
        return opening.handles is not None and (
            int(table.owner[row]) == opening.owner and int(table.handle[row]) == int(opening.handles[place])
        )
