"""The handles of one stream: which row each stands for, under which claim, and which of them sleep.

Handles that are small for their number are indices into columns. A caller may choose any others, but then each has an
entry of its own: what a stream holds is in proportion to its handles, however large their numbers are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Ints, counting, every, grown, same, some
from statestream_server.engine.table import Table
from statestream_server.models.rows import SCRATCH_ROW
from statestream_server.sessions.ownership.streams import Sleeper

UNKNOWN: Final = errors.SessionNotFound("the handle stands for no session on this stream; open it first")
"""What is said of a handle that stands for nothing; one error for all of them, as they may be many."""
OVERTAKEN: Final = errors.SessionMoved(
    "a newer writer opened the session meanwhile; open it again only if you mean to take it back"
)
"""What is said of a session that somebody else claimed while a frame about it was answered."""
_NOTHING: Final = -1
_FIRST: Final = 64
_SPARE: Final = 1024
"""A column may be so much longer than twice the handles that are in use."""


class Resolved(NamedTuple):
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
        self._sparse: dict[int, tuple[int, int, int]] = {}
        """Table, row and claim of handles that are too large for the columns."""

    def __len__(self) -> int:
        """Handles that stand for something, asleep or not."""
        return self._bound + len(self.asleep)

    @property
    def _bound(self) -> int:
        return int((self._table != _NOTHING).sum()) + len(self._sparse)

    @property
    def nbytes(self) -> int:
        """Bytes of the columns."""
        return self._table.nbytes + self._row.nbytes + self._binding.nbytes

    def bind(self, handles: Array, table: Table, rows: Ints, bindings: Ints) -> None:
        """Lets handles stand for rows, under claims."""
        if table not in self.tables:
            self.tables.append(table)
        index = self.tables.index(table)
        if int(handles.max(initial=0)) >= len(self._row):
            self._grow(handles)
            far = handles >= len(self._row)
            for handle, row, binding in zip(
                handles[far].tolist(), rows[far].tolist(), bindings[far].tolist(), strict=True
            ):
                self._sparse[handle] = index, row, binding
                self.asleep.pop(handle, None)
            handles, rows, bindings = handles[~far], rows[~far], bindings[~far]
        self._table[handles] = index
        self._row[handles], self._binding[handles] = rows, bindings
        for handle in handles.tolist() if self.asleep else ():
            self.asleep.pop(handle, None)

    def _grow(self, handles: Array) -> None:
        """Makes the columns longer as far as that is in proportion to the handles in use."""
        most = 2 * (self._bound + len(handles)) + _SPARE
        near = handles[handles < most]
        least = int(near.max()) + 1 if len(near) else 0
        if least <= len(self._row):
            return
        capacity = max(least, min(2 * len(self._row), most), _FIRST)
        self._table = grown(self._table, capacity, _NOTHING)
        self._row = grown(self._row, capacity, 0)
        self._binding = grown(self._binding, capacity, _NOTHING)
        for handle in [handle for handle in self._sparse if handle < capacity]:
            self._table[handle], self._row[handle], self._binding[handle] = self._sparse.pop(handle)

    def free(self, handles: Array) -> None:
        """Lets handles stand for nothing."""
        for handle in handles.tolist() if self.asleep or self._sparse else ():
            self.asleep.pop(handle, None)
            self._sparse.pop(handle, None)
        handles = handles[handles < len(self._table)]
        self._leave(handles)

    def sleep(self, handle: int, sleeper: Sleeper) -> None:
        """Notes that a handle's session left memory."""
        self._sparse.pop(handle, None)
        if handle < len(self._table):
            self._leave(handle)
        self.asleep[handle] = sleeper

    def forget(self, table: Table) -> None:
        """Keeps nothing of a table that is unloaded, whose sessions are gone."""
        if table not in self.tables:
            return
        index = self.tables.index(table)
        self._leave(self._table == index)
        self._table[self._table > index] -= 1
        self._sparse = {
            handle: (other - (other > index), row, binding)
            for handle, (other, row, binding) in self._sparse.items()
            if other != index
        }
        del self.tables[index]

    def _leave(self, handles: Array | int) -> None:
        """Lets handles stand for nothing: their row is one that every table has, for who looks before comparing."""
        self._table[handles] = self._binding[handles] = _NOTHING
        self._row[handles] = SCRATCH_ROW

    def one(self, handle: int) -> tuple[Table, int, int] | None:
        """The table, row and claim that a handle stands for, or None."""
        if handle < len(self._table):
            index, row, binding = self._table.item(handle), self._row.item(handle), self._binding.item(handle)
        else:
            index, row, binding = self._sparse.get(handle, (_NOTHING, 0, 0))
        if index == _NOTHING:
            return None
        table = self.tables[index]
        return (table, row, binding) if table.binding.item(row) == binding else None

    def _find(self, handles: Array) -> tuple[Array, Ints, Ints]:
        """Tables, rows and claims of handles."""
        near = handles < len(self._table)
        if every(near):
            return self._table[handles].copy(), self._row[handles], self._binding[handles]
        tables = np.full(len(handles), _NOTHING, np.int32)
        rows, bindings = np.zeros(len(handles), np.int64), np.full(len(handles), _NOTHING, np.int64)
        tables[near], rows[near], bindings[near] = (
            column[handles[near]] for column in (self._table, self._row, self._binding)
        )
        for place in np.flatnonzero(~near).tolist() if self._sparse else ():
            found = self._sparse.get(int(handles[place]))
            if found is not None:
                tables[place], rows[place], bindings[place] = found
        return tables, rows, bindings

    def resolve(self, handles: Array) -> list[Resolved]:
        """The rows that handles stand for, by table; see `unknown_places` for those that stand for nothing."""
        if len(self.tables) == 1 and int(handles.max(initial=0)) < len(self._row):
            table, rows = self.tables[0], self._row[handles]
            # A handle that stands for nothing has no binding either.
            if same(table.binding[rows], self._binding[handles]):
                return [Resolved(table, rows, counting(len(handles)))]
        tables, found, bindings = self._find(handles)
        groups = []
        for index, table in enumerate(self.tables):
            places = np.flatnonzero(tables == index)
            rows = found[places]
            current = table.binding[rows] == bindings[places]
            if some(current):
                groups.append(Resolved(table, rows[current], places[current]))
        return groups


def unknown_places(groups: Sequence[Resolved], count: int) -> Ints:
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
