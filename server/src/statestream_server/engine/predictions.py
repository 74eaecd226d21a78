"""Runs without rows that wait: those of equal shape share a batch, a large one runs in pieces. No I/O."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array
from statestream_server.engine.scheduler import Costs, Head, Why
from statestream_server.engine.watch import Watch, tag_of_arrays
from statestream_server.engine.work import Priority
from statestream_server.models.model import Predictor

_SHAPES = 64
"""Shapes of which it is remembered what they cost: a graph may take any length along an axis."""
_LOOKED_AT = 256
"""Calls that are looked at for one batch; those of other shapes may be very many."""
_LONGEST = 2.0
"""Seconds that a run may take which cannot be cut."""
_groups = itertools.count(1)


@dataclass(slots=True)
class Prediction:
    """One call.

    Attributes:
        inputs: The inputs, one array each, the graph's own axes.
        axes: The batch axis of each input; empty where the graph has none, then the call runs alone.
        output_axes: The batch axis of each output.
        outputs: Resolves to one array for every output.
        age: Its place among all work.
        since: When it came, by the performance counter.
        ran: Rows that ran, of a call that runs in pieces.
        pieces: The outputs of such a call as far as it ran.
        group: Those that were refused together and are to find out which of them is guilty; 0 for none.
        tag: What stands for it where work is noted.
        apart: Whether it is suspected of having ended a server, and shares no batch.
    """

    inputs: list[Array]
    axes: Sequence[int]
    output_axes: Sequence[int]
    outputs: asyncio.Future[list[Array]]
    age: int = 0
    since: float = 0.0
    tag: int = 0
    apart: bool = False
    ran: int = 0
    pieces: list[Array] | None = None
    group: int = 0

    @property
    def rows(self) -> int:
        """The length of the batch axis, as far as it did not run."""
        return self.inputs[0].shape[self.axes[0]] - self.ran if self.axes else 1

    @property
    def shape(self) -> tuple[object, ...]:
        """What calls must have in common to cost the same by row."""
        axes = self.axes or [-1] * len(self.inputs)
        return tuple(
            (array.dtype.str, array.shape[:axis], array.shape[axis + 1 :]) if self.axes else array.shape
            for array, axis in zip(self.inputs, axes, strict=True)
        )

    def shares(self, other: Prediction) -> bool:
        """Whether both may run as one batch."""
        return (
            bool(self.axes)
            and not (self.ran or other.ran or self.apart or other.apart)
            and self.group == other.group
            and self.shape == other.shape
        )

    def piece(self, rows: int) -> list[Array]:
        """The next rows of the inputs, views."""
        if not self.ran and rows == self.rows:
            return self.inputs
        return [array[_along(axis, self.ran, rows)] for array, axis in zip(self.inputs, self.axes, strict=True)]

    def keep(self, outputs: Sequence[Array], rows: int) -> None:
        """Takes the outputs of what `piece` gave."""
        total = self.ran + self.rows
        if self.pieces is None:
            self.pieces = [
                np.empty((*array.shape[:axis], total, *array.shape[axis + 1 :]), array.dtype)
                for array, axis in zip(outputs, self.output_axes, strict=True)
            ]
        for whole, array, axis in zip(self.pieces, outputs, self.output_axes, strict=True):
            whole[_along(axis, self.ran, rows)] = array
        self.ran += rows


def _along(axis: int, start: int, count: int) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, slice(start, start + count))


@dataclass(slots=True)
class Together:
    """Calls that run as one batch, or a piece of one.

    Attributes:
        graph: What runs them.
        calls: The calls.
        count: The length of the common batch axis.
        costs: What such batches took.
        why: Why there are not more.
        since: When the oldest of them came.
        mark: What stands for the model where work is noted.
        watch: Who notes it.
        results: The outputs of each call that ran.
        error: Why the only call did not.
        again: Calls that were refused together: they run in smaller groups, so that only the guilty are refused.
    """

    graph: Predictor
    calls: list[Prediction]
    count: int
    costs: Costs
    why: Why
    since: float
    mark: bytes
    watch: Watch
    results: list[list[Array]] = field(default_factory=list)
    error: errors.StatestreamError | None = None
    again: list[Prediction] = field(default_factory=list)

    steps, searched = 1, False

    def run(self) -> float:
        """Runs the graph once; the seconds that it took."""
        calls, began = self.calls, time.perf_counter()
        name = f"a call of predict with inputs of {calls[0].inputs[0].shape}" if calls[0].apart else ""
        self.watch.notes.enter(self.mark, np.fromiter((call.tag for call in calls), np.uint64, len(calls)), what=name)
        try:
            self._run(calls)
        finally:
            self.watch.notes.leave()
        return time.perf_counter() - began

    def _run(self, calls: list[Prediction]) -> None:
        if len(calls) == 1:
            self.results = [self._alone(calls[0])]
            return
        axes = calls[0].axes
        joined = [np.concatenate([c.inputs[i] for c in calls], axis) for i, axis in enumerate(axes)]
        try:
            outputs = self.graph.predict(joined)
        except Exception:
            half = len(calls) // 2
            for group in (calls[:half], calls[half:]):
                number = next(_groups)
                for call in group:
                    call.group = number
            self.again, self.calls = calls, []
            return
        cuts = np.cumsum([call.rows for call in calls])[:-1]
        parts = [np.split(array, cuts, axis) for array, axis in zip(outputs, calls[0].output_axes, strict=True)]
        self.results = [list(part) for part in zip(*parts, strict=True)]

    def deliver(self) -> None:
        """Hands every call its outputs; a call without outputs gets the error."""
        if self.calls and self.calls[0].apart:
            self.watch.survived(self.mark, np.asarray([self.calls[0].tag], np.uint64))
        for call, outputs in zip(self.calls, self.results, strict=True):
            if call.outputs.done():
                continue
            if not outputs:
                call.outputs.set_exception(self.error or errors.InternalError("the model gave no outputs"))
            elif not call.ran and self.count >= call.rows:
                call.outputs.set_result(outputs)
            else:
                call.keep(outputs, self.count)
                if call.rows:
                    self.again.append(call)
                else:
                    call.outputs.set_result(call.pieces or [])

    def _alone(self, call: Prediction) -> list[Array]:
        try:
            return self.graph.predict(call.piece(self.count))
        except Exception as error:
            self.error = errors.BadTensor(f"the model cannot run these inputs: {error}", metadata={"field": "inputs"})
            return []


class Predictions:
    """The waiting calls of one graph."""

    def __init__(self, graph: Predictor, target: float, mark: bytes, watch: Watch) -> None:
        """An empty queue, of which a batch is to take `target` seconds; `watch` is told of runs, as those of `mark`."""
        self._graph = graph
        self._mark = mark
        self._watch = watch
        self._target = target
        self._calls: deque[Prediction] = deque()
        self._costs: dict[tuple[object, ...], Costs] = {}

    def __len__(self) -> int:
        """Calls that wait."""
        return len(self._calls)

    def push(self, call: Prediction, age: int) -> None:
        """Queues a call."""
        call.age = age
        self._calls.append(call)

    def refuse(self, error: errors.StatestreamError) -> None:
        """Ends every call that waits with an error."""
        for call in self._calls:
            if not call.outputs.done():
                call.outputs.set_exception(error)

    def costs(self, call: Prediction) -> Costs:
        """What rows of such calls took."""
        shape = call.shape
        found = self._costs.get(shape)
        if found is None:
            if len(self._costs) >= _SHAPES:
                del self._costs[next(iter(self._costs))]
            found = self._costs[shape] = Costs(self._target)
        return found

    def check(self, call: Prediction) -> None:
        """Checks that a call may run, and that one which has to run whole does not hold everything up.

        Raises:
            BadTensor: One like it, and no larger, took too long.
            Quarantined: It was running in deaths of a server.
        """
        call.tag = tag_of_arrays(call.inputs)
        if self._watch.wary:
            self._watch.check(self._mark, call.tag)
            call.apart = self._watch.suspected(self._mark, np.asarray([call.tag], np.uint64)) is not None
        seconds = self.costs(call).at_least(call.rows)
        if seconds > _LONGEST and (self._graph.together == 1 or not call.axes):
            raise errors.BadTensor(
                f"a call of such a shape took {seconds:.1f} s, in which nothing else ran; the limit is {_LONGEST:g} s."
                " Send fewer rows at a time, or shorter ones",
                metadata={"field": "inputs"},
            )

    def heads(self) -> Iterator[Head]:
        """The oldest call that is still wanted; all are of class LIVE, their slice is 1."""
        while self._calls and self._calls[0].outputs.done():
            self._calls.popleft()
        if self._calls:
            yield Head(Priority.LIVE, self._calls[0].age, 1)

    def take(self, most: int) -> Together:
        """Takes the oldest call and those behind it that fit into its batch, or of a large call as much as fits."""
        first = self._calls.popleft()
        costs = self.costs(first)
        fitting = costs.rows(1, most=most)
        limit = min(fitting, self._graph.together)
        together, rows, rest = [first], first.rows, deque[Prediction]()
        if first.axes and first.rows > limit and self._graph.together > 1:
            rows = limit
        while self._calls and rows < limit and len(rest) < _LOOKED_AT:
            call = self._calls.popleft()
            if call.outputs.done():
                continue
            if rows + call.rows <= limit and call.shares(first):
                together.append(call)
                rows += call.rows
            else:
                rest.append(call)
        self._calls.extendleft(reversed(rest))
        if not self._calls:
            why = Why.ALL
        elif self._graph.together == 1:
            why = Why.SERIAL
        elif not any(call.shares(first) for call in itertools.islice(self._calls, _LOOKED_AT)):
            why = Why.SLICES
        else:
            why = Why.MOST if fitting == most else Why.TIME
        return Together(self._graph, together, rows, costs, why, first.since, self._mark, self._watch)
