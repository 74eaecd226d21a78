"""What is told of a batch that ended: spans to a tracer, a line in the log of a slow one."""

from __future__ import annotations

import logging

from statestream_server.engine.batch import Batch
from statestream_server.engine.lane import Ended
from statestream_server.engine.predictions import Predictions, Together
from statestream_server.engine.table import Table
from statestream_server.engine.traced import Ran, Tracer
from statestream_server.engine.work import Priority

log = logging.getLogger("statestream_server.engine.engine")


def trace(
    tracer: Tracer,
    of: Table | Predictions,
    batch: Batch | Together,
    priority: Priority,
    waited: float,
    seconds: float,
) -> None:
    """Tells of a batch."""
    model, version, began, first, ran = "", 0, batch.since + waited, 0.0, seconds
    if isinstance(batch, Batch):
        unders = [under for part in batch.parts for under in part.work.unders]
        began, first, ran = batch.started, batch.first, batch.ran
    else:
        unders = [under for calls in batch.calls for under in calls.unders]
    if unders:
        if isinstance(of, Table):
            model, version = of.model.name, of.model.version
        kind = priority.name.lower()
        tracer.ran(unders, Ran(model, version, batch.count, batch.steps, kind, waited, began, seconds, first, ran))


def trace_end(tracer: Tracer, ended: Ended) -> None:
    """Tells of works of which nothing is left."""
    for work in {id(work): work for work, *_ in (*ended.finished, *ended.failed, *ended.behind)}.values():
        if not work.pending:
            tracer.ended(work.unders)
            work.unders = ()


def tell_slow(
    of: Table | Predictions, count: int, steps: int, waited: float, seconds: float, ran: float, row: int | None
) -> None:
    """Writes why the oldest work of a batch took as long; `row` is whose it is, where there is one."""
    parts = {"queue": waited, "batch": seconds - ran, "run": ran}
    about: dict[str, object] = {"seconds": round(waited + seconds, 3)}
    what = "calls of Predict"
    if isinstance(of, Table):
        what = f"{of.model.name} version {of.model.version}"
        about |= {"model": of.model.name, "version": of.model.version}
        if row is not None:
            about |= {"session": of.ids[row], "tenant": of.tenant[row] if of.ids[row] is not None else None}
    log.warning(
        "slow step of %s: %.3f s, mostly in %s (%s); %d rows of %d steps",
        what,
        waited + seconds,
        max(parts, key=parts.__getitem__),
        ", ".join(f"{name} {part:.3f} s" for name, part in parts.items()),
        count,
        steps,
        extra=about,
    )
