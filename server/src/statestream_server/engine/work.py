"""A unit of work: chunks that came together, their inputs and, as they run, their outputs.

A work is what a frame, a forecast step or a decoded token brings to the engine. Its chunks may run in
several batches; its sink hears of each chunk once.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Bools, Ints, counting, span
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.tickets import Ticket, Waits

NONE = -1


class Priority(enum.IntEnum):
    """Classes of work, most urgent first; each has a guaranteed share (see scheduler.py)."""

    LIVE = 0
    GENERATE = 1
    FORECAST = 2
    SUSPECT = 3
    """What of any of them is on rows whose inputs the model refused of late: it runs apart from the others."""


class Sink(Protocol):
    """Who hears how chunks of a work ended. Called on the loop, right after the batch."""

    def completed(self, work: Work, places: Ints) -> None:
        """These chunks ran to their end; their states are committed, their outputs in the work."""

    def failed(self, work: Work, places: Ints, error: errors.StatestreamError) -> None:
        """These chunks were not applied; their rows are as before."""

    def behind(self, work: Work, places: Ints) -> None:
        """These chunks were not applied because one before them on their rows was not."""


class Work:
    """N chunks of one table.

    The columns of the queue (`done`, `shadow`, `next`, `ended`) are None until a chunk needs them: most works
    run whole, in one batch, with nothing behind them.

    Attributes:
        rows: [N] the rows, distinct.
        lengths: The steps of each chunk.
        inputs: One packed array for every input, [S, ...one step].
        nbytes: Bytes of the inputs.
        outputs: One packed array for every output, [S, ...one step]; empty until the first batch ran.
        sink: Who hears of it.
        kinds: [N] what is a mark, see `marks.Marks`; None where all are chunks.
        wanted: Whether anybody wants the outputs; else they are not kept.
        priority: Its class, once it is queued.
        since: When it was queued, by the performance counter.
        first: The number of its first entry in the lane; entry `first + i` is chunk i.
        pending: Chunks that have not ended.
        done: [N] the steps of each chunk that ran already, on its shadow row.
        shadow: [N] the shadow row of each chunk, NONE while it has none.
        next: [N] the entry that is queued behind each chunk on its row, NONE where there is none.
        ended: [N] which chunks ended.
        waits: Who waits for some of them to end; None while nobody does.
    """

    __slots__ = (
        "done",
        "ended",
        "first",
        "inputs",
        "kinds",
        "lengths",
        "nbytes",
        "next",
        "outputs",
        "pending",
        "priority",
        "rows",
        "shadow",
        "since",
        "sink",
        "waits",
        "wanted",
    )

    def __init__(
        self,
        rows: Ints,
        lengths: Lengths,
        inputs: Sequence[Array],
        sink: Sink,
        *,
        wanted: bool = True,
        kinds: Array | None = None,
    ) -> None:
        """Chunks packed one after the other in the order of `rows`."""
        self.rows = rows
        self.lengths = lengths
        self.inputs = list(inputs)
        self.nbytes = sum([array.nbytes for array in inputs])
        self.outputs: list[Array] = []
        self.sink = sink
        self.wanted = wanted
        self.kinds = kinds
        self.priority = Priority.LIVE
        self.since = 0.0
        self.first = NONE
        self.pending = len(rows)
        self.done: Ints | None = None
        self.shadow: Ints | None = None
        self.next: Ints | None = None
        self.ended: Bools | None = None
        self.waits: Waits | None = None

    @property
    def places(self) -> Ints:
        """[N] all of its chunks."""
        return counting(len(self.rows))

    def column(self, name: str) -> Ints:
        """The column `done` (zeros at first), `shadow` or `next` (NONE at first), made where it is missing."""
        found: Ints | None = getattr(self, name)
        if found is None:
            found = np.full(len(self.rows), 0 if name == "done" else NONE, np.int64)
            setattr(self, name, found)
        return found

    def end(self, places: Ints) -> None:
        """Notes that chunks ended."""
        self.pending -= len(places)
        if self.pending:
            if self.ended is None:
                self.ended = np.zeros(len(self.rows), np.bool_)
            self.ended[places] = True
        if self.waits is not None:
            self.waits.ended(places, self.ended if self.pending else None)

    def watch(self, places: Ints, ticket: Ticket) -> None:
        """Has a ticket wait until chunks (one at least, none of which ended) have ended."""
        if self.waits is None:
            self.waits = Waits()
        self.waits.add(places, ticket)


class Part(NamedTuple):
    """Some chunks of one work.

    Attributes:
        work: The work.
        places: [n] the chunks, ascending.
    """

    work: Work
    places: Ints

    @property
    def rows(self) -> Ints:
        """[n] their rows."""
        work, places = self
        return work.rows if len(places) == len(work.rows) else work.rows[span(places)]

    def is_straight(self, steps: int) -> bool:
        """Whether a batch of `steps` steps runs these chunks from their beginning to their end."""
        return self.work.lengths.each == steps and self.work.done is None

    def gather(self, steps: int) -> list[Array]:
        """The next `steps` steps of the chunks: one array for every input, [n, steps, ...one step]."""
        work, places = self
        if self.is_straight(steps):
            packed = work.lengths.pack(work.inputs, places)
            return [array.reshape(len(places), steps, *array.shape[1:]) for array in packed]
        index = self._index(steps)
        return [array[index] for array in work.inputs]

    def scatter(self, steps: int, outputs: Sequence[Array]) -> None:
        """Takes the outputs [n, steps, ...one step] of what `gather` gave."""
        work, places = self
        if not work.wanted:
            return
        straight = self.is_straight(steps)
        if straight:
            outputs = [array.reshape(-1, *array.shape[2:]) for array in outputs]
            if len(places) == len(work.rows):
                work.outputs = list(outputs)
                return
        if not work.outputs:
            lead = 1 if straight else 2
            work.outputs = [np.zeros((work.lengths.total, *array.shape[lead:]), array.dtype) for array in outputs]
        index = work.lengths.cut(places) if straight else self._index(steps)
        for mine, array in zip(work.outputs, outputs, strict=True):
            mine[index] = array

    def _index(self, steps: int) -> Ints:
        work, places = self
        starts = work.lengths.offsets[places]
        if work.done is not None:
            starts = starts + work.done[places]
        index: Ints = starts[:, None] + counting(steps)
        return index
