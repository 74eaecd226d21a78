"""Blocks: one chunk of each of some sessions, as they leave in one frame and as they are kept for replay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from statestream.core.tickets import DISCARD, OVERHEAD, Lane, PoolRows, PoolTicket, Singles, Sink, StepTicket
from statestream.v1.inference_pb2 import ChunkFrame
from statestream.wire import Array, Ints, Mask, handles_column, positions_column, to_tensor


class Block:
    """Chunks of one lane, at most one for each session.

    Attributes:
        handles: [N] the sessions.
        starts: [N] where each chunk starts.
        ends: [N] where each chunk ends.
        lengths: [N] the steps of each chunk, or one number where all have the same.
        inputs: One packed array for every input, [S, ...one step].
        sink: Where outputs go.
        waiting: [N] the chunks whose replies are still to come, or None for all of them.
        dead: [N] the chunks that were given up and must not be replayed, or None for none.
        frame: The frame that carries it, 0 while it is not sent on this stream.
        fresh: Of single steps, how many sessions had nothing else in flight when it left.
        durable_at: When it was found to be durable.
        solo: The handle where there is one chunk, else -1. Arrays of one item cost what arrays of hundreds do,
            and a caller with one session waits for all of it: what happens at every step has a way around them.
    """

    __slots__ = (
        "dead",
        "durable_at",
        "ends",
        "frame",
        "fresh",
        "handle_bytes",
        "handles",
        "inputs",
        "lane",
        "lengths",
        "nbytes",
        "position_bytes",
        "sink",
        "solo",
        "starts",
        "waiting",
    )

    def __init__(
        self, lane: Lane, handles: Ints, starts: Ints, lengths: Ints | int, inputs: tuple[Array, ...], sink: Sink
    ) -> None:
        self.lane = lane
        self.handles = handles
        self.solo: int = handles.item(0) if len(handles) == 1 else -1
        self.starts = starts
        self.lengths = lengths
        self.ends: Ints = starts + lengths
        self.inputs = inputs
        self.sink = sink
        self.waiting: Mask | None = None
        self.dead: Mask | None = None
        self.frame = 0
        self.fresh = 0
        self.durable_at = 0.0
        self.handle_bytes = b""
        self.position_bytes = b""
        self.nbytes = OVERHEAD + sum(array.nbytes for array in inputs)

    def __len__(self) -> int:
        return len(self.handles)

    @property
    def answered(self) -> bool:
        """Whether no reply is to come any more."""
        waiting = self.waiting
        if waiting is None:
            return False
        return not (waiting.item(0) if self.solo >= 0 else waiting.any())

    def still_waiting(self) -> Mask:
        """The mask of waiting chunks, made if need be."""
        if self.waiting is None:
            self.waiting = np.ones(len(self), np.bool_)
        return self.waiting

    def kill(self, row: int) -> None:
        """Gives one chunk up: its reply, if one comes, is discarded."""
        if self.dead is None:
            self.dead = np.zeros(len(self), np.bool_)
        self.dead[row] = True

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

    def take(self, rows: Ints, sink: Sink | None = None) -> Block:
        """A new, unsent block of some of the chunks, all of them waiting."""
        if isinstance(self.lengths, int):
            lengths: Ints | int = self.lengths
            inputs = tuple(
                array.reshape(len(self), lengths, *array.shape[1:])[rows].reshape(-1, *array.shape[1:])
                for array in self.inputs
            )
        else:
            lengths = self.lengths[rows]
            offsets = (np.cumsum(self.lengths) - self.lengths)[rows]
            steps = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            index = np.repeat(offsets, lengths) + steps
            inputs = tuple(array[index] for array in self.inputs)
        return Block(self.lane, self.handles[rows], self.starts[rows], lengths, inputs, sink or self.sink.take(rows))

    def encode(self, acked: bytes) -> ChunkFrame:
        """The frame; `acked` is the column of acknowledged positions, empty where nothing changed."""
        if self.solo >= 0:
            self.handle_bytes = self.solo.to_bytes(4, "little")
        else:
            self.handle_bytes = handles_column(self.handles)
        self.position_bytes = positions_column(self.starts)
        frame = ChunkFrame(
            handles=self.handle_bytes,
            positions=self.position_bytes,
            acked_positions=acked,
            inputs=[to_tensor(name, array) for name, array in zip(self.lane.names, self.inputs, strict=True)],
        )
        if isinstance(self.lengths, int):
            frame.steps = self.lengths
        else:
            frame.lengths = handles_column(self.lengths)
        return frame


def gather(tickets: list[StepTicket]) -> Block:
    """One block of single chunks of one lane, of different sessions."""
    lane = tickets[0].lane
    first = tickets[0]
    if len(tickets) == 1:
        lengths: Ints | int = first.steps
        inputs = tuple([_shaped(array, shape) for array, shape in zip(first.arrays, lane.shapes, strict=True)])
        return Block(lane, np.array([first.handle]), np.array([first.start]), lengths, inputs, Singles(tickets))
    steps = [ticket.steps for ticket in tickets]
    lengths = first.steps if steps.count(first.steps) == len(steps) else np.array(steps, np.int64)
    arrays = tuple(np.concatenate([ticket.arrays[i] for ticket in tickets]) for i in range(len(lane.names)))
    inputs = tuple([_shaped(array, shape) for array, shape in zip(arrays, lane.shapes, strict=True)])
    handles = np.array([ticket.handle for ticket in tickets], np.int64)
    starts = np.array([ticket.start for ticket in tickets], np.int64)
    return Block(lane, handles, starts, lengths, inputs, Singles(tickets))


def _shaped(array: Array, shape: tuple[int, ...]) -> Array:
    return array.reshape(-1, *shape) if shape else array


def cut(ticket: PoolTicket, starts: Ints, max_steps: int, max_bytes: int) -> list[Block]:
    """The blocks of a pool's chunks: at most `max_steps` steps a chunk and about `max_bytes` a block."""
    blocks = []
    lane, count = ticket.lane, len(ticket.handles)
    for offset in range(0, ticket.steps, max_steps):
        steps = min(max_steps, ticket.steps - offset)
        rows_each = max(1, max_bytes // max(1, steps * lane.step_bytes))
        for low in range(0, count, rows_each):
            rows = np.arange(low, min(low + rows_each, count))
            block = _part(ticket, starts, rows, offset, steps)
            if block is not None:
                blocks.append(block)
    return blocks


def _part(ticket: PoolTicket, starts: Ints, rows: Ints, offset: int, steps: int) -> Block | None:
    lane, low, high = ticket.lane, int(rows[0]), int(rows[-1]) + 1
    pieces = [array[low:high, offset : offset + steps] for array in ticket.inputs]
    if isinstance(ticket.lengths, int):
        lengths: Ints | int = steps
        inputs = tuple(piece.reshape(-1, *shape) for piece, shape in zip(pieces, lane.shapes, strict=True))
    else:
        remaining = np.clip(ticket.lengths[rows] - offset, 0, steps)
        taken = np.arange(steps) < remaining[:, np.newaxis]
        present = remaining > 0
        if not present.any():
            return None
        inputs = tuple(piece[taken] for piece in pieces)
        rows, lengths = rows[present], remaining[present]
    sink = PoolRows(ticket, rows, offset)
    return Block(lane, ticket.handles[rows], starts[rows] + offset, lengths, inputs, sink)


def merge(blocks: Sequence[Block]) -> Block:
    """One block of several that belong to one lane, name different sessions, and have the same kind of sink."""
    if len(blocks) == 1:
        return blocks[0]
    first = blocks[0]
    sizes: list[Ints | int] = [block.lengths for block in blocks]
    lengths: Ints | int
    if isinstance(first.lengths, int) and all(isinstance(size, int) and size == first.lengths for size in sizes):
        lengths = first.lengths
    else:
        lengths = np.concatenate(
            [
                np.full(len(block), size) if isinstance(size, int) else size
                for block, size in zip(blocks, sizes, strict=True)
            ]
        )
    sink: Sink = DISCARD
    if isinstance(first.sink, Singles):
        sink = Singles([ticket for block in blocks if isinstance(block.sink, Singles) for ticket in block.sink.tickets])
    return Block(
        first.lane,
        np.concatenate([block.handles for block in blocks]),
        np.concatenate([block.starts for block in blocks]),
        lengths,
        tuple(np.concatenate([block.inputs[i] for block in blocks]) for i in range(len(first.inputs))),
        sink,
    )


def merge_neighbours(blocks: list[Block], scratch: Ints, max_bytes: int) -> list[Block]:
    """Neighbouring blocks joined as long as no session comes twice and the frame stays small."""
    merged: list[Block] = []
    run: list[Block] = []
    nbytes = 0
    scratch[:] = 0
    for block in blocks:
        fits = run and run[0].lane is block.lane and nbytes + block.nbytes <= max_bytes
        if run and not (fits and not scratch[block.handles].any()):
            merged.append(merge(run))
            for other in run:
                scratch[other.handles] = 0
            run, nbytes = [], 0
        run.append(block)
        nbytes += block.nbytes
        scratch[block.handles] = 1
    if run:
        merged.append(merge(run))
    return merged
