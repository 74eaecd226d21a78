"""How blocks are formed: single chunks gathered, a pool's chunks cut, replays joined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from statestream.contract.tensors import MAX_CURSOR_BYTES, Array, Ints
from statestream.core.blocks import Block, ranges
from statestream.core.sinks import DISCARD, PoolRows, Singles
from statestream.core.tickets import ANSWER_BYTES, Lane, PoolTicket, StepTicket

FRAME_BYTES = 1 << 20
"""Frames are cut at about this size."""

ROW_BYTES = 4
"""A row counts as so many bytes at least: servers take 262,144 rows in a frame, and more are no gain."""

CURSOR_BYTES = MAX_CURSOR_BYTES
"""A row of a frame with cursors counts as so many more: servers take only so many bytes, and fields, in a message."""


def gather(tickets: list[StepTicket], handles: Ints, starts: Ints) -> Block:
    """One block of single chunks of one lane, of different sessions."""
    first = tickets[0]
    for ticket in tickets:
        ticket.framed = True
    steps = [ticket.steps for ticket in tickets]
    lengths = first.steps if steps.count(first.steps) == len(steps) else np.array(steps, np.int64)
    inputs = tuple([b"".join(column) for column in zip(*[ticket.inputs for ticket in tickets], strict=True)])
    cursors = [ticket.cursor for ticket in tickets] if first.lane.cursors else None
    return Block(first.lane, handles, starts, lengths, inputs, Singles(tickets), cursors)


def cut(
    ticket: PoolTicket, starts: Ints, max_steps: int, max_bytes: int, max_answer: int = ANSWER_BYTES
) -> list[Block]:
    """The blocks of a pool's chunks: at most `max_steps` steps a chunk, about so many bytes and answers a block."""
    blocks = []
    lane, count = ticket.lane, len(ticket.handles)
    max_steps = min(max_steps, lane.answer_steps(max_answer))
    beside = CURSOR_BYTES if any(ticket.cursors) else 0
    for offset in range(0, ticket.steps, max_steps):
        steps = min(max_steps, ticket.steps - offset)
        row_bytes = beside + max(ROW_BYTES, steps * lane.step_bytes)
        rows_each = max(1, min(max_bytes // row_bytes, lane.answer_steps(max_answer) // steps))
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
    cursors = None
    if ticket.lane.cursors and offset + steps == ticket.steps:
        cursors = _said(ticket.cursors[rows])
    return Block(ticket.lane, ticket.handles[rows], starts[rows] + offset, steps, inputs, sink, cursors)


def _ragged(ticket: PoolTicket, starts: Ints, rows: slice, offset: int, steps: int, lengths: Ints) -> Block:
    """The block of those rows that are longer than `offset`."""
    remaining = np.clip(lengths - offset, 0, steps)
    taken = np.arange(steps) < remaining[:, np.newaxis]
    present = np.flatnonzero(remaining)
    inputs = tuple([piece[taken].tobytes() for piece in _pieces(ticket, rows, offset, steps)])
    places = rows.start + present
    sink = PoolRows(ticket, places, offset)
    cursors = None
    if ticket.lane.cursors:
        last = lengths[present] <= offset + steps
        named = zip(places.tolist(), last.tolist(), strict=True)
        cursors = _said([ticket.cursors[place] if ends else b"" for place, ends in named])
    lane, handles = ticket.lane, ticket.handles[places]
    return Block(lane, handles, starts[places] + offset, remaining[present], inputs, sink, cursors)


def _said(cursors: Sequence[bytes]) -> list[bytes] | None:
    """The cursors of a block; None where none of its rows has one."""
    return [*cursors] if any(cursors) else None


def _pieces(ticket: PoolTicket, rows: slice, offset: int, steps: int) -> list[Array]:
    """The bytes of some rows and steps, [rows, steps, bytes of a step]."""
    shape = (len(ticket.handles), ticket.steps, -1)
    return [np.frombuffer(data, np.uint8).reshape(shape)[rows, offset : offset + steps] for data in ticket.inputs]


def without(blocks: Sequence[Block], handles: Ints) -> list[Block]:
    """The blocks, none of them sent yet, without the chunks of some sessions."""
    kept = [(block, ~np.isin(block.handles, handles)) for block in blocks]
    return [block if ok.all() else block.take(np.flatnonzero(ok)) for block, ok in kept if ok.any()]


def rejoined(blocks: Sequence[Block], max_steps: int, max_bytes: int) -> list[Block]:
    """Blocks that replay the chunks of others, successive chunks of a session joined to one.

    Nobody waits for their outputs any more, so how they are cut is free, and a few long chunks run in a fraction of
    the time that many short ones take. They end where chunks ended before: positions stay between chunks as sent. A
    joined one carries the last cursor of those in it; marks stay as they are.

    Args:
        blocks: Chunks, each once; of one session in any number and order.
        max_steps: The most steps of a joined chunk; a single one may have more.
        max_bytes: The most bytes of a frame of several chunks, and of a joined one.

    Returns:
        Blocks of one lane each, in the order in which they may leave, as far as a lane goes.
    """
    lanes: dict[Lane, list[Block]] = {}
    for block in blocks:
        lanes.setdefault(block.lane, []).append(block)
    return [
        block
        for lane, found in lanes.items()
        for block in (found if lane.mark else _rejoined(lane, found, max_steps, max_bytes))
    ]


def _rejoined(lane: Lane, blocks: list[Block], max_steps: int, max_bytes: int) -> Iterator[Block]:
    handles = np.concatenate([block.handles for block in blocks])
    starts = np.concatenate([block.starts for block in blocks])
    lengths = np.concatenate([block.ends - block.starts for block in blocks])
    order = np.lexsort((starts, handles))
    index = ranges((np.cumsum(lengths) - lengths)[order], lengths[order])
    columns = zip(*(block.inputs for block in blocks), strict=True)
    steps = [np.frombuffer(b"".join(column), np.uint8).reshape(len(index), -1)[index] for column in columns]
    handles, starts, lengths = handles[order], starts[order], lengths[order]
    said: list[bytes] = []
    if lane.cursors:
        came = [cursor for block in blocks for cursor in (block.cursors or [b""] * len(block))]
        said = [came[at] for at in order.tolist()]
    ends = np.cumsum(lengths)
    begins = ends - lengths
    # Where a session begins in the columns, and where the chunks from each on stop to follow one another.
    new = np.append(True, handles[1:] != handles[:-1])
    apart = new | np.append(True, starts[1:] != (starts + lengths)[:-1])
    stops = np.append(np.flatnonzero(apart)[1:], len(handles))[np.cumsum(apart) - 1]
    first = np.flatnonzero(new)
    over = np.append(first[1:], len(handles))
    most = min(max_steps, max_bytes // max(1, lane.step_bytes), lane.answer_steps(ANSWER_BYTES))
    while first.size:
        # Of each session as many chunks as fit, one at least.
        last = np.searchsorted(ends, begins[first] + most, side="right")
        last = np.maximum(first + 1, np.minimum(last, stops[first]))
        sizes = ends[last - 1] - begins[first]
        for rows in _framed(np.maximum(sizes * lane.step_bytes, ROW_BYTES) + (CURSOR_BYTES if said else 0), max_bytes):
            index = ranges(begins[first[rows]], sizes[rows])
            inputs = tuple([column[index].tobytes() for column in steps])
            cursors = None
            if said:
                spans = zip(first[rows].tolist(), last[rows].tolist(), strict=True)
                cursors = _said([next(filter(None, reversed(said[low:high])), b"") for low, high in spans])
            yield Block(lane, handles[first[rows]], starts[first[rows]], sizes[rows], inputs, DISCARD, cursors)
        left = last < over
        first, over = last[left], over[left]


def _framed(sizes: Ints, most: int) -> list[Ints]:
    """Chunks of so many bytes, divided into frames: what crosses a multiple of `most` is alone, so none has more."""
    ends = np.cumsum(sizes)
    begin, end = (ends - sizes) // most, (ends - 1) // most
    return np.split(np.arange(len(sizes)), np.flatnonzero((np.diff(begin) != 0) | (np.diff(end) != 0)) + 1)
