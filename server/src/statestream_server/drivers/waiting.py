"""A sink that an `async` function can wait for: the chunks of one work, all or the first error."""

from __future__ import annotations

import asyncio

from statestream.contract import errors
from statestream_server.arrays import Array, Ints
from statestream_server.engine.engine import Engine
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.table import Table
from statestream_server.engine.work import Priority, Work


class Waiting:
    """Collects the end of every chunk of a work."""

    def __init__(self) -> None:
        """Nothing ended yet."""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended = 0
        self._error: errors.StatestreamError | None = None

    def completed(self, work: Work, places: Ints) -> None:
        """These chunks ran."""
        self._end(work, len(places))

    def failed(self, work: Work, places: Ints, error: errors.StatestreamError) -> None:
        """These chunks were not applied."""
        self._error = self._error or error
        self._end(work, len(places))

    def behind(self, work: Work, places: Ints) -> None:
        """A chunk before these was not applied; that error was heard first."""
        self.failed(work, places, errors.Closed("a chunk before this one was not applied"))

    def _end(self, work: Work, count: int) -> None:
        self._ended += count
        if self._ended < len(work.rows) or self.done.done():
            return
        if self._error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(self._error)


async def run(
    engine: Engine,
    table: Table,
    rows: Ints,
    steps: Ints,
    inputs: list[Array],
    priority: Priority,
    *,
    wanted: bool = True,
) -> list[Array]:
    """Runs one chunk on each of `rows` and waits for all.

    On cancellation what has not run is taken out; what runs at that moment ends before the caller goes on,
    so that the rows can be released.

    Args:
        engine: The engine.
        table: The table.
        rows: [N] scratch rows.
        steps: [N] steps of each chunk.
        inputs: One packed array for every input, [S, ...one step].
        priority: The class of the work.
        wanted: Whether the outputs are of any use; those of a long history would fill the memory.

    Returns:
        One packed array for every output; none where they are not wanted.

    Raises:
        StatestreamError: A chunk was not applied.
        ModelNotFound: The table's version was unloaded meanwhile.
    """
    engine.check(table)
    sink = Waiting()
    work = Work(rows, Lengths.of(steps), inputs, wanted)
    engine.submit(table, work, priority, sink)
    try:
        await asyncio.shield(sink.done)
    except asyncio.CancelledError:
        engine.cancel(table, rows, errors.Closed("the caller went away"))
        await asyncio.shield(engine.idle(table, rows))
        if sink.done.done():
            sink.done.exception()
        raise
    return list(work.outputs)
