"""Queues: those of calls without rows, one for each graph that was called. No I/O."""

from __future__ import annotations

import time
from collections.abc import Iterable

from statestream.contract import errors
from statestream_server.engine.calls import Calls
from statestream_server.engine.line import Line
from statestream_server.engine.predictions import Predictions
from statestream_server.engine.scheduler import BATCH_SECONDS, Statistics
from statestream_server.engine.watch import Watch
from statestream_server.models.model import Predictor


class Queues:
    """The queues by graph."""

    def __init__(self, line: Line, watch: Watch) -> None:
        """None yet; `line` gives calls their places, `watch` is told of runs."""
        self._line = line
        self._watch = watch
        self.by_graph: dict[int, Predictions] = {}
        """The queue of each graph, by its `id`; those that are empty, too."""

    def put(self, graph: Predictor, calls: Calls, mark: bytes) -> None:
        """Queues calls; their sink hears how they end, some perhaps at once."""
        queue = self.by_graph.get(id(graph))
        if queue is None:
            queue = self.by_graph[id(graph)] = Predictions(graph, BATCH_SECONDS, mark, self._watch)
        calls.since = time.perf_counter()
        for group in queue.checked(calls):
            self.push(queue, group)

    def push(self, queue: Predictions, calls: Calls) -> None:
        """Queues calls that were looked at, new ones or such of which something is left, behind the others."""
        queue.push(calls, self._line.age(None, queue.cost * len(calls.rows)))

    def forget(self, graph: Predictor, model: str, version: int) -> None:
        """Has the calls of a version's graph that wait, and those that come later, end with ModelNotFound."""
        queue = self.by_graph.pop(id(graph), None)
        if queue is not None:
            queue.refuse(unloaded(model, version))

    def statistics(self, graphs: Iterable[Predictor | None]) -> Statistics:
        """What ran of some graphs so far."""
        found = Statistics()
        for graph in graphs:
            queue = self.by_graph.get(id(graph))
            if queue is not None:
                found.add(queue.statistics)
        return found


def unloaded(model: str, version: int) -> errors.ModelNotFound:
    """What a caller is told whose call outlived its model."""
    return errors.ModelNotFound(f"{model!r} version {version} was unloaded while the call ran; load it, and call again")
