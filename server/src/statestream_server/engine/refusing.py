"""How chunks end that were not applied: their sinks hear why."""

from __future__ import annotations

from statestream.contract import errors
from statestream_server.engine.batch import Batch
from statestream_server.engine.lane import Ended
from statestream_server.engine.scheduler import Statistics
from statestream_server.engine.table import Table
from statestream_server.engine.work import Part


def refuse(statistics: Statistics, table: Table, part: Part, error: errors.StatestreamError) -> None:
    """Ends chunks with an error."""
    work, places, _ = part
    statistics.failed += len(places)
    work.sink.failed(work, places, error)
    table.free_shadows(work, places)


def refuse_all(statistics: Statistics, batch: Batch, ended: Ended) -> None:
    """Ends the chunks of a batch that failed, and those behind them."""
    for work, failed, rows in ended.failed:
        for places, error in batch.errors_of(rows, failed):
            refuse(statistics, batch.table, Part.of(work, places), error)
    for work, places, _ in ended.behind:
        statistics.failed += len(places)
        work.sink.behind(work, places)
        batch.table.free_shadows(work, places)
