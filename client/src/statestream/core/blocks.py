"""Blocks: one chunk of each of some sessions, as they leave in one frame and as they are kept for replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from statestream.contract.tensors import Ints, Mask, handles_column, positions_column, read_positions
from statestream.core.sinks import DISCARD, Singles, Sink
from statestream.core.table import Table
from statestream.core.tickets import OVERHEAD, Lane, StepTicket
from statestream.v1.inference_pb2 import ChunkFrame, StreamRequest
from statestream.v1.tensor_pb2 import Tensor


class Draft(NamedTuple):
    """The frame of a single step, its chunk, and the tensors in it: from step to step most of it stays the same."""

    request: StreamRequest
    chunk: ChunkFrame
    inputs: Sequence[Tensor]


class Block:
    """Chunks of one lane, at most one for each session.

    Attributes:
        handles: [N] the sessions.
        at: Where they are in the table's columns: a range where their handles follow one another, else `handles`.
        starts: [N] where each chunk starts.
        ends: [N] where each chunk ends.
        lengths: [N] the steps of each chunk, or one number where all have the same.
        inputs: The bytes of every input, packed one chunk after the other.
        sink: Where outputs go.
        left: How many replies are still to come.
        waiting: [N] the chunks whose replies are still to come; None where that is all of them or none.
        dead: [N] the chunks that were given up and must not be replayed, or None for none.
        kept: Whether the replay buffer has it: what was sent, and whoever waits for it.
        frame: The frame that carries it, 0 while it is not sent on this stream.
        nbytes: What it takes in the replay buffer, about.
        load: Bytes that are under way with it: inputs, and outputs as far as the signature tells.
        fresh: Of single steps, how many sessions had nothing else in flight when it left.
        weight: Bytes that count in the window of its lane, while they are under way.
        every: All of its rows.
        durable_at: When it was found to be durable.
        cursors: [N] those that go with the chunks, b"" for none; None where none has one.
    """

    __slots__ = (
        "at",
        "cursors",
        "dead",
        "durable_at",
        "ends",
        "every",
        "frame",
        "fresh",
        "handle_bytes",
        "handles",
        "inputs",
        "kept",
        "lane",
        "left",
        "lengths",
        "load",
        "nbytes",
        "position_bytes",
        "sink",
        "starts",
        "waiting",
        "weight",
    )

    def __init__(
        self,
        lane: Lane,
        handles: Ints,
        starts: Ints,
        lengths: Ints | int,
        inputs: tuple[bytes, ...],
        sink: Sink,
        cursors: list[bytes] | None = None,
    ) -> None:
        self.handles = handles
        self.at: slice | Ints = span(handles)
        self.starts = starts
        self.ends: Ints = starts + lengths
        self._begin(lane, len(handles), lengths, inputs, sink, cursors)

    def _begin(
        self,
        lane: Lane,
        count: int,
        lengths: Ints | int,
        inputs: tuple[bytes, ...],
        sink: Sink,
        cursors: list[bytes] | None,
    ) -> None:
        self.lane = lane
        self.cursors = cursors
        self.lengths = lengths
        self.inputs = inputs
        self.sink = sink
        self.left = count
        self.every = slice(0, count)
        self.waiting: Mask | None = None
        self.dead: Mask | None = None
        self.kept = False
        self.frame = 0
        self.fresh = 0
        self.weight = 0
        self.durable_at = 0.0
        self.handle_bytes = b""
        self.position_bytes = b""
        self.nbytes = OVERHEAD + sum(map(len, inputs))
        self.load = self.nbytes
        if lane.answer_bytes:
            steps = count * lengths if isinstance(lengths, int) else int(lengths.sum())
            self.load += steps * lane.answer_bytes

    def __len__(self) -> int:
        return len(self.handles)

    # ── what a block does to the table ─────────────────────────────────────────────────────────

    def keep(self, table: Table) -> None:
        """The buffer keeps it."""
        self.kept = True
        table.refs[self.at] += 1

    def drop(self, table: Table) -> None:
        """The buffer lets it go: chunks before its ends cannot be replayed any more."""
        table.refs[self.at] -= 1
        table.floor[self.at] = np.maximum(table.floor[self.at], self._live_ends())

    def depart(self, table: Table) -> None:
        """It leaves."""
        table.sent[self.at] = self.ends
        table.in_flight[self.at] += 1
        if isinstance(self.lengths, int) and self.lengths == 1 and isinstance(self.sink, Singles | StepTicket):
            self.fresh = int(np.count_nonzero(table.in_flight[self.at] == 1))

    def acknowledge(self, table: Table) -> bytes:
        """The column of acknowledged positions that goes with it; empty where the server knows them all."""
        acked = table.acknowledgeable(self.handles) if table.untaken else table.answered[self.at]
        if (acked == table.acked[self.at]).all():
            return b""
        table.acked[self.at] = acked
        table.unacked[self.at] = 0
        return positions_column(acked)

    def arrive(self, table: Table, durable: bytes) -> int:
        """All replies are there; how many the server keeps, at most, of one session."""
        self.left = 0
        return answer(table, self.at, self.ends, read_positions(durable, len(self)), replay=self.sink is DISCARD)

    def is_durable(self, table: Table) -> bool:
        """Whether the server can lose none of it that may have to be replayed."""
        return bool((table.durable[self.at] >= self._live_ends()).all())

    def _live_ends(self) -> Ints:
        return self.ends if self.dead is None else np.where(self.dead, 0, self.ends)

    def request(self, table: Table, drafts: dict[Lane, Draft]) -> StreamRequest:
        """Its frame."""
        self.handle_bytes = handles_column(self.handles)
        self.position_bytes = positions_column(self.starts)
        return self._request(table, len(self))

    def _request(self, table: Table, count: int) -> StreamRequest:
        request = StreamRequest(frame=self.frame)
        frame = request.chunk
        frame.handles, frame.positions = self.handle_bytes, self.position_bytes
        frame.acked_positions = self.acknowledge(table)
        if self.cursors is not None:
            frame.cursors.extend(self.cursors)
        if self.lane.mark:
            frame.marks = bytes((self.lane.mark,)) * count
            return request
        if self.lane.scored:
            frame.score = True
        if isinstance(self.lengths, int):
            frame.steps = self.lengths
            total = count * self.lengths
        else:
            frame.lengths = handles_column(self.lengths)
            total = int(self.lengths.sum())
        lane = self.lane
        for name, dtype, shape, data in zip(lane.names, lane.dtypes, lane.shapes, self.inputs, strict=True):
            # Field by field, which takes half the time of a constructor with arguments.
            tensor = frame.inputs.add()
            tensor.name, tensor.dtype, tensor.data = name, dtype, data
            tensor.shape.extend((total, *shape))
        return request

    # ── which of its chunks wait, and setbacks ─────────────────────────────────────────────────

    def still_waiting(self) -> Mask:
        """The mask of waiting chunks."""
        if self.waiting is not None:
            return self.waiting
        return np.ones(len(self), np.bool_) if self.left else np.zeros(len(self), np.bool_)

    def settle(self, rows: slice | Ints | int) -> None:
        """No replies are to come any more for some rows."""
        self.waiting = self.still_waiting()
        self.waiting[rows] = False
        self.left = int(np.count_nonzero(self.waiting))

    def kill(self, rows: Ints | int) -> None:
        """Gives chunks up: their replies, if any come, are discarded."""
        if self.dead is None:
            self.dead = np.zeros(len(self), np.bool_)
        self.dead[rows] = True

    def is_given_up(self) -> bool:
        """Whether all replies that are still to come are of chunks that were given up."""
        return self.dead is not None and not (self.still_waiting() & ~self.dead).any()

    def find(self, handles: Ints, positions: Ints, scratch: Ints) -> Ints:
        """The rows of waiting chunks, -1 where there is none; `scratch` is indexed by handle."""
        count = len(self)
        scratch[self.handles] = np.arange(count)
        rows = scratch[handles]
        rows[rows >= count] = 0
        hit = (self.handles[rows] == handles) & (self.starts[rows] == positions)
        if self.waiting is not None:
            hit &= self.waiting[rows]
        rows[~hit] = -1
        return rows

    def run(self, handles: Ints, positions: Ints) -> slice | None:
        """The rows of chunks where they follow one another here as they do there, and all of them wait; else None."""
        here, there = self.at, span(handles)
        if not (isinstance(here, slice) and isinstance(there, slice) and here.start <= there.start):
            return None
        rows = slice(there.start - here.start, there.stop - here.start)
        if rows.stop > len(self) or (self.starts[rows] != positions).any() or not self.still_waiting()[rows].all():
            return None
        return rows if self.dead is None or not self.dead[rows].any() else None

    def take(self, rows: Ints, sink: Sink | None = None) -> Block:
        """A new, unsent block of some of the chunks, all of them waiting."""
        if isinstance(self.lengths, int):
            lengths: Ints | int = self.lengths
            total = len(self) * self.lengths
            index = (rows[:, np.newaxis] * self.lengths + np.arange(self.lengths)).reshape(-1)
        else:
            lengths = self.lengths[rows]
            total = int(self.lengths.sum())
            index = ranges((np.cumsum(self.lengths) - self.lengths)[rows], lengths)
        inputs = tuple(np.frombuffer(data, np.uint8).reshape(total, -1)[index].tobytes() for data in self.inputs)
        cursors = [self.cursors[row] for row in rows.tolist()] if self.cursors is not None else None
        return Block(
            self.lane, self.handles[rows], self.starts[rows], lengths, inputs, sink or self.sink.take(rows), cursors
        )


class Single(Block):
    """One chunk, in numbers.

    Arrays of one item cost what arrays of hundreds do, and a caller with one session waits for all of it. So what
    happens at every step is done without them; the columns are there when a setback asks for them.

    Attributes:
        handle: The session.
        start: Where the chunk starts.
        end: Where it ends.
    """

    __slots__ = ("end", "handle", "start")

    def __init__(self, ticket: StepTicket) -> None:
        lane, steps = ticket.lane, ticket.steps
        ticket.framed = True
        self.handle = ticket.handle
        self.start = ticket.start
        self.end = ticket.start + steps
        self._begin(lane, 1, steps, ticket.inputs, ticket, [ticket.cursor] if lane.cursors else None)

    def __getattr__(self, name: str) -> Ints:
        """Makes the columns; Python asks only for what is not there yet."""
        if name not in ("handles", "at", "starts", "ends"):
            raise AttributeError(name)
        self.handles = self.at = np.array([self.handle])
        self.starts, self.ends = np.array([self.start]), np.array([self.end])
        column: Ints = getattr(self, name)
        return column

    def __len__(self) -> int:
        return 1

    def keep(self, table: Table) -> None:
        """One more block names the session."""
        self.kept = True
        handle = self.handle
        table.refs[handle] = table.refs.item(handle) + 1

    def drop(self, table: Table) -> None:
        """One less; earlier chunks cannot be replayed any more."""
        if self.dead is not None:
            super().drop(table)
            return
        handle = self.handle
        table.refs[handle] = table.refs.item(handle) - 1
        if table.floor.item(handle) < self.end:
            table.floor[handle] = self.end

    def depart(self, table: Table) -> None:
        """It leaves."""
        handle = self.handle
        others = table.in_flight.item(handle)
        table.sent[handle] = self.end
        table.in_flight[handle] = others + 1
        self.fresh = int(self.lengths == 1 and not others)

    def acknowledge(self, table: Table) -> bytes:
        """The acknowledged position, empty where the server knows it."""
        if table.untaken:
            return super().acknowledge(table)
        handle = self.handle
        answered: int = table.answered.item(handle)
        if answered == table.acked.item(handle):
            return b""
        table.acked[handle], table.unacked[handle] = answered, 0
        return answered.to_bytes(8, "little")

    def arrive(self, table: Table, durable: bytes) -> int:
        """The reply is there; how many the server keeps."""
        if len(durable) != 8 or self.sink is DISCARD:
            return super().arrive(table, durable)
        self.left = 0
        handle, known = self.handle, int.from_bytes(durable, "little")
        table.in_flight[handle] = table.in_flight.item(handle) - 1
        table.attempts[handle] = 0
        if table.durable.item(handle) < known:
            table.durable[handle] = known
        if table.answered.item(handle) < self.end:
            table.answered[handle] = self.end
        unacked: int = table.unacked.item(handle) + 1
        table.unacked[handle] = unacked
        return unacked

    def is_durable(self, table: Table) -> bool:
        """Whether the server cannot lose it."""
        durable: int = table.durable.item(self.handle)
        return durable >= self.end or self.dead is not None

    def request(self, table: Table, drafts: dict[Lane, Draft]) -> StreamRequest:
        """Its frame; of a single step it is the lane's last one, filled in anew."""
        self.handle_bytes = self.handle.to_bytes(4, "little")
        self.position_bytes = self.start.to_bytes(8, "little")
        if self.lengths != 1 or self.cursors is not None:
            return self._request(table, 1)
        draft = drafts.get(self.lane)
        if draft is None:
            request = self._request(table, 1)
            drafts[self.lane] = Draft(request, request.chunk, request.chunk.inputs[:])
            return request
        request, frame, tensors = draft
        request.frame = self.frame
        frame.handles, frame.positions = self.handle_bytes, self.position_bytes
        frame.acked_positions = self.acknowledge(table)
        for tensor, data in zip(tensors, self.inputs, strict=True):
            tensor.data = data
        return request


def answer(table: Table, at: slice | Ints, ends: Ints, durable: Ints, *, replay: bool) -> int:
    """Notes replies to one chunk of each of some sessions; how many the server keeps, at most, of one of them."""
    table.in_flight[at] -= 1
    if not replay:
        table.attempts[at] = 0
    else:
        # The server that lost it took no acknowledgement of what it had not applied: it keeps the reply until the next.
        table.acked[at] = np.minimum(table.acked[at], ends - 1)
    table.durable[at] = np.maximum(table.durable[at], durable)
    table.answered[at] = np.maximum(table.answered[at], ends)
    table.unacked[at] += 1
    return int(table.unacked[at].max())


def ranges(firsts: Ints, counts: Ints) -> Ints:
    """The numbers from each of `firsts` on, so many of each, one range after the other."""
    return np.repeat(firsts - np.cumsum(counts) + counts, counts) + np.arange(int(counts.sum()))


def span(handles: Ints) -> slice | Ints:
    """Where sessions are in a column: a range is read and written in a fraction of the time that a list takes."""
    if len(handles) and (handles[1:] - handles[:-1] == 1).all():
        return slice(handles.item(0), handles.item(-1) + 1)
    return handles
