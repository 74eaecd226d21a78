"""A unit of work: chunks that came together, their inputs and, as they run, their outputs.

A work is what a frame, a forecast step or a decoded token brings to the engine. Its chunks may run in
several batches; its sink hears of each chunk once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from statestream import errors
from statestream_server.arrays import Array, Ints


class Sink(Protocol):
    """Who hears how chunks of a work ended. Called on the loop, right after the batch."""

    def completed(self, work: Work, places: Ints) -> None:
        """These chunks ran to their end; their states are committed, their outputs in the work."""

    def failed(self, work: Work, places: Ints, error: errors.StatestreamError) -> None:
        """These chunks were not applied; their rows are as before."""


class Work:
    """N chunks of one table.

    Attributes:
        number: Stands for the work in the lane.
        rows: [N] the rows.
        steps: [N] the steps of each chunk.
        offsets: [N] where each chunk starts in the packed arrays.
        inputs: One packed array for every input, [S, ...one step].
        outputs: One packed array for every output, [S, ...one step]; empty until the first batch ran.
        pending: Chunks that have not ended.
    """

    __slots__ = ("inputs", "number", "offsets", "outputs", "pending", "rows", "sink", "steps", "total")

    def __init__(self, rows: Ints, steps: Ints, inputs: Sequence[Array], sink: Sink) -> None:
        """Chunks packed one after the other in the order of `rows`."""
        self.number = 0
        self.rows = rows
        self.steps = steps
        self.inputs = list(inputs)
        self.sink = sink
        self.pending = len(rows)
        ends = np.cumsum(steps)
        self.offsets: Ints = ends - steps
        self.total = int(ends[-1]) if len(ends) else 0
        self.outputs: list[Array] = []

    @property
    def nbytes(self) -> int:
        """Bytes of its inputs."""
        return sum(array.nbytes for array in self.inputs)

    def is_whole(self, count: int, steps: int) -> bool:
        """Whether `count` chunks of `steps` steps are all of it, in one slice."""
        return count == len(self.rows) and self.total == count * steps

    def gather(self, places: Ints, done: Ints, steps: int) -> list[Array]:
        """The next `steps` steps of some chunks: one array for every input, [n, steps, ...one step]."""
        if self.is_whole(len(places), steps) and not done.any() and _in_order(places):
            return [array.reshape(len(places), steps, *array.shape[1:]) for array in self.inputs]
        index = self._index(places, done, steps)
        return [array[index] for array in self.inputs]

    def scatter(self, places: Ints, done: Ints, steps: int, outputs: Sequence[Array]) -> None:
        """Takes the outputs [n, steps, ...one step] of what `gather` gave."""
        if not self.outputs and self.is_whole(len(places), steps) and not done.any() and _in_order(places):
            self.outputs = [array.reshape(-1, *array.shape[2:]) for array in outputs]
            return
        if not self.outputs:
            self.outputs = [np.zeros((self.total, *array.shape[2:]), array.dtype) for array in outputs]
        index = self._index(places, done, steps)
        for mine, array in zip(self.outputs, outputs, strict=True):
            mine[index] = array

    def _index(self, places: Ints, done: Ints, steps: int) -> Ints:
        starts: Ints = self.offsets[places] + done
        return starts[:, None] + np.arange(steps)


def _in_order(places: Ints) -> bool:
    return bool(len(places) < 2 or (np.diff(places) == 1).all())
