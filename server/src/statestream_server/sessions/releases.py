"""Replies that wait until they may leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Bools, Ints, Positions
from statestream_server.engine.table import Table

Release = Callable[[Ints, errors.StatestreamError | None], None]
"""Lets the replies at some places of the rows leave that it was given with, or refuses them."""


@dataclass(slots=True)
class Withheld:
    """Replies to rows that wait.

    Attributes:
        table: The table.
        rows: [n] the rows.
        claims: What they were claimed as.
        targets: [n] their positions with what is answered.
        places: Which of them wait still.
    """

    table: Table
    rows: Ints
    release: Release
    claims: tuple[Ints, Positions]
    targets: Positions
    places: Ints

    @classmethod
    def of(cls, table: Table, rows: Ints, release: Release) -> Withheld:
        """Everything applied to rows so far."""
        return cls(table, rows, release, table.claims(rows), table.position[rows].copy(), np.arange(len(rows)))

    @property
    def waiting(self) -> Ints:
        """The rows whose replies wait still."""
        rows: Ints = self.rows[self.places]
        return rows

    def let_go(self, which: Bools, error: errors.StatestreamError | None = None) -> bool:
        """Lets those of the waiting replies leave, or refuses them, that the mask [len(places)] names.

        Returns:
            Whether none is left.
        """
        going, self.places = self.places[which], self.places[~which]
        if len(going):
            self.release(going, error)
        return not len(self.places)

    def still(self) -> Bools:
        """Which of the rows that wait are claimed as they were."""
        serials, epochs = self.claims
        return self.table.are_claimed(self.waiting, (serials[self.places], epochs[self.places]))


def rows_of(table: Table, some: Iterable[Withheld]) -> Ints:
    """The rows of a table whose replies wait; one may come several times."""
    return np.concatenate([np.empty(0, np.int64), *(held.waiting for held in some if held.table is table)])
