"""What calls without rows may share: whether a graph answers a row the same whoever else's rows are in its run.

Calls of different callers are joined in one run only as far as that was seen to change no bit of any answer: rows
alone, in runs of several sizes and at several places in them. A call of some rows is one such run, so its answer is the
same joined and alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from statestream.contract.signature import Signature, step_shape
from statestream.v1.model_pb2 import BatchInvariance
from statestream_server.arrays import Array, Ints
from statestream_server.models.graphs.runtime import GraphError
from statestream_server.models.model import BatchPolicy
from statestream_server.models.proof import draws
from statestream_server.models.proof.draws import Draws
from statestream_server.models.proof.proof import Difference
from statestream_server.models.rows import Axes, is_batched

_BATCHES = (2, 3, 5, 7, 13, 64, 256)
_LENGTHS, _LONGER = (7, 1), (32, 224)
"""Steps, and lengths of other free axes, that are tried: a run of one step takes other ways through a graph. Longer
ones only where it takes neither."""
_BUDGET = 0.2
"""Seconds of processor time, which finds the same on a busy machine, after which no larger run is begun."""
_UNKNOWN = BatchInvariance.BATCH_INVARIANCE_UNSPECIFIED
_log = logging.getLogger(__name__)


class Runs(Protocol):
    """A graph that runs whole calls."""

    def predict(self, inputs: Sequence[Array]) -> list[Array]:
        """One array for every output; see `Graph.predict`."""


class Sharing(NamedTuple):
    """What was found.

    Attributes:
        finding: Whether a row has the same bits alone and among others.
        note: One sentence for people.
        difference: The largest difference that was seen.
        rows: The most rows of a run that was tried.
        wrong: Whether rows influence each other by more than rounding.
    """

    finding: BatchInvariance
    note: str
    difference: float = 0.0
    rows: int = 1
    wrong: bool = False

    def apart(self, why: str) -> Sharing:
        """The same of a graph that is known to take one row's values for another's, whatever was seen."""
        note = f"calls run one by one: {why}"
        return Sharing(BatchInvariance.BATCH_INVARIANCE_APPROXIMATE, note, self.difference, wrong=True)


class SharedGraph:
    """A graph without rows as it serves.

    Attributes:
        together: The most rows of a run that calls may share; 1 where each call has a run of its own.
    """

    def __init__(self, graph: Runs, signature: Signature, found: Sharing, policy: BatchPolicy) -> None:
        """A graph, what it is, what was found of it and what is to be done about that."""
        self._graph = graph
        self._axes = [spec.batch_axis for spec in signature.inputs]
        self._output_axes = [spec.batch_axis for spec in signature.outputs]
        same = found.finding == BatchInvariance.BATCH_INVARIANCE_EXACT
        self._padded = found.finding == BatchInvariance.BATCH_INVARIANCE_PADDED and policy == BatchPolicy.PAD
        apart = found.difference and policy == BatchPolicy.SERIALISE
        self._single = bool(apart) and is_batched(signature) and not found.wrong
        told = found.difference and policy == BatchPolicy.WARN and not found.wrong
        self.together = found.rows if same or self._padded or told else 1

    def predict(self, inputs: Sequence[Array]) -> list[Array]:
        """One run, or as many as the policy asks for: arrays in the signature's order and the graph's axes.

        Raises:
            GraphError: ONNX Runtime refused the arrays or failed.
        """
        if not (self._padded or self._single):
            return self._graph.predict(inputs)
        rows = inputs[0].shape[self._axes[0]]
        if self._padded and rows == 1:
            twice = [np.repeat(value, 2, axis) for value, axis in zip(inputs, self._axes, strict=True)]
            both = self._graph.predict(twice)
            return [value.take([0], axis) for value, axis in zip(both, self._output_axes, strict=True)]
        if self._padded or rows < 2:
            return self._graph.predict(inputs)
        parts = [
            self._graph.predict([value.take([row], axis) for value, axis in zip(inputs, self._axes, strict=True)])
            for row in range(rows)
        ]
        joined = zip(*parts, strict=True)
        return [np.concatenate(part, axis) for part, axis in zip(joined, self._output_axes, strict=True)]


def prove(graph: Runs, way: Draws, where: str, clock: Callable[[], float] = time.process_time) -> Sharing:
    """Tries whether rows have the same bits alone and among others.

    Args:
        graph: The graph as its author wrote it.
        way: How inputs are drawn; safer ways follow where the graph refuses them.
        where: The file, for the log.
        clock: Seconds of processor time; larger runs are left out once they take too long.
    """
    if not is_batched(way.signature):
        return Sharing(_UNKNOWN, "no batch axis: calls run one by one")
    problem = ""
    for each in _from(way):
        try:
            return _tried(graph, each, clock)
        except (GraphError, ValueError) as error:  # ValueError: outputs without the axes that the signature names.
            problem = problem or str(error)
            _log.info("%s: refuses %s (%s); tried again with safer values", where, each, error)
    return Sharing(_UNKNOWN, f"calls run one by one: no values were found that it takes ({problem})")


def shared(graph: Runs, way: Draws, policy: BatchPolicy, where: str) -> tuple[SharedGraph, Sharing]:
    """A graph as it serves, and what was found of it; what keeps calls apart, or lets them differ, is logged."""
    found = prove(graph, way, where)
    made = SharedGraph(graph, way.signature, found, policy)
    if found.difference and not (found.finding == BatchInvariance.BATCH_INVARIANCE_PADDED and made.together > 1):
        _log.warning("%s: %s; calls %s", where, found.note, "share runs" if made.together > 1 else "run one by one")
    return made, found


def _from(way: Draws) -> Iterator[Draws]:
    """A way to draw and those that are safer."""
    ways = list(draws.ladder(way.signature))
    yield from ways[ways.index(way) :]


class _Trial:
    """Rows of inputs, as many as were asked for, and what a graph makes of some of them."""

    def __init__(self, graph: Runs, way: Draws, steps: int) -> None:
        self._graph, self._way, self._steps = graph, way, steps
        self._rng = np.random.default_rng(6)
        self._rows = way.inputs(_BATCHES[0], steps, self._rng)

    def run(self, chosen: Ints, *, twice: bool = False) -> list[Array]:
        """The outputs of the chosen rows in one run, rows first; `twice`: of one row, run as two."""
        signature = self._way.signature
        more = int(chosen.max()) + 1 - len(self._rows[0])
        if more > 0:
            drawn = self._way.inputs(more, self._steps, self._rng)
            self._rows = [np.concatenate(pair) for pair in zip(self._rows, drawn, strict=True)]
        places = np.repeat(chosen, 2) if twice else chosen
        given = [
            Axes.of_tensor(spec).to_graph(value[places])
            for spec, value in zip(signature.inputs, self._rows, strict=True)
        ]
        found = self._graph.predict(given)
        rows = [np.moveaxis(value, spec.batch_axis, 0) for spec, value in zip(signature.outputs, found, strict=True)]
        return [value[:1] for value in rows] if twice else rows


def _tried(graph: Runs, way: Draws, clock: Callable[[], float]) -> Sharing:
    free = any(spec.HasField("time_axis") or min(step_shape(spec), default=0) < 0 for spec in way.signature.inputs)
    alone, pads, among = Difference(), Difference(), Difference()
    deadline, widest, refused, ran = clock() + _BUDGET, _BATCHES[-1], None, False
    for steps in (*_LENGTHS, *_LONGER) if free else (1,):
        if ran and steps in _LONGER:
            break
        try:
            rows = _compare(_Trial(graph, way, steps), alone, pads, among, clock, deadline)
        except GraphError as error:
            refused = refused or error
            continue
        ran, widest = True, min(widest, rows)
    if not ran and refused:
        raise refused
    tried = f"tried alone and in runs up to {widest} rows with {way}"
    if among.exact and alone.exact:
        return Sharing(BatchInvariance.BATCH_INVARIANCE_EXACT, f"the same bits ({tried})", rows=widest)
    difference = max(alone.largest, among.largest)
    wrong = alone.wrong or among.wrong
    if among.exact and pads.exact and not wrong:
        note = f"the same bits once a call of one row runs as two, else up to {difference:.3g} apart ({tried})"
        return Sharing(BatchInvariance.BATCH_INVARIANCE_PADDED, note, difference, widest)
    what = "rows of a run influence each other" if wrong else "bits differ with the rows of a run"
    note = f"{what} by up to {difference:.3g} ({tried})"
    return Sharing(BatchInvariance.BATCH_INVARIANCE_APPROXIMATE, note, difference, widest, wrong)


def _compare(
    trial: _Trial, alone: Difference, pads: Difference, among: Difference, clock: Callable[[], float], deadline: float
) -> int:
    """Compares rows of wider and wider runs, each with what they were in the one before; the most rows of a run."""
    known, widest = trial.run(np.arange(2)), 2
    among.note(known, trial.run(np.arange(2)))
    for row in (0, 1):
        expected = [value[row : row + 1] for value in known]
        alone.note(expected, trial.run(np.asarray([row])))
        if not alone.exact:
            pads.note(expected, trial.run(np.asarray([row]), twice=True))
    for batch, after in zip(_BATCHES[1:], (*_BATCHES[2:], 0), strict=True):
        before = clock()
        places = np.arange(batch)
        wider = trial.run(places)
        among.note(known, [value[:widest] for value in wider])
        for order in (places[::-1], np.roll(places, 1)):
            among.note(wider, [value[np.argsort(order)] for value in _of_length(trial.run(order), batch)])
        known, widest = wider, batch
        if not among.exact or clock() + (clock() - before) * after / batch > deadline:
            break
    return widest


def _of_length(values: Sequence[Array], rows: int) -> list[Array]:
    """Outputs with as many rows as went in; others, which stand for no rows, as one of no length."""
    return [value if len(value) == rows else np.zeros((rows, 0), value.dtype) for value in values]
