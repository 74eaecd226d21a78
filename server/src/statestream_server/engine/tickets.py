"""Tickets: waits for what is queued for some rows at one moment. What is queued later does not hold them up.

Whoever waits is noted with the work whose end it waits for, so that the end of a work rouses those alone who asked for
it, and a work that nobody asked for costs nothing. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from statestream_server.arrays import Bools, Ints, every


class Ticket:
    """A wait for chunks of one or several works."""

    __slots__ = ("_done", "works")

    def __init__(self, done: Callable[[], None]) -> None:
        """Calls `done` once the last of its works has nothing left of what it waits for."""
        self.works = 0
        """Works of which something is left."""
        self._done = done

    def served(self) -> None:
        """Notes that one of its works has nothing left."""
        self.works -= 1
        if not self.works:
            self._done()


class Waits:
    """Who waits for chunks of one work."""

    __slots__ = ("_many", "_single")

    def __init__(self) -> None:
        """Nobody waits."""
        self._single: dict[int, list[Ticket]] = {}
        self._many: list[tuple[Ints, Ticket]] = []

    def add(self, places: Ints, ticket: Ticket) -> None:
        """Has a ticket wait until chunks, one at least, have ended."""
        ticket.works += 1
        if len(places) == 1:
            self._single.setdefault(int(places[0]), []).append(ticket)
        else:
            self._many.append((places, ticket))

    def on(self, places: Ints) -> Iterator[tuple[int, Ticket]]:
        """The tickets that wait for some chunks, once for each chunk."""
        for place in places.tolist():
            for ticket in self._single.get(place, ()):
                yield place, ticket
        for wanted, ticket in self._many:
            for place in np.intersect1d(wanted, places).tolist():
                yield place, ticket

    def ended(self, places: Ints, ended: Bools | None) -> None:
        """Serves the tickets whose chunks have all ended.

        Args:
            places: The chunks that ended just now.
            ended: [N] all that ended; None where all chunks of the work have.
        """
        if self._single:
            if ended is None:
                over = list(self._single)
            elif len(self._single) < len(places):
                over = [place for place in self._single if ended[place]]
            else:
                over = [place for place in places.tolist() if place in self._single]
            for place in over:
                for ticket in self._single.pop(place):
                    ticket.served()
        if self._many:
            many, self._many = self._many, []
            for wanted, ticket in many:
                if ended is None or every(ended[wanted]):
                    ticket.served()
                else:
                    self._many.append((wanted, ticket))
