"""Turns: who may claim, wake or delete a session next, session by session.

Whoever wants several sessions stands in line for all of them at the same moment, so nobody waits for somebody who
waits for him; and nobody waits for a session that he does not name.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Iterable, Mapping
from operator import itemgetter

from statestream_server.stores.base import Key

_Line = tuple[str, str]
"""A tenant and a model: the sessions of which there is a line for each."""


class Turn:
    """One turn on some sessions: `come` waits for it, `end` passes it on."""

    def __init__(
        self, lines: dict[_Line, dict[str, Turn]], wanted: Mapping[_Line, Collection[str]], before: Iterable[Turn]
    ) -> None:
        self._lines = lines
        self._wanted = wanted
        self._before = [turn for turn in before if not turn.over.done()]
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def come(self) -> None:
        """Returns when every turn before this one on any of the sessions is over. Cancel it, then call `end`."""
        if self._before:
            await asyncio.wait([turn.over for turn in self._before])

    def end(self) -> None:
        """Passes the turn on; one that never came is passed on when it would have."""
        waiting = [turn for turn in self._before if not turn.over.done()]
        self._before = waiting
        if waiting:
            waiting[0].over.add_done_callback(lambda _: self.end())
        elif not self.over.done():
            for name, ids in self._wanted.items():
                line = self._lines.get(name, {})
                for id_ in ids:
                    if line.get(id_) is self:
                        del line[id_]
                if not line:
                    self._lines.pop(name, None)
            self.over.set_result(None)


class Turns:
    """The lines before all sessions."""

    def __init__(self) -> None:
        """Nobody stands in line."""
        self._lines: dict[_Line, dict[str, Turn]] = {}

    def __bool__(self) -> bool:
        """Whether anybody stands in line."""
        return bool(self._lines)

    def has(self, key: Key) -> bool:
        """Whether somebody stands in line for a session."""
        return bool(self._lines) and key.id in self._lines.get((key.tenant, key.model), {})

    def take(self, tenant: str, model: str, ids: Collection[str]) -> Turn:
        """Stands in line for a tenant's sessions of a model."""
        return self._take({(tenant, model): ids})

    def take_all(self, keys: Iterable[Key]) -> Turn:
        """Stands in line for sessions of any tenants and models."""
        wanted = dict[_Line, list[str]]()
        for line, some in itertools.groupby(keys, itemgetter(0, 1)):
            wanted.setdefault(line, []).extend(map(itemgetter(2), some))
        return self._take(wanted)

    async def passed(self, keys: Iterable[Key]) -> None:
        """Returns when the turns that somebody has or waits for now are over; who comes later holds nobody up."""
        found = (self._lines.get((tenant, model), {}).get(id_) for tenant, model, id_ in keys)
        turns = {turn.over for turn in found if turn is not None}
        if turns:
            await asyncio.wait(turns)

    def _take(self, wanted: Mapping[_Line, Collection[str]]) -> Turn:
        before = set[Turn]()
        for name, ids in wanted.items():
            line = self._lines.get(name)
            if line is not None:
                before.update(turn for turn in map(line.get, ids) if turn is not None)
        turn = Turn(self._lines, wanted, before)
        for name, ids in wanted.items():
            if ids:
                self._lines.setdefault(name, {}).update(dict.fromkeys(ids, turn))
        return turn
