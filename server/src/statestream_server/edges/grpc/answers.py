"""Answers: the frames that carry the outputs of chunks. Large ones are cut, and made when their turn has come.

What fits a message goes in one. Beyond that a frame has as many chunks as fit it, and a chunk that has more by itself
goes in parts. A part is cut out of the arrays of the answer when it is written, so that an answer of many megabytes
waits as the arrays in which the reply window keeps it, and no turn of the loop copies more than a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from statestream.contract import errors
from statestream.contract.partial import PART, Cut
from statestream.contract.signature import TensorSpec
from statestream.v1 import inference_pb2 as pb
from statestream_server.arrays import Array, Bools, Ints, Positions, span
from statestream_server.edges.grpc import wire
from statestream_server.edges.grpc.outbox import Outbox
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.replies import Kept, Returning
from statestream_server.engine.table import Table
from statestream_server.sessions.admission.accounts import Window

WHOLE: Final = 2 << 20
"""Outputs of so many bytes leave in one message; what is larger is cut into messages of `PART`."""

_ROWS: Final = 1024
"""Kept replies that are looked at in one turn."""

OVERHEAD: Final = 128
"""About what a message has beside its outputs and columns."""

_COLUMNS: Final = 20
"""A handle and two positions."""


class Results(NamedTuple):
    """Chunks of one model that were applied.

    Attributes:
        frame: The frame that they came with.
        specs: The outputs of the model.
        handles: [n] uint32 the sessions.
        starts: [n] the position at which each started.
        durable: [n] what survives a crash of each.
        lengths: The steps of each.
        outputs: One packed array for every output.
    """

    frame: int
    specs: Sequence[TensorSpec]
    handles: Array
    starts: Positions
    durable: Positions
    lengths: Lengths
    outputs: Sequence[Array]

    @property
    def nbytes(self) -> int:
        """Bytes of the outputs."""
        return sum([array.nbytes for array in self.outputs])

    def message(self) -> pb.StreamResponse:
        """The frame that says so."""
        lengths, response = self.lengths, pb.StreamResponse(frame=self.frame)
        result = response.result
        result.handles = self.handles.astype("<u4", copy=False).tobytes()
        result.positions = self.starts.astype("<u8", copy=False).tobytes()
        result.durable_positions = self.durable.astype("<u8", copy=False).tobytes()
        if lengths.each:
            result.steps = lengths.each
        elif not lengths.total:
            return response  # Marks alone.
        else:
            result.lengths = lengths.column.astype("<u4").tobytes()
        wire.write(result.outputs, [spec.name for spec in self.specs], self.outputs)
        return response

    def some(self, places: Ints) -> Results:
        """Those at `places` (ascending)."""
        cut = span(places)
        return self._replace(
            handles=self.handles[cut],
            starts=self.starts[cut],
            durable=self.durable[cut],
            lengths=self.lengths.take(places),
            outputs=self.lengths.pack(self.outputs, places),
        )


def put(outbox: Outbox, results: Results, window: Window, cost: int) -> None:
    """Sends results, in as many messages as they take; the last one gives the window back what they have had of it."""
    size = results.nbytes
    if size <= WHOLE:
        outbox.put_later(results.message, size + OVERHEAD + _COLUMNS * len(results.handles), window, cost)
        return
    messages = [*cut(results)]
    for make, size in messages[:-1]:
        outbox.put_later(make, size, window)
    outbox.put_later(*messages[-1], window, cost)


def cut(results: Results) -> Iterator[tuple[Callable[[], pb.StreamResponse], int]]:
    """Results as messages that are still to be made, none of which has more than `PART` or one step's columns.

    Yields:
        What makes each, and about how many bytes it has.
    """
    lengths = results.lengths
    step = results.nbytes // max(1, lengths.total)
    ends = np.cumsum(lengths.column) * step
    first = 0
    while first < lengths.count:
        before = int(ends[first - 1]) if first else 0
        beyond = max(first + 1, int(np.searchsorted(ends, before + PART, side="right")))
        chosen = results.some(np.arange(first, beyond))
        size = int(ends[beyond - 1]) - before
        if size > WHOLE:
            yield from _parts(chosen).messages()
        else:
            yield chosen.message, size + OVERHEAD
        first = beyond


def repeated(
    frame: int, table: Table, handles: Array, rows: Ints, rounds: Sequence[Kept]
) -> Iterator[pb.StreamResponse]:
    """Kept replies again, as they are drawn. Each comes, or the error that says why it does not.

    Args:
        frame: The frame that asked for them.
        table: The sessions' table.
        handles: [n] what the caller calls the sessions.
        rows: [n] their rows; the claim under which they are answered is that of now.
        rounds: What is kept, as `ReplyWindow.kept` gives it.
    """
    return _repeated(frame, table, handles, rows, rounds, table.claims(rows), table.returning(rows))


def _repeated(
    frame: int,
    table: Table,
    handles: Array,
    rows: Ints,
    rounds: Sequence[Kept],
    claims: tuple[Ints, Positions],
    _returning: Returning,  # Until the last was drawn, or nobody draws them any more.
) -> Iterator[pb.StreamResponse]:
    for places, entries, starts, ends in rounds:
        sizes = np.cumsum((ends - starts).astype(np.int64) * table.output_bytes)
        first = 0
        while first < len(places):
            before = int(sizes[first - 1]) if first else 0
            beyond = max(first + 1, int(np.searchsorted(sizes, before + PART, side="right")))
            beyond = min(beyond, first + _ROWS)
            at = slice(first, beyond)
            first = beyond
            # What became of them is looked at when they are drawn, not when they were asked for.
            here = table.are_claimed(rows, claims)[places[at]]
            kept: Bools = table.replies.acked[rows[places[at]]] < ends[at]
            there = np.flatnonzero(here & kept)
            if len(there) < len(kept):
                yield _gone(frame, handles[places[at]], starts[at], here, kept)
            if len(there):
                yield from _again(frame, table, handles, rows, places[at][there], entries[at][there], starts[at][there])


def _again(
    frame: int, table: Table, handles: Array, rows: Ints, places: Ints, entries: Ints, starts: Positions
) -> Iterator[pb.StreamResponse]:
    durable = table.durable[rows[places]]
    for at in table.replies.alike(entries):
        mine = entries[at]
        lengths, outputs = table.replies.views(int(mine[0])) if len(mine) == 1 else table.replies.outputs(mine)
        specs = table.answers[: len(outputs)]
        for make, _ in cut(Results(frame, specs, handles[places][at], starts[at], durable[at], lengths, outputs)):
            yield make()


def _gone(frame: int, handles: Array, starts: Positions, here: Bools, kept: Bools) -> pb.StreamResponse:
    """The frame about replies that are not there any more when their turn comes."""
    moved = errors.SessionMoved("the session left this stream before its kept reply could leave")
    acked = errors.AlreadyApplied("the chunk was applied, and its reply acknowledged meanwhile")
    rows = [
        wire.row_error(int(handles[place]), int(starts[place]), acked if here[place] else moved)
        for place in np.flatnonzero(~(here & kept)).tolist()
    ]
    return pb.StreamResponse(frame=frame, result=pb.ResultFrame(errors=rows))


class Parts:
    """The answer to one chunk, or one call, in parts."""

    def __init__(self, frame: int, first: pb.PartFrame, last: pb.PartFrame, cut: Cut) -> None:
        """What the first part says and what the last says, beside the bytes; every one says what it is about."""
        self.count = cut.count
        self._frame, self._first, self._last, self._cut = frame, first, last, cut

    def message(self, number: int) -> pb.StreamResponse:
        """One part."""
        response, first = pb.StreamResponse(frame=self._frame, part=self._cut.part(number)), self._first
        part = response.part
        part.handle, part.position = first.handle, first.position
        if number == 0:
            part.MergeFrom(first)
            part.outputs.extend(self._cut.tensors())
        if number == self.count - 1:
            part.MergeFrom(self._last)
        return response

    def messages(self) -> Iterator[tuple[Callable[[], pb.StreamResponse], int]]:
        """What makes each part, and about how many bytes it has."""
        for number in range(self.count):
            yield partial(self.message, number), min(PART, self._cut.size - number * PART) + OVERHEAD


def _parts(results: Results) -> Parts:
    """The answer to one chunk, in parts."""
    handle, start = int(results.handles[0]), int(results.starts[0])
    first = pb.PartFrame(handle=handle, position=start, steps=results.lengths.total)
    last = pb.PartFrame(durable_position=int(results.durable[0]))
    return Parts(results.frame, first, last, Cut([spec.name for spec in results.specs], results.outputs))
