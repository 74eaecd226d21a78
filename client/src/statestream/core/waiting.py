"""Single steps that no frame has taken yet: of each session the next one, by lane, and those behind it."""

from __future__ import annotations

from collections import deque

from statestream.contract.tensors import Ints
from statestream.core.blocks import Block
from statestream.core.tickets import Lane, StepTicket


class Waiting:
    """Steps in the order of their sessions, so that who fills a frame looks at one of each session, not at all of them.

    Attributes:
        lanes: Steps that start where their session stands, or stood when they came; no lane without any.
    """

    def __init__(self) -> None:
        self.lanes: dict[Lane, list[StepTicket]] = {}
        self._behind: dict[int, deque[StepTicket]] = {}

    def add(self, ticket: StepTicket, *, behind: bool) -> None:
        """Takes a step; with `behind`, an earlier chunk of its session has not left yet."""
        if behind:
            self._behind.setdefault(ticket.handle, deque()).append(ticket)
            return
        tickets = self.lanes.get(ticket.lane)
        if tickets is None:
            self.lanes[ticket.lane] = [ticket]
        else:
            tickets.append(ticket)

    def departed(self, block: Block) -> None:
        """Chunks leave: the steps behind them may be next."""
        if not self._behind:
            return
        for handle, end in zip(block.handles.tolist(), block.ends.tolist(), strict=True):
            queue = self._behind.get(handle)
            if queue is not None and queue[0].start == end:
                self.add(queue.popleft(), behind=False)
                if not queue:
                    del self._behind[handle]

    def keep(self, lane: Lane, tickets: list[StepTicket]) -> None:
        """Those that stay in a lane."""
        if tickets:
            self.lanes[lane] = tickets
        else:
            self.lanes.pop(lane, None)

    def remove(self, ticket: StepTicket) -> None:
        """Forgets a step that has none behind it."""
        queue = self._behind.get(ticket.handle)
        if queue is not None:
            queue.pop()
            if not queue:
                del self._behind[ticket.handle]
            return
        tickets = self.lanes[ticket.lane]
        tickets.remove(ticket)
        self.keep(ticket.lane, tickets)

    def of(self, handles: Ints) -> list[StepTicket]:
        """The steps of some sessions."""
        wanted = set(handles.tolist())
        first = [ticket for tickets in self.lanes.values() for ticket in tickets if ticket.handle in wanted]
        return first + [ticket for handle in wanted for ticket in self._behind.get(handle, ())]

    def drop(self, handle: int) -> list[StepTicket]:
        """Forgets all steps of a session, and returns them in order."""
        dropped: list[StepTicket] = []
        for lane, tickets in [*self.lanes.items()]:
            gone = [ticket for ticket in tickets if ticket.handle == handle]
            if gone:
                dropped += gone
                self.keep(lane, [ticket for ticket in tickets if ticket.handle != handle])
        dropped += self._behind.pop(handle, ())
        return dropped
