"""Lists on a terminal of any width: names fold, columns that matter less are left out, a number is never cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

NARROW = 16
"""Cells that a column which folds needs at least."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: Its heading.
        cells: A text for every row.
        whole: Whether a cell is never folded: numbers are not.
        leaves: Where the width does not suffice, the column with 1 leaves first, 0 never does.
        alarms: By row, whether its text is shown as an error; none is where there are none.
    """

    name: str
    cells: Sequence[str]
    whole: bool = False
    leaves: int = 0
    alarms: Sequence[bool] = ()

    @property
    def width(self) -> int:
        """Cells that the widest text takes."""
        return max(map(cell_len, [self.name, *self.cells]))

    @property
    def least(self) -> int:
        """Cells that it cannot do without."""
        return self.width if self.whole else min(self.width, NARROW)


def show(console: Console, columns: Sequence[Column]) -> None:
    """Prints columns as a table; where not even the most important ones fit, row by row."""
    shown = list(columns)
    while _needed(shown) > console.width and any(column.leaves for column in shown):
        shown.remove(min((column for column in shown if column.leaves), key=lambda column: column.leaves))
    if _needed(shown) > console.width:
        for row in range(len(columns[0].cells)):
            for column in columns:
                console.print(Text(f"{column.name}: {column.cells[row]}"), soft_wrap=True)
            console.print()
        return
    table = Table()
    for column in shown:
        if column.whole:
            table.add_column(column.name, no_wrap=True, min_width=column.width)
        else:
            table.add_column(column.name, overflow="fold", min_width=column.least)
    for row in range(len(shown[0].cells)):
        table.add_row(
            *(Text(column.cells[row], "red" if any(column.alarms[row : row + 1]) else "") for column in shown)
        )
    console.print(table)
    left = [column.name for column in columns if column not in shown]
    if left:
        console.print(Text(f"For want of room without {', '.join(left)}; --json has all."), soft_wrap=True)


def _needed(columns: Sequence[Column]) -> int:
    """Cells of a table: each column has a space on either side and a line before it."""
    return sum(column.least + 3 for column in columns) + 1
