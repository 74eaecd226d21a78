"""Where the rows of a block deliver their outputs; of a block of one chunk that is its ticket."""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np

from statestream.contract.errors import StatestreamError
from statestream.contract.tensors import Array, Ints
from statestream.core.tickets import Outputs, PoolTicket, StepTicket


class Sink(Protocol):
    """Where the rows of a block deliver."""

    def take(self, rows: Ints) -> Sink:
        """The sink of some of the rows."""

    def deliver(self, rows: slice | Ints, outputs: Outputs, lengths: Ints | int) -> None:
        """Takes the packed outputs of some rows."""

    def fail(self, row: int, error: StatestreamError) -> None:
        """Takes the error of one row."""


class Discard:
    """For chunks that are replayed though their replies were delivered before."""

    def take(self, rows: Ints) -> Discard:
        """Itself."""
        return self

    def deliver(self, rows: slice | Ints, outputs: Outputs, lengths: Ints | int) -> None:
        """Drops the outputs."""

    def fail(self, row: int, error: StatestreamError) -> None:
        """Drops the error."""


DISCARD: Final = Discard()


class Singles:
    """One step ticket for every row."""

    __slots__ = ("tickets",)

    def __init__(self, tickets: list[StepTicket]) -> None:
        self.tickets = tickets

    def take(self, rows: Ints) -> Singles:
        """The tickets of some rows."""
        return Singles([self.tickets[row] for row in rows.tolist()])

    def deliver(self, rows: slice | Ints, outputs: Outputs, lengths: Ints | int) -> None:
        """Hands every ticket its steps: views of one array that belongs to this frame."""
        tickets = self.tickets[rows] if isinstance(rows, slice) else [self.tickets[row] for row in rows.tolist()]
        if not outputs:  # Marks.
            for ticket in tickets:
                ticket.finish()
            return
        columns = [_rows_of(packed, lengths, tickets) for packed in outputs.values()]
        if len(columns) == 1:
            for ticket, value in zip(tickets, columns[0], strict=True):
                ticket.finish(value)
            return
        names = list(outputs)
        for ticket, values in zip(tickets, zip(*columns, strict=True), strict=True):
            ticket.finish(dict(zip(names, values, strict=True)))

    def fail(self, row: int, error: StatestreamError) -> None:
        """Hands one ticket its error."""
        self.tickets[row].finish(error=error)


class PoolRows:
    """Some rows of a pool's ticket, from some step on."""

    __slots__ = ("offset", "rows", "ticket")

    def __init__(self, ticket: PoolTicket, rows: slice | Ints, offset: int) -> None:
        self.ticket = ticket
        self.rows = rows
        self.offset = offset

    def take(self, rows: Ints) -> PoolRows:
        """The same for some of the rows."""
        return PoolRows(self.ticket, self._places(rows), self.offset)

    def deliver(self, rows: slice | Ints, outputs: Outputs, lengths: Ints | int) -> None:
        """Hands the outputs to the pool's ticket."""
        self.ticket.deliver(self._places(rows), self.offset, outputs, lengths)

    def fail(self, row: int, error: StatestreamError) -> None:
        """Hands the error to the pool's ticket."""
        self.ticket.fail(self.rows.start + row if isinstance(self.rows, slice) else self.rows.item(row), error)

    def _places(self, rows: slice | Ints) -> slice | Ints:
        if not isinstance(self.rows, slice):
            return self.rows[rows]
        first = self.rows.start
        return slice(first + rows.start, first + rows.stop) if isinstance(rows, slice) else first + rows


def _rows_of(packed: Array, lengths: Ints | int, tickets: list[StepTicket]) -> list[Array]:
    if isinstance(lengths, int) and lengths == 1:
        # A scalar per step would iterate as NumPy scalars; 0-d views keep one type for all outputs.
        values: list[Array] = list(packed) if packed.ndim > 1 else [packed[i, ...] for i in range(len(packed))]
        return [value if ticket.single else value[np.newaxis] for ticket, value in zip(tickets, values, strict=True)]
    sizes = [lengths] * len(tickets) if isinstance(lengths, int) else lengths.tolist()
    values, at = [], 0
    for ticket, size in zip(tickets, sizes, strict=True):
        values.append(packed[at, ...] if ticket.single else packed[at : at + size])
        at += size
    return values
