"""Predictions: calls of models without memory. They have no order and no session; frame and place match their answers.

What has no answer when a stream is gone is sent again on the next one: nothing but the answer comes of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from statestream.contract import errors
from statestream.contract.errors import StatestreamError, from_status
from statestream.contract.tensors import from_tensors, read_handles
from statestream.core.departures import BUSY_FRAMES, GATHER, SUSPECT
from statestream.core.flights import Flight, Kind, Line, PredictTicket
from statestream.core.forming import FRAME_BYTES
from statestream.core.results import MAX_FAULTS
from statestream.core.room import MOST, Window
from statestream.core.tickets import OVERHEAD, Outputs, again, value_of
from statestream.v1.inference_pb2 import PredictedFrame, StreamRequest

HALVED: Final = 16
"""From so many calls on, with nothing in flight, they leave as two frames, so that both sides work at once."""

RETRY_FIRST: Final = 0.05
RETRY_MOST: Final = 1.0


class Predictions:
    """The calls of one client that wait, and those in flight."""

    def __init__(self, retry_seconds: float) -> None:
        self.in_flight: dict[int, Flight] = {}
        self.answers = 0
        """Grows with every call that is answered."""
        self.callers = 0
        """How many calls somebody waits for."""
        self.waiting = 0
        """How many calls were not sent yet, or not whole, or are to be sent again: then `next` may have something."""
        self._lines: dict[Kind, Line] = {}
        self._windows: dict[tuple[str, int, str], Window] = {}
        self._held: dict[PredictTicket, float] = {}
        self._sending: Flight | None = None
        self._max_calls, self._window, self._frame_bytes = 0, MOST, FRAME_BYTES
        self._retry_seconds = retry_seconds
        self._suspicious = self._others = False

    def submit(self, ticket: PredictTicket) -> None:
        """Asks for a call."""
        self.callers += 1
        self._wait(ticket)

    def cancel(self, ticket: PredictTicket) -> None:
        """Nobody waits for a call any more. One that was not sent is not sent, of one in parts what is left is not."""
        if not ticket.done:
            self.callers -= 1
            ticket.done = True
            self._leave(ticket)

    def expire(self, ticket: PredictTicket, error: StatestreamError) -> None:
        """Tells a caller that the server does not answer."""
        self._finish(ticket, error=error)
        self._leave(ticket)

    def _leave(self, ticket: PredictTicket) -> None:
        if self._held.pop(ticket, None) is not None:
            self.waiting -= 1
        line = self._lines.get(ticket.kind)
        if line is not None and ticket in line.waiting:
            del line.waiting[ticket]
            self.waiting -= 1
            self._tidy(ticket.kind, line)
        elif self._sending is not None and self._sending.tickets[0] is ticket:
            # The server forgets it with the next one that comes in parts, and answers nothing.
            self._over(self._sending)

    def connected(self, max_calls: int, window: int, message: int) -> None:
        """A stream is there.

        Args:
            max_calls: The most calls in a frame; 0 where the server takes no such frames.
            window: The most bytes that may be under way of a model; 0 where it says nothing.
            message: The most bytes of a frame.
        """
        self._max_calls, self._window = max_calls, min(window or MOST, MOST)
        self._frame_bytes = min(FRAME_BYTES, message)
        if not max_calls and self.callers:
            told = "the server that answers now takes no predictions on a stream; call again, or upgrade it"
            self.give_up(errors.Unsupported(told))

    def lost(self, fault: StatestreamError | None = None) -> None:
        """The stream is gone: what was in flight waits again, before all others."""
        self._sent()
        flights, self.in_flight = [*self.in_flight.values()], {}
        self._windows.clear()
        for line in self._lines.values():
            line.frames = line.calls = 0
        for flight in reversed(flights):
            for ticket in reversed(flight.tickets):
                if ticket is None or ticket.done:
                    continue
                ticket.faults += fault is not None
                if fault is not None and ticket.faults > MAX_FAULTS:
                    self._finish(
                        ticket,
                        error=type(fault)(
                            f"{ticket.faults} streams ended while a call of model {ticket.kind.model!r} was under way, "
                            f"the last with: {fault.message}",
                            metadata=fault.metadata,
                        ),
                    )
                else:
                    self._suspicious |= ticket.faults >= SUSPECT
                    self._wait(ticket, first=True)
        for kind, line in [*self._lines.items()]:
            self._tidy(kind, line)

    def hold_back(self) -> None:
        """Nothing more leaves on this stream: what left in part goes whole on the next one."""
        flight = self._sending
        if flight is not None:
            ticket = flight.tickets[0]
            self._over(flight)
            if ticket is not None and not ticket.done:
                self._wait(ticket, first=True)

    def next(self, now: float, number: Callable[[], int]) -> StreamRequest | None:
        """A frame that may leave now, or the next part of one; None where there is none.

        One at a time, so that what else the stream carries goes between them.
        """
        if self._held:
            for ticket in [ticket for ticket, due in self._held.items() if due <= now]:
                del self._held[ticket]
                self.waiting -= 1
                self._wait(ticket)
        sending, self._others = self._sending, not self._others
        request = self._next(number) if sending is None or self._others else None
        if request is None and sending is not None:
            request = sending.next_part()
            if sending.part < 0:
                self._sent()
        return request

    def due(self) -> float | None:
        """When the next of the calls may leave that were refused for a while."""
        return min(self._held.values(), default=None)

    def predicted(self, frame: int, answer: PredictedFrame, now: float, outputs: Outputs | None = None) -> None:
        """Takes the answer to some calls of a frame; what nobody waits for is ignored."""
        flight = self.in_flight.get(frame)
        if flight is None:
            return
        if outputs is None:
            outputs = from_tensors(answer.outputs)
        if outputs:
            self._deliver(flight, read_handles(answer.calls).tolist() or range(len(flight.tickets)), outputs)
        for refusal in answer.errors:
            self._refuse(flight, refusal.handle, from_status(refusal.status), now)
        if not flight.left:
            self._over(flight)

    def refuse_frame(self, frame: int, error: StatestreamError, now: float) -> bool:
        """Refuses every call of a frame; False where the frame carried none."""
        flight = self.in_flight.get(frame)
        if flight is None:
            return False
        for place in range(len(flight.tickets)):
            self._refuse(flight, place, again(error), now)
        self._over(flight)
        return True

    def unanswered(self) -> list[PredictTicket]:
        """The calls that callers wait for, sent or waiting for others."""
        found = [ticket for flight in self.in_flight.values() for ticket in flight.tickets if ticket is not None]
        found += [ticket for line in self._lines.values() for ticket in line.waiting]
        return [ticket for ticket in found if not ticket.done]

    def give_up(self, error: StatestreamError) -> None:
        """Fails every call."""
        for ticket in [*self.unanswered(), *self._held]:
            self._finish(ticket, error=again(error))
        self.in_flight, self._lines, self._held, self._sending, self.waiting = {}, {}, {}, None, 0
        self._windows.clear()

    def _wait(self, ticket: PredictTicket, *, first: bool = False) -> None:
        line = self._lines.get(ticket.kind)
        if line is None:
            line = self._lines[ticket.kind] = Line()
        line.waiting[ticket] = None
        self.waiting += 1
        if first:
            line.waiting.move_to_end(ticket, last=False)

    def _next(self, number: Callable[[], int]) -> StreamRequest | None:
        for kind, line in [*self._lines.items()]:
            flight = self._form(kind, line) if line.waiting else None
            if flight is not None:
                self._lines[kind] = self._lines.pop(kind)  # The others have their turn first.
                flight.frame = number()
                self.in_flight[flight.frame] = flight
                line.frames += 1
                line.calls += flight.left
                return flight.request()
        return None

    def _form(self, kind: Kind, line: Line) -> Flight | None:
        """The calls of the next frame, taken out of their line; None where they have to wait."""
        waiting = line.waiting
        if line.frames >= BUSY_FRAMES and len(waiting) * GATHER < line.calls:
            return None  # Answers are coming, and what they wake joins the frame.
        most = min(self._max_calls, len(waiting)) if kind.shares else 1
        if len(waiting) >= HALVED and not line.frames:
            most = min(most, -(-len(waiting) // 2))
        if self._suspicious:
            # One that may be what the server does not survive goes by itself, lest another is blamed for it.
            if self.in_flight:
                return None
            self._suspicious = any(one.faults >= SUSPECT for each in self._lines.values() for one in each.waiting)
            most = 1
        window = self._windows.get((kind.model, kind.version, kind.alias))
        if window is None:
            window = self._windows[kind.model, kind.version, kind.alias] = Window()
            window.most = self._window
        if self._sending is not None and next(iter(waiting)).rows * kind.row_bytes > self._frame_bytes:
            return None
        each, weight, nbytes = kind.row_bytes + kind.answer_bytes, OVERHEAD, 0
        tickets, rows = list[PredictTicket | None](), list[int]()
        for ticket in waiting:
            weight += ticket.rows * each
            nbytes += ticket.rows * kind.row_bytes
            # One call alone may have more than a frame, or than the window where nothing else is under way.
            beyond = nbytes > self._frame_bytes or weight > window.most
            if len(tickets) == most or (tickets and beyond) or not window.has_room(weight):
                weight -= ticket.rows * each
                break
            tickets.append(ticket)
            rows.append(ticket.rows)
        if not tickets:
            return None
        for _ in tickets:
            waiting.popitem(last=False)
        self.waiting -= len(tickets)
        window.held += weight
        flight = Flight(kind, tickets, rows, len(tickets), weight)
        if kind.row_bytes * rows[0] > self._frame_bytes:
            flight.part, self._sending = 0, flight
            self.waiting += 1
        return flight

    def _deliver(self, flight: Flight, places: Iterable[int], outputs: Outputs) -> None:
        tickets, start, whole = flight.tickets, 0, len(flight.tickets) == 1
        for place in places:
            if place >= len(tickets):
                break
            ticket, rows = tickets[place], flight.rows[place]
            if ticket is not None:
                tickets[place] = None
                flight.left -= 1
                found = outputs if whole else {name: array[start : start + rows] for name, array in outputs.items()}
                self.answers += 1
                self._finish(ticket, value_of(found))
            start += rows

    def _refuse(self, flight: Flight, place: int, error: StatestreamError, now: float) -> None:
        """Tells a caller, or has the call made again where that may help, as calls beside the stream are."""
        ticket = flight.tickets[place] if place < len(flight.tickets) else None
        if ticket is None:
            return
        flight.tickets[place] = None
        flight.left -= 1
        self.answers += 1
        if ticket.done:
            return
        ticket.until = ticket.until or now + self._retry_seconds
        delay = error.retry_after
        waits = isinstance(error, errors.Unavailable) or (isinstance(error, errors.Overloaded) and delay is not None)
        if delay is None:
            delay = min(RETRY_MOST, RETRY_FIRST * 2.0 ** min(ticket.tries, 16))
        ticket.tries += 1
        if not waits or now + delay > ticket.until:
            self._finish(ticket, error=error)
        else:
            self._held[ticket] = now + delay
            self.waiting += 1

    def _finish(self, ticket: PredictTicket, value: object = None, error: StatestreamError | None = None) -> None:
        if not ticket.done:
            self.callers -= 1
            ticket.finish(value, error)

    def _over(self, flight: Flight) -> None:
        """A frame is answered: its room in the window is free."""
        del self.in_flight[flight.frame]
        kind, line = flight.kind, self._lines[flight.kind]
        self._windows[kind.model, kind.version, kind.alias].held -= flight.weight
        line.frames -= 1
        line.calls -= len(flight.tickets)
        self._tidy(kind, line)
        if self._sending is flight:
            self._sent()

    def _sent(self) -> None:
        """Nothing more is sent in parts."""
        if self._sending is not None:
            self._sending = None
            self.waiting -= 1

    def _tidy(self, kind: Kind, line: Line) -> None:
        """Keeps nothing of a kind of which nothing is under way."""
        if not (line.waiting or line.frames):
            del self._lines[kind]
