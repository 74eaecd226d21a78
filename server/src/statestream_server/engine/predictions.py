"""Runs without rows that wait: those of equal shape share a batch. No I/O, no clock."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from statestream import errors
from statestream_server.arrays import Array
from statestream_server.engine.costs import Costs
from statestream_server.engine.scheduler import Head
from statestream_server.engine.statistics import Why
from statestream_server.engine.work import Priority


class Predictor(Protocol):
    """A graph that can be run."""

    def predict(self, inputs: Sequence[Array]) -> list[Array]:
        """One array for every output."""


@dataclass(slots=True)
class Prediction:
    """One call.

    Attributes:
        inputs: One array for every input, the graph's own axes.
        axes: The batch axis of each input; empty where the graph has none, then the call runs alone.
        output_axes: The batch axis of each output.
        outputs: Resolves to one array for every output.
        age: Its place among all work.
        since: When it came, by the performance counter.
    """

    inputs: list[Array]
    axes: Sequence[int]
    output_axes: Sequence[int]
    outputs: asyncio.Future[list[Array]]
    age: int = 0
    since: float = 0.0

    @property
    def rows(self) -> int:
        """The length of the batch axis."""
        return self.inputs[0].shape[self.axes[0]] if self.axes else 1

    @property
    def shape(self) -> tuple[object, ...]:
        """What calls must have in common to share a batch."""
        if not self.axes:
            return (id(self),)
        return tuple(
            (array.dtype.str, array.shape[:axis], array.shape[axis + 1 :])
            for array, axis in zip(self.inputs, self.axes, strict=True)
        )


@dataclass(slots=True)
class Together:
    """Calls that run as one batch."""

    graph: Predictor
    calls: list[Prediction]
    results: list[list[Array]] = field(default_factory=list)
    error: errors.StatestreamError | None = None

    @property
    def rows(self) -> int:
        """The length of the common batch axis."""
        return sum(call.rows for call in self.calls)

    def run(self) -> None:
        """Runs the graph once; where it refuses the batch, once for every call."""
        calls = self.calls
        if len(calls) == 1:
            self.results = [self._alone(calls[0])]
            return
        axes = calls[0].axes
        joined = [np.concatenate([c.inputs[i] for c in calls], axis) for i, axis in enumerate(axes)]
        try:
            outputs = self.graph.predict(joined)
        except Exception:
            self.results = [self._alone(call) for call in calls]
            return
        cuts = np.cumsum([call.rows for call in calls])[:-1]
        parts = [np.split(array, cuts, axis) for array, axis in zip(outputs, calls[0].output_axes, strict=True)]
        self.results = [list(part) for part in zip(*parts, strict=True)]

    def deliver(self) -> None:
        """Hands every call its outputs; a call without outputs gets the error."""
        for call, outputs in zip(self.calls, self.results, strict=True):
            if call.outputs.done():
                continue
            if outputs:
                call.outputs.set_result(outputs)
            else:
                call.outputs.set_exception(self.error or errors.InternalError("the model gave no outputs"))

    def _alone(self, call: Prediction) -> list[Array]:
        try:
            return self.graph.predict(call.inputs)
        except Exception as error:
            self.error = errors.BadTensor(f"the model cannot run these inputs: {error}", metadata={"field": "inputs"})
            return []


class Predictions:
    """The waiting calls of one graph."""

    def __init__(self, graph: Predictor, costs: Costs) -> None:
        """An empty queue."""
        self.costs = costs
        self._graph = graph
        self._calls: deque[Prediction] = deque()

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

    def heads(self) -> Iterator[Head]:
        """The oldest call that is still wanted; all are of class LIVE, their slice is 1."""
        while self._calls and self._calls[0].outputs.done():
            self._calls.popleft()
        if self._calls:
            yield Head(Priority.LIVE, self._calls[0].age, 1)

    def take(self, most: int) -> Together:
        """Takes the oldest call and those behind it that fit into its batch."""
        first = self._calls.popleft()
        together, rows, rest = [first], first.rows, deque[Prediction]()
        limit = self.costs.rows(1, most=most)
        while self._calls and rows < limit:
            call = self._calls.popleft()
            if call.outputs.done():
                continue
            if call.shape == first.shape and rows + call.rows <= limit:
                together.append(call)
                rows += call.rows
            else:
                rest.append(call)
        self._calls.extendleft(reversed(rest))
        return Together(self._graph, together)

    def why(self, batch: Together, most: int) -> Why:
        """Why a batch that was just taken is not larger."""
        if not self._calls:
            return Why.ALL
        shape = batch.calls[0].shape
        if not any(call.shape == shape for call in self._calls):
            return Why.SLICES
        return Why.MOST if self.costs.rows(1, most=most) == most else Why.TIME
