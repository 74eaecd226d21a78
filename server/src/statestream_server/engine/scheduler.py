"""Which batch runs next: classes by share, then the group whose head waits longest. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from statestream_server.engine.statistics import Share
from statestream_server.engine.work import Priority

SHARES: Final[Mapping[Priority, int]] = {
    Priority.LIVE: 16,
    Priority.GENERATE: 4,
    Priority.FORECAST: 1,
    Priority.SUSPECT: 1,
}
"""What each class is guaranteed of the engine's time, in proportion, while all of them have work."""


class Head(NamedTuple):
    """What waits longest in one group of a queue: its class, its age, and the slice it would run with."""

    priority: Priority
    age: int
    steps: int


class Queue(Protocol):
    """What the scheduler asks of a lane."""

    def heads(self) -> Iterable[Head]:
        """The head of every group in which something waits."""


Q = TypeVar("Q", bound=Queue)


class Choice(NamedTuple, Generic[Q]):
    """What runs next."""

    queue: Q
    priority: Priority
    steps: int


class Scheduler:
    """Stride scheduling between classes, oldest head first within one.

    Each class has a virtual time that advances by the seconds it used over its share; the class that is
    furthest behind runs. A class that had nothing to do does not save its share up. (Waldspurger and
    Weihl, "Stride scheduling", 1995.)
    """

    def __init__(self) -> None:
        """Nothing ran yet."""
        self._virtual = dict.fromkeys(Priority, 0.0)
        self._now = 0.0
        self._had = {priority: Share() for priority in Priority}

    def choose(self, queues: Iterable[Q]) -> Choice[Q] | None:
        """The queue, class and slice that run next, or None where nothing waits."""
        heads: dict[Priority, tuple[Head, Q]] = {}
        for queue in queues:
            for head in queue.heads():
                known = heads.get(head.priority)
                if known is None or head.age < known[0].age:
                    heads[head.priority] = (head, queue)
        if not heads:
            return None
        for priority in heads:
            self._virtual[priority] = max(self._virtual[priority], self._now)
        self._now, chosen = min((self._virtual[priority], priority) for priority in heads)
        head, queue = heads[chosen]
        return Choice(queue, chosen, head.steps)

    def statistics(self) -> Mapping[Priority, Share]:
        """What each class had so far; the numbers go on."""
        return self._had

    def charge(self, priority: Priority, seconds: float) -> None:
        """Notes how long a batch of a class ran."""
        had = self._had[priority]
        had.batches += 1
        had.seconds += seconds
        self._virtual[priority] += seconds / SHARES[priority]
