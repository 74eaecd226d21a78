"""Turns: who may claim, wake or delete a session next, session by session.

Whoever wants several sessions stands in line for all of them at the same moment, so nobody waits for somebody who
waits for him; and nobody waits for a session that he does not name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable


class Turn:
    """One turn on some sessions of a model: `come` waits for it, `end` passes it on."""

    def __init__(self, line: dict[str, Turn], ids: Collection[str], before: Iterable[Turn]) -> None:
        self._line = line
        self._ids = ids
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
            for id_ in self._ids:
                if self._line.get(id_) is self:
                    del self._line[id_]
            self.over.set_result(None)


class Turns:
    """The lines before all sessions."""

    def __init__(self) -> None:
        """Nobody stands in line."""
        self._lines: dict[str, dict[str, Turn]] = {}

    def __bool__(self) -> bool:
        """Whether anybody stands in line."""
        return any(self._lines.values())

    def take(self, model: str, ids: Collection[str]) -> Turn:
        """Stands in line for sessions of a model."""
        line = self._lines.setdefault(model, {})
        before = [turn for turn in set(map(line.get, ids)) if turn is not None] if line else ()
        turn = Turn(line, ids, before)
        line.update(dict.fromkeys(ids, turn))
        return turn

    async def passed(self, model: str, ids: Iterable[str]) -> None:
        """Returns when the turns that somebody has or waits for now are over; who comes later holds nobody up."""
        line = self._lines.get(model, {})
        turns = {turn.over for id_ in ids if (turn := line.get(id_)) is not None}
        if turns:
            await asyncio.wait(turns)
