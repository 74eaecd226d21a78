"""How blocks are formed: single chunks gathered, a pool's chunks cut, neighbours merged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from statestream.core.blocks import Block, Single
from statestream.core.tickets import DISCARD, PoolRows, PoolTicket, Singles, Sink, StepTicket
from statestream.wire import Ints


def gather(tickets: list[StepTicket], handles: Ints, starts: Ints) -> Block:
    """One block of single chunks of one lane, of different sessions."""
    first = tickets[0]
    steps = [ticket.steps for ticket in tickets]
    lengths = first.steps if steps.count(first.steps) == len(steps) else np.array(steps, np.int64)
    inputs = tuple([b"".join(column) for column in zip(*[ticket.inputs for ticket in tickets], strict=True)])
    return Block(first.lane, handles, starts, lengths, inputs, Singles(tickets))


def alone(ticket: StepTicket) -> Block:
    """A block of one single chunk."""
    return Single(ticket.lane, ticket.handle, ticket.start, ticket.steps, ticket.inputs, Singles([ticket]))


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
    low, high = int(rows[0]), int(rows[-1]) + 1
    pieces = [array[low:high, offset : offset + steps] for array in ticket.inputs]
    if isinstance(ticket.lengths, int):
        lengths: Ints | int = steps
        inputs = tuple(piece.tobytes() for piece in pieces)
    else:
        remaining = np.clip(ticket.lengths[rows] - offset, 0, steps)
        taken = np.arange(steps) < remaining[:, np.newaxis]
        present = remaining > 0
        if not present.any():
            return None
        inputs = tuple(piece[taken].tobytes() for piece in pieces)
        rows, lengths = rows[present], remaining[present]
    sink = PoolRows(ticket, rows, offset)
    return Block(ticket.lane, ticket.handles[rows], starts[rows] + offset, lengths, inputs, sink)


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
        tuple(b"".join(column) for column in zip(*(block.inputs for block in blocks), strict=True)),
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
