"""What takes some seconds and counts nothing: a line on a terminal says meanwhile what it is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextlib.contextmanager
def waiting(console: Console, what: str) -> Iterator[None]:
    """A line that says what is done, and for how long already; it is gone with the block, however that ends.

    Without a terminal nothing is written. Bars are drawn outside of it only.

    Args:
        console: Where it is written.
        what: What is done.
    """
    if not console.is_terminal or console.is_jupyter:
        yield
        return
    # What is printed meanwhile goes above the line where both are on one terminal; into a file it goes as ever.
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    ) as line:
        line.add_task(what, total=None)
        yield
