"""Replies that an earlier caller never acknowledged: asked for on opening, they follow the opened frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from statestream.core.opening import Opening
from statestream.core.table import State, Table
from statestream.core.tickets import OpenTicket, Outputs, again
from statestream.errors import StatestreamError
from statestream.v1.inference_pb2 import OPEN_MODE_CREATE, OPEN_MODE_EITHER, CloseFrame, ResultFrame, StreamRequest
from statestream.wire import Ints, Mask, from_tensors, read_handles, read_positions


@dataclass(eq=False, slots=True)
class Expected:
    """Sessions that are bound, and whose replies are on their way."""

    opening: Opening
    ticket: OpenTicket
    rows: Ints
    replies: dict[int, list[tuple[int, Outputs]]] = field(default_factory=dict)


class Returned:
    """Collects such replies; the sessions are open for their callers once all are there.

    Nothing in the protocol says which reply is the last. An empty close frame does: its answer comes behind them.
    """

    def __init__(self, table: Table) -> None:
        self.unmarked: list[Expected] = []
        self._table = table
        self.frames: dict[int, list[Expected]] = {}
        """Who waits for replies that came in answer to a frame."""
        self._marks: dict[int, Expected] = {}
        self.on_open: Callable[[Ints], None] = lambda _: None
        """Hears of sessions that are open for their callers."""

    def __len__(self) -> int:
        return len(self.unmarked) + len(self._marks)

    def expect(self, frame: int, opening: Opening, rows: Ints, kept: Mask) -> Ints:
        """Waits for the replies of the rows in `kept`; returns the others. `frame` is that of the opening."""
        part = opening.part(np.flatnonzero(np.isin(opening.rows, rows[kept])))
        assert part.ticket is not None
        if len(part.handles):
            expected = Expected(part, part.ticket, part.rows)
            self._table.state[part.handles] = State.OPENING
            self.frames.setdefault(frame, []).append(expected)
            self.unmarked.append(expected)
        return rows[~kept]

    def mark(self, expected: Expected, frame: int) -> StreamRequest:
        """The frame whose answer comes behind the replies."""
        self._marks[frame] = expected
        return StreamRequest(frame=frame, close=CloseFrame())

    def result(self, frame: int, result: ResultFrame) -> None:
        """Takes replies that one of `frames` asked for."""
        handles = read_handles(result.handles)
        positions = read_positions(result.positions, len(handles))
        lengths = read_handles(result.lengths) if result.lengths else np.full(len(handles), result.steps)
        outputs, low = from_tensors(result.outputs), 0
        for handle, position, length in zip(handles.tolist(), positions.tolist(), lengths.tolist(), strict=True):
            reply = {name: array[low : low + length] for name, array in outputs.items()}
            low += length
            for expected in self.frames[frame]:
                if handle in expected.opening.handles:
                    expected.replies.setdefault(handle, []).append((position, reply))

    def marked(self, frame: int) -> bool:
        """The answer to a mark: all replies before it are there. False where the frame was none."""
        expected = self._marks.pop(frame, None)
        if expected is None:
            return False
        self._forget(expected)
        table = self._table
        for row, handle in zip(expected.rows.tolist(), expected.opening.handles.tolist(), strict=True):
            table.state[handle] = State.OPEN
            replies = sorted(expected.replies.get(handle, ()), key=lambda reply: reply[0])
            if replies:
                table.untaken[handle] = replies[0][0]
                expected.ticket.replies[row] = replies
        expected.ticket.count(expected.rows)
        self.on_open(expected.opening.handles)
        return True

    def expected(self) -> list[Expected]:
        """Who waits for replies."""
        return [*self.unmarked, *self._marks.values()]

    def lost(self) -> list[Opening]:
        """The stream is gone: what has to be asked for again."""
        openings = [expected.opening for expected in self.expected()]
        for opening in openings:
            if opening.mode == OPEN_MODE_CREATE:
                opening.mode = OPEN_MODE_EITHER
        self._clear()
        return openings

    def give_up(self, error: StatestreamError) -> None:
        """Fails all who wait for replies."""
        for expected in self.expected():
            for row in expected.rows.tolist():
                expected.ticket.refuse(row, again(error))
            self._table.release(expected.opening.handles)
            expected.ticket.count(expected.rows)
        self._clear()

    def _forget(self, expected: Expected) -> None:
        for frame, those in list(self.frames.items()):
            if expected in those:
                those.remove(expected)
                if not those:
                    del self.frames[frame]

    def _clear(self) -> None:
        self.unmarked.clear()
        self._marks.clear()
        self.frames.clear()
