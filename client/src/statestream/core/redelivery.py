"""Replies that an earlier caller never acknowledged: asked for on opening, they follow the opened frame, counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from statestream.contract.errors import AlreadyApplied, StatestreamError, from_status
from statestream.contract.tensors import Ints, from_tensors, read_handles, read_positions
from statestream.core.opening import Opening, indices
from statestream.core.table import State, Table
from statestream.core.tickets import OpenTicket, Outputs, again
from statestream.v1.inference_pb2 import OPEN_MODE_CREATE, OPEN_MODE_EITHER, ResultFrame

MAX_FAULTS = 4
"""How many streams in a row may end by a fault of the server while such replies are on their way."""


@dataclass(eq=False, slots=True)
class Expected:
    """Sessions that are bound, and whose replies are on their way in answer to one frame.

    Attributes:
        rows: Their rows in the ticket, by handle.
        left: How many replies of each are still to come, by handle.
        replies: Those that came, by handle.
    """

    opening: Opening
    ticket: OpenTicket
    rows: dict[int, int] = field(default_factory=dict)
    left: dict[int, int] = field(default_factory=dict)
    replies: dict[int, list[tuple[int, Outputs]]] = field(default_factory=dict)


class Redelivery:
    """Collects such replies; a session is open for its caller once all of them are there, or why they are not."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.frames: dict[int, Expected] = {}
        """Who waits for replies, by the frame that they answer."""
        self.on_open: Callable[[Ints], None] = lambda _: None
        """Hears of sessions that are open for their callers."""

    def expect(self, frame: int, opening: Opening, handles: Ints, rows: Ints, kept: Ints) -> Ints:
        """Waits for the replies of sessions, so many of each; returns the rows of those that have none."""
        waits = kept > 0
        if waits.any():
            assert opening.ticket is not None
            expected = self.frames.setdefault(frame, Expected(opening, opening.ticket))
            self._table.state[handles[waits]] = State.OPENING
            expected.rows.update(zip(handles[waits].tolist(), rows[waits].tolist(), strict=True))
            expected.left.update(zip(handles[waits].tolist(), kept[waits].tolist(), strict=True))
        return rows[~waits]

    def result(self, frame: int, result: ResultFrame, outputs: Outputs | None = None) -> bool:
        """Takes replies, or why they do not come; whether a session is open with them."""
        expected = self.frames[frame]
        handles = read_handles(result.handles)
        positions = read_positions(result.positions, len(handles))
        lengths = read_handles(result.lengths) if result.lengths else np.full(len(handles), result.steps)
        outputs, low, done = from_tensors(result.outputs) if outputs is None else outputs, 0, False
        for handle, position, length in zip(handles.tolist(), positions.tolist(), lengths.tolist(), strict=True):
            reply = {name: array[low : low + length] for name, array in outputs.items()}
            low += length
            if length:  # A mark has no outputs.
                expected.replies.setdefault(handle, []).append((position, reply))
            done |= self._count(expected, handle)
        for row_error in result.errors:
            error = from_status(row_error.status)
            if isinstance(error, AlreadyApplied):
                done |= self._count(expected, row_error.handle)
            elif row_error.handle in expected.left:
                self._refuse(expected, row_error.handle, error)
                done = True
        self._forget(frame, expected)
        return done

    def left(self, handle: int, error: StatestreamError, *, again: bool) -> Opening | bool | None:
        """A session left the stream before its replies were there: False where it is none of these.

        Its caller hears `error`; where it is to be opened `again`, what has to be asked for is returned.
        """
        for frame, expected in self.frames.items():
            if handle not in expected.left:
                continue
            opening = None
            if again:
                opening = expected.opening.part(indices(expected.opening.handles, np.array([handle])))
                del expected.left[handle], expected.rows[handle]
                expected.replies.pop(handle, None)
            else:
                self._refuse(expected, handle, error)
            self._forget(frame, expected)
            return opening
        return False

    def lost(self, fault: StatestreamError | None) -> list[Opening]:
        """The stream is gone: what has to be asked for again. Too many faults in a row are told instead."""
        openings = []
        for expected in self.frames.values():
            opening = expected.opening.part(indices(expected.opening.handles, np.array([*expected.left])))
            opening.faults += fault is not None
            if fault is not None and opening.faults > MAX_FAULTS:
                for handle in [*expected.left]:
                    self._refuse(expected, handle, fault)
                continue
            if opening.mode == OPEN_MODE_CREATE:
                opening.mode = OPEN_MODE_EITHER
            openings.append(opening)
        self.frames.clear()
        return openings

    def give_up(self, error: StatestreamError) -> None:
        """Fails all who wait for replies."""
        for expected in self.frames.values():
            for handle in [*expected.left]:
                self._refuse(expected, handle, error)
        self.frames.clear()

    def _count(self, expected: Expected, handle: int) -> bool:
        """One more of a session came; whether that was the last."""
        left = expected.left.get(handle, 0)
        if left != 1:
            if left:
                expected.left[handle] = left - 1
            return False
        row, table = expected.rows.pop(handle), self._table
        del expected.left[handle]
        table.state[handle] = State.OPEN
        replies = sorted(expected.replies.pop(handle, ()), key=lambda reply: reply[0])
        if replies:
            table.untaken[handle] = replies[0][0]
            expected.ticket.replies[row] = replies
        expected.ticket.count(np.array([row]))
        self.on_open(np.array([handle]))
        return True

    def _refuse(self, expected: Expected, handle: int, error: StatestreamError) -> None:
        del expected.left[handle]
        expected.replies.pop(handle, None)
        row = expected.rows.pop(handle)
        expected.ticket.refuse(row, again(error))
        self._table.release(np.array([handle]))
        expected.ticket.count(np.array([row]))

    def _forget(self, frame: int, expected: Expected) -> None:
        if not expected.left:
            self.frames.pop(frame, None)
