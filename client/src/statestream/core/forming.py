"""How blocks are formed: single chunks gathered, a pool's chunks cut, replays merged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from statestream.core.blocks import Block, Single
from statestream.core.sinks import DISCARD, One, PoolRows, Singles
from statestream.core.tickets import PoolTicket, StepTicket
from statestream.wire import Array, Ints


def gather(tickets: list[StepTicket], handles: Ints, starts: Ints) -> Block:
    """One block of single chunks of one lane, of different sessions."""
    first = tickets[0]
    steps = [ticket.steps for ticket in tickets]
    lengths = first.steps if steps.count(first.steps) == len(steps) else np.array(steps, np.int64)
    inputs = tuple([b"".join(column) for column in zip(*[ticket.inputs for ticket in tickets], strict=True)])
    return Block(first.lane, handles, starts, lengths, inputs, Singles(tickets))


def alone(ticket: StepTicket) -> Block:
    """A block of one single chunk."""
    return Single(ticket.lane, ticket.handle, ticket.start, ticket.steps, ticket.inputs, One(ticket))


def cut(ticket: PoolTicket, starts: Ints, max_steps: int, max_bytes: int) -> list[Block]:
    """The blocks of a pool's chunks: at most `max_steps` steps a chunk and about `max_bytes` a block."""
    blocks = []
    lane, count = ticket.lane, len(ticket.handles)
    for offset in range(0, ticket.steps, max_steps):
        steps = min(max_steps, ticket.steps - offset)
        rows_each = max(1, max_bytes // max(1, steps * lane.step_bytes))
        for low in range(0, count, rows_each):
            rows = slice(low, min(low + rows_each, count))
            if isinstance(ticket.lengths, int):
                blocks.append(_even(ticket, starts, rows, offset, steps))
            elif (ticket.lengths[rows] > offset).any():
                blocks.append(_ragged(ticket, starts, rows, offset, steps, ticket.lengths[rows]))
    return blocks


def _even(ticket: PoolTicket, starts: Ints, rows: slice, offset: int, steps: int) -> Block:
    """The block of rows that all have these steps."""
    inputs = ticket.inputs
    if rows.stop - rows.start < len(ticket.handles) or steps < ticket.steps:
        inputs = tuple([piece.tobytes() for piece in _pieces(ticket, rows, offset, steps)])
    sink = PoolRows(ticket, rows, offset)
    return Block(ticket.lane, ticket.handles[rows], starts[rows] + offset, steps, inputs, sink)


def _ragged(ticket: PoolTicket, starts: Ints, rows: slice, offset: int, steps: int, lengths: Ints) -> Block:
    """The block of those rows that are longer than `offset`."""
    remaining = np.clip(lengths - offset, 0, steps)
    taken = np.arange(steps) < remaining[:, np.newaxis]
    present = np.flatnonzero(remaining)
    inputs = tuple([piece[taken].tobytes() for piece in _pieces(ticket, rows, offset, steps)])
    places = rows.start + present
    sink = PoolRows(ticket, places, offset)
    return Block(ticket.lane, ticket.handles[places], starts[places] + offset, remaining[present], inputs, sink)


def _pieces(ticket: PoolTicket, rows: slice, offset: int, steps: int) -> list[Array]:
    """The bytes of some rows and steps, [rows, steps, bytes of a step]."""
    shape = (len(ticket.handles), ticket.steps, -1)
    return [np.frombuffer(data, np.uint8).reshape(shape)[rows, offset : offset + steps] for data in ticket.inputs]


def without(blocks: Sequence[Block], handles: Ints) -> list[Block]:
    """The blocks, none of them sent yet, without the chunks of some sessions."""
    kept = [(block, ~np.isin(block.handles, handles)) for block in blocks]
    return [block if ok.all() else block.take(np.flatnonzero(ok)) for block, ok in kept if ok.any()]


def merge(blocks: Sequence[Block]) -> Block:
    """One block of several replays that belong to one lane and name different sessions."""
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
    return Block(
        first.lane,
        np.concatenate([block.handles for block in blocks]),
        np.concatenate([block.starts for block in blocks]),
        lengths,
        tuple(b"".join(column) for column in zip(*(block.inputs for block in blocks), strict=True)),
        DISCARD,
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
