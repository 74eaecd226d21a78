"""Who has which row: the streams that are connected, and what they are told unasked."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Ints, Positions
from statestream_server.engine.table import UNBOUND, Table
from statestream_server.stores.base import Key


class Sleeper(NamedTuple):
    """A session that left memory while a stream had it.

    Attributes:
        key: The session.
        epoch: The claim under which the stream has it.
    """

    key: Key
    epoch: int


class Connected(Protocol):
    """A connected stream."""

    @property
    def handles(self) -> int:
        """How many handles stand for a session."""

    def sleepers(self) -> list[Sleeper]:
        """Its sessions that left memory."""

    def lost(self, handle: int, error: errors.StatestreamError) -> None:
        """A session left the stream."""

    def asleep(self, handle: int, sleeper: Sleeper) -> None:
        """A session left memory; the stream still has it."""

    def sleeper(self, handle: int) -> Sleeper | None:
        """What sleeps under a handle."""

    def unloaded(self, table: Table) -> None:
        """A table is gone that had sessions of the stream once."""

    def durable(self, handles: Array, positions: Positions) -> None:
        """Positions became durable."""

    def move(self, handles: Array, *, sleepers: bool) -> None:
        """Sessions are to be taken elsewhere; with `sleepers` those that left memory, too."""


class Streams:
    """The connected streams by their number."""

    def __init__(self) -> None:
        """Nobody is connected."""
        self._streams: dict[int, Connected] = {}
        self._numbers = itertools.count(UNBOUND + 1)
        self._next_binding = 1
        self._asleep: dict[Key, tuple[int, int]] = {}
        """Which stream has a session that left memory, and under which handle; it may have let it go since."""

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def newest(self) -> int:
        """The number of the stream that joined last; `UNBOUND` where none is there."""
        return max(self._streams, default=UNBOUND)

    @property
    def handles(self) -> int:
        """Handles of all streams."""
        return sum(stream.handles for stream in self._streams.values())

    @property
    def asleep(self) -> int:
        """How many sessions left memory while a stream had them, those it let go since too."""
        return len(self._asleep)

    def sleepers(self) -> list[Sleeper]:
        """Sessions that left memory while a stream has them."""
        return [sleeper for stream in self._streams.values() for sleeper in stream.sleepers()]

    def join(self, stream: Connected) -> int:
        """Takes a stream in; its number is the `owner` of its rows."""
        number = next(self._numbers)
        self._streams[number] = stream
        return number

    def leave(self, number: int, tables: list[Table]) -> None:
        """A stream ended: its rows in any of the tables are nobody's, and stay."""
        for sleeper in self._streams.pop(number).sleepers():
            if self._asleep.get(sleeper.key, (UNBOUND, 0))[0] == number:
                del self._asleep[sleeper.key]
        for table in tables:
            rows = np.flatnonzero(table.owner == number)
            table.owner[rows], table.binding[rows] = UNBOUND, 0

    def bind(self, table: Table, rows: Ints, owner: int, handles: Array) -> Ints:
        """Gives rows to a stream, or to nobody where it has left; whoever had them hears that they moved.

        Returns:
            The new bindings [n].
        """
        if owner not in self._streams:
            owner = UNBOUND
        self.take(table, rows, owner, handles)
        bindings = np.arange(self._next_binding, self._next_binding + len(rows))
        self._next_binding += len(rows)
        table.owner[rows], table.handle[rows], table.binding[rows] = owner, handles, bindings
        return bindings

    def bind_one(self, table: Table, row: int) -> int:
        """The binding of a row that no stream has, a new one where it has none."""
        binding: int = table.binding.item(row)
        if not binding:
            binding = self._next_binding
            self._next_binding += 1
            table.binding[row] = binding
        return binding

    def take(self, table: Table, rows: Ints, owner: int, handles: Array) -> None:
        """Takes rows from whoever has them and says that they moved, but for those that have the same handle there."""
        others = (table.owner[rows] != owner) | (table.handle[rows] != handles)
        self.evict(table, rows[others], _moved())

    def evict(self, table: Table, rows: Ints, error: errors.StatestreamError, *, asker: int = UNBOUND) -> None:
        """Takes rows from whoever has them and says why, but for the stream that asked for it."""
        owners = table.owner[rows]
        for row in rows[(owners != UNBOUND) & (owners != asker)].tolist():
            stream = self._streams.get(int(table.owner[row]))
            if stream is not None:
                stream.lost(int(table.handle[row]), error)
        table.owner[rows], table.binding[rows] = UNBOUND, 0

    def hibernate(self, table: Table, rows: Ints) -> None:
        """Tells the streams that rows leave memory; the sessions stay theirs."""
        for row in rows[table.owner[rows] != UNBOUND].tolist():
            stream, key = self._streams.get(int(table.owner[row])), table.key(row)
            if stream is not None and key is not None:
                stream.asleep(int(table.handle[row]), Sleeper(key, int(table.epoch[row])))
                self._asleep[key] = int(table.owner[row]), int(table.handle[row])

    def claimed(self, keys: Iterable[Key], owner: int, handles: Array) -> None:
        """Sessions were claimed that were not in memory: who had them asleep, but for those handles, hears of it."""
        if not self._asleep:
            return
        for key, handle in zip(keys, handles.tolist(), strict=True):
            number, before = self._asleep.pop(key, (UNBOUND, 0))
            stream = self._streams.get(number)
            if stream is None or (number, before) == (owner, handle):
                continue
            sleeper = stream.sleeper(before)
            if sleeper is not None and sleeper.key == key:
                stream.lost(before, _moved())

    def unloaded(self, table: Table) -> None:
        """Tells the streams that a table without sessions is gone."""
        for stream in self._streams.values():
            stream.unloaded(table)

    def durable(self, table: Table, rows: Ints) -> None:
        """Tells the streams that rows became durable."""
        owners = table.owner[rows]
        bound = owners[owners != UNBOUND]
        for owner in np.unique(bound).tolist() if len(bound) else ():
            mine = rows[owners == owner]
            stream = self._streams.get(owner)
            if stream is not None:
                stream.durable(table.handle[mine], table.durable[mine])

    def move(self, number: int, handles: Array, *, whole: bool) -> None:
        """Asks a stream to take sessions elsewhere; all that it has where they are the whole of it."""
        stream = self._streams.get(number)
        if stream is not None:
            stream.move(handles, sleepers=whole)


def _moved() -> errors.SessionMoved:
    return errors.SessionMoved("a newer writer opened the session; open it again only if you mean to take it back")
