"""A unit of work: chunks that came together, their inputs and, as they run, their outputs.

A work is what a frame, a forecast step or a decoded token brings to the engine. Its chunks may run in
several batches; its sink hears of each chunk once.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Bools, Ints, span
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.marks import Marks
from statestream_server.engine.tickets import Ticket, Waits

NONE = -1

W_contra = TypeVar("W_contra", contravariant=True)


class Priority(enum.IntEnum):
    """Classes of work, most urgent first; each has a guaranteed share (see scheduler.py)."""

    LIVE = 0
    GENERATE = 1
    FORECAST = 2
    SUSPECT = 3
    """What of any of them is on rows whose inputs the model refused of late: it runs apart from the others."""


class Sink(Protocol[W_contra]):
    """Who hears how chunks of a work ended. Called on the loop, right after the batch."""

    def completed(self, work: W_contra, places: Ints) -> None:
        """These chunks ran to their end; their states are committed, their outputs in the work."""

    def failed(self, work: W_contra, places: Ints, error: errors.StatestreamError) -> None:
        """These chunks were not applied; their rows are as before."""

    def behind(self, work: W_contra, places: Ints) -> None:
        """These chunks were not applied because one before them on their rows was not."""


@dataclass(slots=True, eq=False)
class Work:
    """N chunks of one table, packed one after the other in the order of their rows.

    The columns of the queue (`done`, `shadow`, `next`, `ended`) are None until a chunk needs them: most works
    run whole, in one batch, with nothing behind them.

    Attributes:
        rows: [N] the rows, distinct.
        lengths: The steps of each chunk.
        inputs: One packed array for every input, [S, ...one step].
        wanted: Whether anybody wants the outputs; else they are not kept.
        marks: What of them are marks, what some come with; None where there is nothing of it.
        outputs: One packed array for every output, of scored chunks for every score too, [S, ...one step]; empty until
            the first batch ran.
        sink: Who hears of it, once it is queued; so with the next three.
        priority: Its class.
        tenant: Whose it is, where several tenants share the engine; None where nobody looked.
        since: When it was queued, by the performance counter.
        nbytes: Bytes of the inputs.
        first: The number of its first entry in the lane; entry `first + i` is chunk i.
        pending: Chunks that have not ended.
        done: [N] the steps of each chunk that ran already, on its shadow row.
        shadow: [N] the shadow row of each chunk, NONE while it has none.
        next: [N] the entry that is queued behind each chunk on its row, NONE where there is none.
        ended: [N] which chunks ended.
        waits: Who waits for some of them to end; None while nobody does.
        unders: The calls and frames that it is part of, where they are traced.
    """

    rows: Ints
    lengths: Lengths
    inputs: Sequence[Array]
    wanted: bool = True
    marks: Marks | None = None
    outputs: Sequence[Array] = field(default=(), init=False)
    sink: Sink[Any] = field(init=False)
    priority: Priority = field(default=Priority.LIVE, init=False)
    tenant: str | None = field(default=None, init=False)
    since: float = field(default=0.0, init=False)
    nbytes: int = field(default=0, init=False)
    first: int = field(default=NONE, init=False)
    pending: int = field(default=0, init=False)
    done: Ints | None = field(default=None, init=False)
    shadow: Ints | None = field(default=None, init=False)
    next: Ints | None = field(default=None, init=False)
    ended: Bools | None = field(default=None, init=False)
    waits: Waits | None = field(default=None, init=False)
    unders: Sequence[Any] = field(default=(), init=False)

    @property
    def scored(self) -> bool:
        """Whether its chunks are to be scored."""
        return self.marks is not None and self.marks.scored

    def column(self, name: str) -> Ints:
        """The column `done` (zeros at first), `shadow` or `next` (NONE at first), made where it is missing."""
        found: Ints | None = getattr(self, name)
        if found is None:
            found = np.full(len(self.rows), 0 if name == "done" else NONE, np.int64)
            setattr(self, name, found)
        return found

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
        rows: [n] their rows.
    """

    work: Work
    places: Ints
    rows: Ints

    @classmethod
    def of(cls, work: Work, places: Ints) -> Part:
        """The chunks at `places` (ascending)."""
        return cls(work, places, work.rows[span(places)])

    def some(self, which: Bools) -> Part:
        """Those of them that a mask [n] names."""
        return Part(self.work, self.places[which], self.rows[which])
