"""Calls: runs without rows that came together; what they share, how they are cut, who hears how they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array


class CallSink(Protocol):
    """Who hears how calls end."""

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for them still; what nobody waits for is not run."""

    def ran(self, first: int, rows: Sequence[int], outputs: list[Array]) -> None:
        """Calls ran, one after the other from number `first` on: the rows of each, and their outputs, packed."""

    def refused(self, first: int, count: int, error: errors.StatestreamError) -> None:
        """Calls will not run."""


@dataclass(slots=True, eq=False)
class Calls:
    """Some calls of one graph that came together, each of some rows.

    Attributes:
        inputs: The inputs, one array each, the graph's own axes; along the batch axis one call after the other.
        axes: The batch axis of each input; empty where the graph has none, then it is one call.
        output_axes: The batch axis of each output.
        rows: The rows of each call; of one without a batch axis 1.
        sink: Who hears how they end.
        first: The number of the first of them, as the sink knows it.
        age: Their place among all work.
        since: When they came, by the performance counter.
        tags: What stands for each where work is noted.
        apart: Whether it is one that is suspected of having ended a server, and shares no batch.
        ran: Rows that ran, of a call that runs in pieces.
        pieces: The outputs of such a call as far as it ran.
        group: Those that were refused together and are to find out which of them is guilty; 0 for none.
        unders: The calls and frames that they are part of, where they are traced.
        shape: What calls must have in common to cost the same by row, and to share a run.
    """

    inputs: list[Array]
    axes: Sequence[int]
    output_axes: Sequence[int]
    rows: Sequence[int]
    sink: CallSink
    first: int = 0
    age: int = 0
    since: float = 0.0
    tags: Sequence[int] = ()
    apart: bool = False
    ran: int = 0
    pieces: list[Array] | None = None
    group: int = 0
    shape: tuple[object, ...] = field(default=())
    unders: Sequence[Any] = ()

    def __post_init__(self) -> None:
        if not self.shape:
            axes = self.axes or [-1] * len(self.inputs)
            self.shape = tuple(
                [
                    (array.dtype.str, array.shape[:axis], array.shape[axis + 1 :]) if self.axes else array.shape
                    for array, axis in zip(self.inputs, axes, strict=True)
                ]
            )

    @property
    def left(self) -> int:
        """Their rows, as far as they did not run."""
        return sum(self.rows) - self.ran

    def shares(self, other: Calls) -> bool:
        """Whether both may run as one batch."""
        return (
            bool(self.axes)
            and not (self.ran or other.ran or self.apart or other.apart)
            and self.group == other.group
            and self.shape == other.shape
        )

    def within(self, room: int, most: int) -> tuple[Calls | None, Calls | None]:
        """As many of the first as have `room` rows together, at most `most` of them; and the others."""
        count = 0
        for count, total in enumerate(accumulate(self.rows), 1):
            if total > room or count > most:
                count -= 1
                break
        if count == len(self.rows):
            return self, None
        return (self.cut(0, count) if count else None), (self.cut(count, len(self.rows)) if count else self)

    def cut(self, low: int, high: int) -> Calls:
        """Those from number `low` up to `high`, counted from the first of these; views."""
        start, count = sum(self.rows[:low]), sum(self.rows[low:high])
        inputs = [array[along(axis, start, count)] for array, axis in zip(self.inputs, self.axes, strict=True)]
        return Calls(
            inputs,
            self.axes,
            self.output_axes,
            self.rows[low:high],
            self.sink,
            self.first + low,
            self.age,
            self.since,
            self.tags[low:high],
            self.apart,
            group=self.group,
            shape=self.shape,
            unders=self.unders,
        )

    def piece(self, rows: int) -> list[Array]:
        """The next rows of the inputs, views."""
        if not self.axes or (not self.ran and rows == self.left):
            return self.inputs
        return [array[along(axis, self.ran, rows)] for array, axis in zip(self.inputs, self.axes, strict=True)]

    def keep(self, outputs: Sequence[Array], rows: int) -> None:
        """Takes the outputs of what `piece` gave."""
        total = self.ran + self.left
        if self.pieces is None:
            self.pieces = [
                np.empty((*array.shape[:axis], total, *array.shape[axis + 1 :]), array.dtype)
                for array, axis in zip(outputs, self.output_axes, strict=True)
            ]
        for whole, array, axis in zip(self.pieces, outputs, self.output_axes, strict=True):
            whole[along(axis, self.ran, rows)] = array
        self.ran += rows


def along(axis: int, start: int, count: int) -> tuple[slice, ...]:
    """The index of some rows along an axis."""
    return (*[slice(None)] * axis, slice(start, start + count))
