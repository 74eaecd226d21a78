"""Where the sessions of an opening are in memory, column by column."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Final, NamedTuple

import numpy as np

from statestream_server.arrays import Bools, Ints, Positions
from statestream_server.engine.table import Table

NOWHERE: Final = -1
"""In place of a row: the session is not in memory."""


class Here(NamedTuple):
    """Sessions of an opening that are in one table.

    Attributes:
        table: The table.
        places: [n] which of the opening's columns they are.
        rows: [n] their rows.
    """

    table: Table
    places: Ints
    rows: Ints


class Held:
    """Where N sessions are in memory."""

    def __init__(self, tables: Sequence[Table], index: Ints, rows: Ints) -> None:
        """Sessions in the rows [N] of the tables by number [N]; NOWHERE for those that are not in memory."""
        self.tables = tables
        self.index = index
        self.rows = rows

    @classmethod
    def find(cls, tables: Sequence[Table], tenant: str, ids: Sequence[str]) -> Held:
        """A tenant's sessions of a model by their ids [N]; the first of its tables that has one is where it is."""
        count = len(ids)
        index, rows = np.full(count, NOWHERE), np.full(count, NOWHERE)
        for number, table in enumerate(tables):
            if rows_of := table.rows_of(tenant):
                found = np.fromiter(map(rows_of.get, ids, repeat(NOWHERE)), np.int64, count)
                new = (found != NOWHERE) & (index == NOWHERE)
                index[new], rows[new] = number, found[new]
        return cls(tables, index, rows)

    @classmethod
    def nowhere(cls, count: int) -> Held:
        """Sessions none of which is in memory."""
        return cls((), np.full(count, NOWHERE), np.full(count, NOWHERE))

    @property
    def here(self) -> Bools:
        """[N] which are in memory."""
        return np.asarray(self.index != NOWHERE)

    def within(self, table: Table) -> Bools:
        """[N] which are in one table."""
        number = next((number for number, one in enumerate(self.tables) if one is table), None)
        return np.zeros(len(self.index), np.bool_) if number is None else np.asarray(self.index == number)

    def by_table(self) -> Iterator[Here]:
        """Those in memory, table by table."""
        for number, table in enumerate(self.tables):
            places = np.flatnonzero(self.index == number)
            if len(places):
                yield Here(table, places, self.rows[places])

    def column(self, of: Callable[[Table], Positions]) -> Positions:
        """[N] what the tables have in a column, 0 for sessions that are not in memory."""
        values = np.zeros(len(self.index), np.uint64)
        for table, places, rows in self.by_table():
            values[places] = of(table)[rows]
        return values
