"""The line: in which order waits what came. As it came; where several tenants have something waiting, by fair shares.

Each slice that becomes runnable gets an age, and the lowest runs first. With one tenant ages count what came. With
several each tenant's ages advance by what its slices cost, from the age that runs now on where nothing of it waited:
so whoever has little waiting is ahead of whoever has much, and every tenant that has something waiting gets the same
share (start-time fair queueing: Goyal, Vin and Cheng, 1996). No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import Final

_KNOWN: Final = 1024
"""Tenants whose ages are kept before those are let go that have nothing waiting."""
CREDIT: Final = 4000
"""What a tenant that had less than its share may have ahead of others that wait, in µs: about two batches. So the few
steps that it has waiting run together, as they would alone, and not one in each of the next batches."""
_REMEMBERS: Final = 0.5
"""Seconds of work that a pace goes by: what ended before counts for less and less."""
_KNOWS: Final = 0.2
"""Seconds of work from which on a pace is known. What comes at once often ends at once, after a while in which nothing
does, and the first take longer, for what is set up with them: less would be taken for much too slow."""


class Line:
    """Hands out ages.

    Attributes:
        several: Whether several tenants share the engine while something waits; the engine says so after each batch.
        now: The age of the live slice that ran last.
        behind: Gives an age behind all that wait, while there is one tenant.
    """

    __slots__ = ("_known", "_last", "_next", "behind", "now", "several")

    def __init__(self) -> None:
        """Nobody waits."""
        self.several = False
        self.now = 0
        self.behind = count(1).__next__
        self._last = 0
        """The highest age that was handed out."""
        self._next = dict[str | None, int]()
        """The age of the next slice of each tenant."""
        self._known = (-1, 0, 0)
        """What `share` found: at which age, how many tenants have something waiting, and what all of it costs."""

    def shared(self, tenants: Iterable[str]) -> None:
        """Notes who shares the engine from now on: whether these are several."""
        found = iter(tenants)
        first = next(found, None)
        several = any(tenant != first for tenant in found)
        if self.several and not several:
            self.behind = count(max(self._last, self.behind()) + 1).__next__
        self.several = several

    def age(self, tenant: str | None, cost: int) -> int:
        """The age of a slice of a tenant that costs so much, in whatever all of them are counted in."""
        if not self.several:
            return self.behind()
        age = max(self.now - CREDIT, self._next.get(tenant, 0))
        self._next[tenant] = age + max(1, cost)
        self._last = max(self._last, age)
        if len(self._next) > _KNOWN:
            self._next = {known: upcoming for known, upcoming in self._next.items() if upcoming > self.now}
        return age

    def share(self, tenant: str | None) -> float:
        """Of the time that all of what waits takes the part that something new of a tenant waits: 0 to 1."""
        if not self.several:
            return 1.0
        mine = self._next.get(tenant, 0) - self.now
        if mine <= 0:
            return 0.0
        if self._known[0] != self.now:
            waiting = [ahead - self.now for ahead in self._next.values() if ahead > self.now]
            self._known = self.now, len(waiting), sum(waiting)
        _, tenants, costs = self._known
        return min(1.0, mine * tenants / costs) if costs else 1.0


class Pace:
    """How long what waits will wait, going by how fast others ended while some waited."""

    __slots__ = ("_ended", "_seconds")

    def __init__(self) -> None:
        """Nothing ended yet."""
        self._seconds = self._ended = 0.0

    def note(self, ended: int, seconds: float) -> None:
        """Notes that so many ended in a time in which something waited or ran."""
        kept = _REMEMBERS / (_REMEMBERS + seconds)
        self._seconds = kept * self._seconds + seconds
        self._ended = kept * self._ended + ended

    def wait(self, waiting: int) -> float:
        """Seconds until what comes behind so many will have run; 0 while too little was seen to know."""
        if self._seconds < _KNOWS:
            return 0.0
        return waiting * self._seconds / max(self._ended, 1)
