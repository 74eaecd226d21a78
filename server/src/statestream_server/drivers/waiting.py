"""Sinks that an `async` function can wait for: the chunks of one work, all or the first error; a call without rows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from statestream.contract import errors
from statestream_server.arrays import Array, Ints
from statestream_server.engine.calls import Calls
from statestream_server.engine.engine import Engine
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.table import Table
from statestream_server.engine.work import Priority, Work
from statestream_server.models.model import Predictor


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


class Call:
    """The sink of one call."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.outputs: asyncio.Future[list[Array]] = asyncio.get_running_loop().create_future()

    @property
    def wanted(self) -> bool:
        """Whether the task waits still."""
        return not self.outputs.done()

    def ran(self, first: int, rows: Sequence[int], outputs: list[Array]) -> None:
        """The call has its outputs."""
        if self.wanted:
            self.outputs.set_result(outputs)

    def refused(self, first: int, count: int, error: errors.StatestreamError) -> None:
        """The call has none."""
        if self.wanted:
            self.outputs.set_exception(error)


async def predict(
    engine: Engine,
    graph: Predictor,
    inputs: Sequence[Array],
    axes: Sequence[int],
    output_axes: Sequence[int],
    mark: bytes,
) -> list[Array]:
    """Runs a graph without rows. A cancelled call is not run.

    Args:
        engine: What runs it; calls of equal shape share a batch.
        graph: The graph.
        inputs: One array for every input, the graph's own axes.
        axes: The batch axis of each input; empty where the graph has none, then the call runs alone.
        output_axes: The batch axis of each output.
        mark: What stands for the model where work is noted.

    Returns:
        One array for every output.

    Raises:
        BadTensor: The graph refuses the inputs.
        Quarantined: Such a call was running in deaths of a server.
    """
    call = Call()
    rows = [inputs[0].shape[axes[0]]] if axes else [1]
    engine.call(graph, Calls(list(inputs), axes, output_axes, rows, call), mark)
    return await call.outputs
