"""Runs without rows that wait: those of equal shape share a batch, a large one runs in pieces. No I/O."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array
from statestream_server.engine.calls import Calls, along
from statestream_server.engine.scheduler import Costs, Head, Statistics, Why
from statestream_server.engine.watch import Watch, tags_of_calls
from statestream_server.engine.work import Priority
from statestream_server.models.model import Predictor

_SHAPES = 64
"""Shapes of which it is remembered what they cost: a graph may take any length along an axis."""
_LOOKED_AT = 256
"""Groups of calls that are looked at for one batch; those of other shapes may be very many."""
_LONGEST = 2.0
"""Seconds that a run may take which cannot be cut."""
_UNWANTED = errors.Unavailable("nobody waits for this call any more")
_groups = itertools.count(1)


@dataclass(slots=True)
class Together:
    """Calls that run as one batch, or a piece of one.

    Attributes:
        graph: What runs them.
        calls: The calls, as they came together.
        count: The length of the common batch axis.
        costs: What such batches took.
        why: Why there are not more.
        since: When the oldest of them came.
        mark: What stands for the model where work is noted.
        watch: Who notes it.
        outputs: What the run gave, of all of them together.
        error: Why the only call has none.
        again: Calls that were refused together: they run in smaller groups, so that only the guilty are refused.
        used: Seconds of the run that its thread had a processor.
    """

    graph: Predictor
    calls: list[Calls]
    count: int
    costs: Costs
    why: Why
    since: float
    mark: bytes
    watch: Watch
    outputs: list[Array] = field(default_factory=list)
    error: errors.StatestreamError | None = None
    again: list[Calls] = field(default_factory=list)
    used: float = 0.0

    steps, searched = 1, False

    @property
    def ended(self) -> int:
        """Calls that heard how they ended, once that is delivered; none where something of them runs again."""
        return 0 if self.again else sum([len(one.rows) for one in self.calls])

    def run(self) -> float:
        """Runs the graph once; the seconds that it took."""
        calls, began, used = self.calls, time.perf_counter(), time.thread_time()
        first = calls[0]
        tags = first.tags if len(calls) == 1 else [tag for one in calls for tag in one.tags]
        name = f"a call of predict with inputs of {first.inputs[0].shape}" if first.apart else ""
        self.watch.notes.enter(self.mark, np.asarray(tags, np.uint64), what=name)
        try:
            self._run(calls)
        finally:
            self.watch.notes.leave()
        self.used = time.thread_time() - used
        return time.perf_counter() - began

    def _run(self, calls: list[Calls]) -> None:
        joined = calls[0].piece(self.count)
        if len(calls) > 1:
            joined = [np.concatenate([one.inputs[i] for one in calls], axis) for i, axis in enumerate(calls[0].axes)]
        try:
            self.outputs = self.graph.predict(joined)
        except Exception as error:
            if len(calls) == 1 and len(calls[0].rows) == 1:
                self.error = errors.BadTensor(
                    f"the model cannot run these inputs: {error}", metadata={"field": "inputs"}
                )
            else:
                self.again, self.calls = _halves(calls), []

    def deliver(self) -> None:
        """Hands every call its outputs; a call without outputs gets the error."""
        if self.calls and self.calls[0].apart:
            self.watch.survived(self.mark, np.asarray(self.calls[0].tags, np.uint64))
        whole, start = len(self.calls) == 1, 0
        for one in self.calls:
            if not self.outputs:
                error = self.error or errors.InternalError("the model gave no outputs")
                one.sink.refused(one.first, len(one.rows), error)
            elif whole and (one.ran or self.count < one.left):
                one.keep(self.outputs, self.count)
                if one.left:
                    self.again.append(one)
                else:
                    one.sink.ran(one.first, one.rows, one.pieces or [])
            elif whole:
                one.sink.ran(one.first, one.rows, self.outputs)
            else:
                rows = one.left
                cut = [
                    array[along(axis, start, rows)] for array, axis in zip(self.outputs, one.output_axes, strict=True)
                ]
                start += rows
                one.sink.ran(one.first, one.rows, cut)


def _halves(calls: list[Calls]) -> list[Calls]:
    """Calls as two groups."""
    half, found = sum([len(one.rows) for one in calls]) // 2, list[Calls]()
    groups = next(_groups), next(_groups)
    for one in calls:
        here = min(half, len(one.rows))
        half -= here
        for group, low, high in ((groups[0], 0, here), (groups[1], here, len(one.rows))):
            if low < high:
                part = one.cut(low, high) if high - low < len(one.rows) else one
                part.group = group
                found.append(part)
    return found


class Predictions:
    """The waiting calls of one graph."""

    def __init__(self, graph: Predictor, target: float, mark: bytes, watch: Watch) -> None:
        """An empty queue, of which a batch is to take `target` seconds; `watch` is told of runs, as those of `mark`."""
        self._graph = graph
        self._mark = mark
        self._watch = watch
        self._target = target
        self._calls: deque[Calls] = deque()
        self._costs: dict[tuple[object, ...], Costs] = {}
        self._ended: errors.StatestreamError | None = None
        self.waiting = 0
        """Calls that wait."""
        self.statistics = Statistics()
        """What ran of it so far."""

    def __len__(self) -> int:
        """Groups of calls that wait."""
        return len(self._calls)

    @property
    def cost(self) -> int:
        """Microseconds that a call took, on the average."""
        return self.statistics.step_cost

    def push(self, calls: Calls, age: int) -> None:
        """Queues calls."""
        calls.age = age
        if self._ended is not None:
            calls.sink.refused(calls.first, len(calls.rows), self._ended)
        else:
            self._calls.append(calls)
            self.waiting += len(calls.rows)

    def refuse(self, error: errors.StatestreamError) -> None:
        """Ends every call that waits, or comes later, with an error."""
        self._ended = error
        for calls in self._calls:
            calls.sink.refused(calls.first, len(calls.rows), error)
        self._calls.clear()
        self.waiting = 0

    def costs(self, calls: Calls) -> Costs:
        """What rows of such calls took."""
        shape = calls.shape
        found = self._costs.get(shape)
        if found is None:
            if len(self._costs) >= _SHAPES:
                del self._costs[next(iter(self._costs))]
            found = self._costs[shape] = Costs(self._target)
        return found

    def checked(self, calls: Calls) -> list[Calls]:
        """Those of some calls that may run, as groups to be queued; the sink hears of the others why not.

        It hears BadTensor where one like it, and no larger, had to run whole and took too long; Quarantined where it
        was running in deaths of a server.
        """
        calls.tags = tags_of_calls(calls.inputs, calls.rows, calls.axes)
        whole, costs = self._graph.together == 1 or not calls.axes, self.costs(calls)
        slow = whole and costs.at_least(max(calls.rows, default=0)) > _LONGEST
        suspected = self._watch.suspected(self._mark, np.asarray(calls.tags, np.uint64)) if self._watch.wary else None
        if not slow and suspected is None:
            return [calls]
        found = list[Calls]()
        for place, (tag, rows) in enumerate(zip(calls.tags, calls.rows, strict=True)):
            apart = suspected is not None and bool(suspected[place])
            try:
                if apart:
                    self._watch.check(self._mark, tag)
                if slow:
                    _check_time(costs.at_least(rows))
            except errors.StatestreamError as error:
                calls.sink.refused(calls.first + place, 1, error)
                continue
            one = calls.cut(place, place + 1) if len(calls.rows) > 1 else calls
            one.apart = apart
            found.append(one)
        return found

    def heads(self) -> Iterator[Head]:
        """The oldest call that is still wanted; all are of class LIVE, their slice is 1."""
        while self._calls and not self._calls[0].sink.wanted:
            self._drop(self._calls.popleft())
        if self._calls:
            yield Head(Priority.LIVE, self._calls[0].age, 1)

    def _drop(self, calls: Calls) -> None:
        """Calls that nobody waits for any more are not run."""
        self.waiting -= len(calls.rows)
        calls.sink.refused(calls.first, len(calls.rows), _UNWANTED)

    def take(self, most: int) -> Together:
        """Takes the oldest calls and those behind them that fit their batch, or of a large call as much as fits."""
        first, serial = self._calls.popleft(), self._graph.together == 1
        costs = self.costs(first)
        fitting = costs.rows(1, most=most)
        limit = 1 if serial else min(fitting, self._graph.together)
        here, left = first.within(limit, 1 if serial or not first.axes else len(first.rows))
        if here is None:
            # The first is larger than a batch by itself.
            here, left = (first.cut(0, 1), first.cut(1, len(first.rows))) if len(first.rows) > 1 else (first, None)
        rest = deque([left] if left is not None else [])
        together, rows = [here], here.left if here.axes else 1
        if here.axes and rows > limit and not serial:
            rows = limit
        while self._calls and rows < limit and left is None and not serial and len(rest) < _LOOKED_AT:
            calls = self._calls.popleft()
            if not calls.sink.wanted:
                self._drop(calls)
                continue
            if not calls.shares(here):
                rest.append(calls)
                continue
            fits, left = calls.within(limit - rows, len(calls.rows))
            if fits is not None:
                together.append(fits)
                rows += fits.left
            if left is not None:
                rest.append(left)
        self._calls.extendleft(reversed(rest))
        self.waiting -= sum([len(one.rows) for one in together])
        if not self._calls:
            why = Why.ALL
        elif serial:
            why = Why.SERIAL
        elif not any(calls.shares(here) for calls in itertools.islice(self._calls, _LOOKED_AT)):
            why = Why.SLICES
        else:
            why = Why.MOST if fitting == most else Why.TIME
        return Together(self._graph, together, rows, costs, why, first.since, self._mark, self._watch)


def _check_time(seconds: float) -> None:
    """Checks that a call that has to run whole does not hold everything up.

    Raises:
        BadTensor: It would.
    """
    if seconds > _LONGEST:
        raise errors.BadTensor(
            f"a call of such a shape took {seconds:.1f} s, in which nothing else ran; the limit is {_LONGEST:g} s."
            " Send fewer rows at a time, or shorter ones",
            metadata={"field": "inputs"},
        )
