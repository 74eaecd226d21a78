"""Moves: which sessions the streams are asked to take elsewhere, so that another server has its share of them.

Nothing is taken from anybody: a session stays, and is stepped as before, until it is opened elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from statestream_server.arrays import Array, Ints
from statestream_server.engine.table import UNBOUND, Table
from statestream_server.sessions.ownership.streams import Streams

REST_SECONDS: Final = 60.0
"""A session that was asked for is not asked for again before: its client may have nowhere to go."""


class Asked(NamedTuple):
    """What was asked for.

    Attributes:
        sessions: How many sessions in memory.
        streams: Of how many streams.
    """

    sessions: int
    streams: int


class Moves:
    """Asks for moves."""

    def __init__(self, streams: Streams, clock: Callable[[], float]) -> None:
        """Nothing was asked for; `clock` is the one by which rows are used."""
        self._streams = streams
        self._clock = clock

    def ask(self, tables: Sequence[Table], share: float = 0.0, *, count: int = 0, newest: int | None = None) -> Asked:
        """Asks for some of the sessions that streams have in some tables, and that have rested.

        Whole streams are asked, the quietest first: a client that takes some sessions elsewhere connects there, and
        takes all that the stream has. Of the last one as many are named as the share is short of, its quietest.

        Args:
            tables: The tables.
            share: How many, as a share of them in (0, 1].
            count: How many, where no share is given.
            newest: The number of the newest stream that is asked; None for all.
        """
        now = self._clock()
        had = [np.flatnonzero((table.owner != UNBOUND) & (table.asked + REST_SECONDS <= now)) for table in tables]
        if newest is not None:
            had = [rows[table.owner[rows] <= newest] for table, rows in zip(tables, had, strict=True)]
        owners = _joined([table.owner[rows] for table, rows in zip(tables, had, strict=True)])
        if not len(owners):
            return Asked(0, 0)
        used = _joined([table.used[rows] for table, rows in zip(tables, had, strict=True)])
        handles = _joined([table.handle[rows] for table, rows in zip(tables, had, strict=True)])
        streams, index, counts = np.unique(owners, return_inverse=True, return_counts=True)
        last = np.full(len(streams), -np.inf)
        np.maximum.at(last, index, used)
        left = min(len(owners), count or max(1, round(share * len(owners))))
        asked, whole = np.zeros(len(owners), np.bool_), np.zeros(len(streams), np.bool_)
        quietest = np.argsort(last, kind="stable").tolist()
        for stream in quietest:
            if counts[stream] <= left:
                left -= int(counts[stream])
                whole[stream] = True
        asked[whole[index]] = True
        if left:
            stream = next(stream for stream in quietest if not whole[stream])
            mine = np.flatnonzero(index == stream)
            asked[mine[np.argsort(used[mine], kind="stable")[:left]]] = True
        ends = np.cumsum([len(rows) for rows in had])
        for table, rows, named in zip(tables, had, np.split(asked, ends[:-1]), strict=True):
            table.asked[rows[named]] = now
        chosen = np.flatnonzero(asked)
        chosen = chosen[np.argsort(index[chosen], kind="stable")]
        named_of, firsts = np.unique(index[chosen], return_index=True)
        for stream, places in zip(named_of.tolist(), np.split(chosen, firsts[1:]), strict=True):
            self._streams.move(int(streams[stream]), handles[places], whole=bool(whole[stream]))
        return Asked(len(chosen), len(named_of))


def _joined(columns: Sequence[Array]) -> Ints:
    return np.concatenate(columns) if columns else np.empty(0, np.int64)
