"""The handles of one stream: which row each stands for, under which claim, and which of them sleep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from statestream import errors
from statestream_server.arrays import Array, Ints, counting, every, grown, same, some
from statestream_server.engine.table import Table
from statestream_server.sessions.peers import Sleeper

MAX_HANDLE: Final = 1 << 24
"""Handles are array indices; larger ones would waste memory."""
_NOTHING: Final = -1
UNKNOWN: Final = errors.SessionNotFound("the handle stands for no session on this stream; open it first")
"""What is said of a handle that stands for nothing; one error for all of them, as they may be many."""


class Group(NamedTuple):
    """Handles of one frame whose sessions are in one table.

    Attributes:
        table: The table.
        rows: [n] their rows.
        places: [n] their places in the frame.
    """

    table: Table
    rows: Ints
    places: Ints


class Handles:
    """Sessions of a stream by their handles, in columns."""

    def __init__(self) -> None:
        """No handle stands for anything."""
        self.tables: list[Table] = []
        """The tables in which the stream has, or had, sessions."""
        self.asleep: dict[int, Sleeper] = {}
        """Handles whose sessions left memory."""
        self._table = np.empty(0, np.int32)
        self._row = np.empty(0, np.int64)
        self._binding = np.empty(0, np.int64)

    def __len__(self) -> int:
        """Handles that stand for something, asleep or not."""
        return int((self._table != _NOTHING).sum()) + len(self.asleep)

    def bind(self, handles: Array, table: Table, rows: Ints, bindings: Ints) -> None:
        """Lets handles stand for rows, under claims."""
        most = int(handles.max(initial=0)) + 1
        if most > len(self._row):
            capacity = max(most, 2 * len(self._row), 64)
            self._table = grown(self._table, capacity, _NOTHING)
            self._row = grown(self._row, capacity, 0)
            self._binding = grown(self._binding, capacity, _NOTHING)
        if table not in self.tables:
            self.tables.append(table)
        self._table[handles] = self.tables.index(table)
        self._row[handles], self._binding[handles] = rows, bindings
        for handle in handles.tolist() if self.asleep else ():
            self.asleep.pop(handle, None)

    def free(self, handles: Array) -> None:
        """Lets handles stand for nothing."""
        handles = handles[handles < len(self._table)]
        self._table[handles] = self._binding[handles] = _NOTHING
        for handle in handles.tolist() if self.asleep else ():
            self.asleep.pop(handle, None)

    def sleep(self, handle: int, sleeper: Sleeper) -> None:
        """Notes that a handle's session left memory."""
        self._table[handle] = self._binding[handle] = _NOTHING
        self.asleep[handle] = sleeper

    def forget(self, table: Table) -> None:
        """Keeps nothing of a table that is unloaded, whose sessions are gone."""
        if table not in self.tables:
            return
        index = self.tables.index(table)
        stale = self._table == index
        self._table[stale] = self._binding[stale] = _NOTHING
        self._table[self._table > index] -= 1
        del self.tables[index]

    def one(self, handle: int) -> tuple[Table, int, int] | None:
        """The table, row and claim that a handle stands for, or None."""
        index = self._table.item(handle) if handle < len(self._table) else _NOTHING
        if index == _NOTHING:
            return None
        table, row, binding = self.tables[index], self._row.item(handle), self._binding.item(handle)
        return (table, row, binding) if table.binding.item(row) == binding else None

    def resolve(self, handles: Array) -> list[Group]:
        """The rows that handles stand for, by table; see `unknown_places` for those that stand for nothing."""
        if len(self.tables) == 1 and int(handles.max(initial=0)) < len(self._row):
            table, rows = self.tables[0], self._row[handles]
            # A handle that stands for nothing has no binding either.
            if same(table.binding[rows], self._binding[handles]):
                return [Group(table, rows, counting(len(handles)))]
        tables = np.full(len(handles), _NOTHING, np.int32)
        known = handles < len(self._table)
        tables[known] = self._table[handles[known]]
        groups = []
        for index, table in enumerate(self.tables):
            places = np.flatnonzero(tables == index)
            rows = self._row[handles[places]]
            current = table.binding[rows] == self._binding[handles[places]]
            if some(current):
                groups.append(Group(table, rows[current], places[current]))
        return groups


def unknown_places(groups: Sequence[Group], count: int) -> Ints:
    """The places, of `count`, that are in no group: their handles stand for nothing, or their claim is over."""
    if sum([len(group.places) for group in groups]) == count:
        return counting(0)
    known = np.zeros(count, np.bool_)
    for group in groups:
        known[group.places] = True
    return np.flatnonzero(~known)


def read_handles(data: bytes) -> Array:
    """The handles of a frame, a view.

    Raises:
        BadFrame: They are no numbers of 4 bytes, or one comes twice.
    """
    if len(data) % 4:
        raise errors.BadFrame(f"handles has {len(data)} bytes; expected a multiple of 4", metadata={"field": "handles"})
    handles = np.frombuffer(data, "<u4")
    check_distinct(handles)
    return handles


def check_distinct(handles: Array) -> None:
    """Whether each handle comes once.

    Raises:
        BadFrame: One comes twice.
    """
    if len(handles) > 1 and not every(handles[1:] > handles[:-1]) and len(np.unique(handles)) < len(handles):
        raise errors.BadFrame("a handle comes twice in one frame; each may come once", metadata={"field": "handles"})
