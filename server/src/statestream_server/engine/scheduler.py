"""Which batch runs next (classes by share, then the group whose head waits longest), how large it is to be, what ran.

Whether a few chunks wait for more before they make one is looked at by turns of the loop.

What a batch will cost is taken from the seconds that others took, by size. What ran is counted in integers: the hot
path counts, whoever wants to know reads (metrics.py, ServerService.GetStatistics). No I/O, no clock.
"""

from __future__ import annotations

import enum
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from statestream_server.engine.work import Priority

SHARES: Final[Mapping[Priority, int]] = {
    Priority.LIVE: 16,
    Priority.GENERATE: 4,
    Priority.FORECAST: 1,
    Priority.SUSPECT: 1,
}
"""What each class is guaranteed of the engine's time, in proportion, while all of them have work."""

BATCH_SECONDS: Final = 2e-3
"""What a batch is to take at most: newcomers wait that long before they join."""
BATCH_BYTES: Final = 32 << 20
"""Outputs of one run, about, as they exist once more while it runs; one step of one row may have more."""
_WEIGHT = 0.25
"""How much the newest measurement counts."""
_STALE = 256
_TRIES = 64
"""What a size cost is old after so many runs; in one of so many the next larger one is tried where that is old, however
dear it was: what a run costs once may say nothing."""
_RUNS = 16
"""Limits are worked out again after so many runs, and when a size was measured for the first time."""
_FIRST_ROWS = 64
"""The limit while nothing was measured."""

SIZES: Final = 13
"""Sizes by powers of two: 1, 2, 3–4, 5–8, … up to 4,096 rows."""
WAITS: Final = 26
"""Waits, and runs, by powers of two of microseconds: below 1, 2, 4, … up to 33 s."""

MANY: Final = 64
"""Chunks that are worth a batch without a look at what else comes."""
MOST_TURNS: Final = 16
"""Turns of the loop that a few chunks wait at most, for company that keeps coming."""
VAIN: Final = 16
"""Chunks in a row that waited for company and had none; then one that comes alone waits no more, until one has some."""


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
    """What runs next, and the age of its head."""

    queue: Q
    priority: Priority
    steps: int
    age: int


class Scheduler:
    """Stride scheduling between classes, oldest head first within one.

    Each class has a virtual time that advances by the seconds it used over its share; the class that is
    furthest behind runs. A class that had nothing to do does not save its share up. (Waldspurger and
    Weihl, "Stride scheduling", 1995.)
    """

    def __init__(self) -> None:
        """Nothing ran yet."""
        self._virtual = dict.fromkeys(Priority, 0.0)
        self._now = self._before = 0.0
        self.had = {priority: Share() for priority in Priority}
        """What each class had so far; the numbers go on."""

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
        self._before = self._now
        self._now, chosen = min((self._virtual[priority], priority) for priority in heads)
        head, queue = heads[chosen]
        return Choice(queue, chosen, head.steps, head.age)

    def only(self, priority: Priority) -> None:
        """Notes that a class runs which alone has something to do."""
        self._before = self._now
        self._now = self._virtual[priority] = max(self._virtual[priority], self._now)

    def put_back(self) -> None:
        """Notes that what was chosen last does not run now: whoever comes meanwhile is ahead of it, as if before it."""
        self._now = self._before

    def charge(self, priority: Priority, seconds: float) -> None:
        """Notes how long a batch of a class ran."""
        had = self.had[priority]
        had.batches += 1
        had.seconds += seconds
        self._virtual[priority] += seconds / SHARES[priority]


class Company:
    """What came since the last batch, counted by turns of the loop."""

    __slots__ = ("_gathered", "_turns", "_vain", "arrived")

    def __init__(self) -> None:
        """Nothing came."""
        self.arrived = 0
        """Chunks or calls that came in this turn."""
        self._gathered = self._turns = self._vain = 0

    def keeps_coming(self, *, backlog: bool) -> bool:
        """Whether a turn that brought something is worth another before a batch runs.

        A few chunks cost a batch as much as a hundred. While each turn of the loop brings more, and they are few,
        the next costs less than a batch. Nothing is waited for: an idle loop runs at once what it has. Nor is it where
        something waits already (`backlog`): what came too much would be all that is done.
        """
        arrived, self.arrived = self.arrived, 0
        self._gathered += arrived
        self._turns += 1
        lone = self._gathered == 1
        if (
            arrived
            and not backlog
            and self._gathered < MANY
            and self._turns < MOST_TURNS
            and not (lone and self._vain >= VAIN)
        ):
            return True
        if self._gathered:
            self._vain = self._vain + 1 if lone else 0
        self._gathered = self._turns = 0
        return False


class Costs:
    """Seconds that runs of one model take, by their rows and by the steps of each.

    A step after another costs more than a row beside another, so that the two are told apart. An unmeasured size is
    taken to cost in proportion to the nearest smaller measured one, which overestimates (a batch has a fixed part),
    so batches grow in a few runs and never overshoot much; lengths likewise.
    """

    def __init__(self, target: float, step_bytes: int = 0) -> None:
        """Batches are to take `target` seconds; their outputs have `step_bytes` a step and are to have not too many."""
        self.target = target
        self.lone = 0
        """Runs of one step that came alone, not all of which are measured; see alone.py."""
        self._step_bytes = step_bytes
        self._curves: dict[int, dict[int, float]] = {}
        """By steps, then by the power of two nearest below the rows."""
        self._limits: dict[tuple[int, int], int] = {}
        self._longest: dict[int, int] = {}
        self._runs = self._all = 0
        self._measured: dict[tuple[int, int], int] = {}
        """Which run, of all, measured steps and a size last."""

    def observe(self, rows: int, steps: int, seconds: float) -> bool:
        """Notes that a batch took so long; one without rows counts as one. Whether limits may be others from now on."""
        curve = self._curves.get(steps)
        if curve is None:
            curve = self._curves[steps] = {}
        rows = rows or 1
        bucket = rows.bit_length() - 1
        scaled, known = seconds * (1 << bucket) / rows, curve.get(bucket)
        stale = self._all - self._measured.get((steps, bucket), -_STALE) >= _STALE
        curve[bucket] = scaled if known is None or stale else known + _WEIGHT * (scaled - known)
        self._runs += 1
        self._all += 1
        self._measured[steps, bucket] = self._all
        if not stale and self._runs < _RUNS:
            return False
        self._runs = 0
        self._limits.clear()
        self._longest.clear()
        return True

    def predict(self, rows: int, steps: int = 1) -> float:
        """Seconds that a batch will take; infinite while nothing was measured, so that the first holds nobody up."""
        if not self._curves:
            return math.inf
        known, rows = steps, rows or 1
        if known not in self._curves:
            known = max((length for length in self._curves if length < steps), default=min(self._curves))
        curve, bucket = self._curves[known], rows.bit_length() - 1
        if bucket not in curve:
            bucket = max((one for one in curve if one < bucket), default=min(curve))
        return curve[bucket] * rows / (1 << bucket) * steps / known

    def at_least(self, rows: int) -> float:
        """Seconds that a batch of one step takes, going by what smaller ones took; 0 while none was measured."""
        return max((seconds for b, seconds in self._curves.get(1, {}).items() if 1 << b <= max(rows, 1)), default=0.0)

    def rows(self, steps: int, *, most: int) -> int:
        """How many rows of `steps` steps fit the target, 1 to `most`."""
        limit = self._limits.get((steps, most))
        if limit is None:
            limit = self._limits[steps, most] = self._fitting(steps, most)
        if not self._all % _TRIES and self._all and limit < most:
            # It takes twice the target at most, as two of what fits would.
            more = 1 << limit.bit_length()
            before = self._measured.get((steps, limit.bit_length()), -_STALE)
            if more <= most and self._all - before >= _STALE and self.predict(limit, steps) <= self.target:
                return more
        return limit

    def longest(self, most: int) -> int:
        """How many steps of one row fit the target: a power of two, 1 to `most` (a power of two).

        A length fits, too, where half of it says so: a run that met a bad moment would rule its length out for good,
        as no other would correct it.
        """
        if not self._curves:
            return most
        found = self._longest.get(most)
        if found is None:
            found = most
            while found > 1 and min(self.predict(1, found), 2 * self.predict(1, found // 2)) > self.target:
                found //= 2
            self._longest[most] = found
        return found

    def _fitting(self, steps: int, most: int) -> int:
        most = min(most, max(1, BATCH_BYTES // max(1, steps * self._step_bytes)))
        if not self._curves:
            return min(_FIRST_ROWS, most)
        best = 1
        while 2 * best <= most and self.predict(2 * best, steps) <= self.target:
            best *= 2
        size = self.predict(best, steps)
        # Between two powers of two the cost is linear: take what still fits.
        fits = int(best * self.target / max(size, 1e-9))
        return max(1, min(max(best, min(fits, 2 * best)), most))


class Why(enum.IntEnum):
    """Why a batch was not larger. The first that holds counts."""

    SERIAL = 0
    """The model runs its rows one by one."""
    TIME = 1
    """More of the same waited and would have made it longer than a batch may take."""
    MOST = 2
    """More of the same waited, and a batch has no more rows than that."""
    SLICES = 3
    """What else waited has slices of another length or another shape, or is of another class."""
    BUSY = 4
    """What else waited is behind an earlier chunk of its session."""
    ALL = 5
    """Nothing else waited for the model."""


@dataclass(slots=True)
class Statistics:
    """What the engine did so far, in all or for one model.

    Attributes:
        batches: Batches run.
        rows: Rows in them, in all; `rows / batches` is the mean batch.
        steps: Row-steps run.
        failed: Chunks that were not applied.
        seconds: Seconds spent running models.
        threaded: Batches that ran on the thread; the others ran on the loop.
        why: Batches by `Why`.
        sizes: Batches by their rows: index i has those of at most 2**i, and more than the one before.
        waits: Batches by how long their oldest work waited: index i has those of less than 2**i µs.
        waited: Seconds of those waits.
        runs: Batches by how long they ran, as `waits`.
    """

    batches: int = 0
    rows: int = 0
    steps: int = 0
    failed: int = 0
    seconds: float = 0.0
    threaded: int = 0
    why: list[int] = field(default_factory=lambda: [0] * len(Why))
    sizes: list[int] = field(default_factory=lambda: [0] * SIZES)
    waits: list[int] = field(default_factory=lambda: [0] * WAITS)
    waited: float = 0.0
    runs: list[int] = field(default_factory=lambda: [0] * WAITS)

    def count(self, rows: int, steps: int, seconds: float, why: Why, waited: float) -> None:
        """Counts a batch of `rows` rows and `steps` steps each, that ran for `seconds` after it `waited`."""
        self.batches += 1
        self.rows += rows
        self.steps += rows * steps
        self.seconds += seconds
        self.why[why] += 1
        self.sizes[min((rows - 1).bit_length(), SIZES - 1)] += 1
        self.waits[min(int(waited * 1e6).bit_length(), WAITS - 1)] += 1
        self.waited += waited
        self.runs[min(int(seconds * 1e6).bit_length(), WAITS - 1)] += 1

    @property
    def step_cost(self) -> int:
        """Microseconds that a step of a row took, on the average; 1 at least."""
        return max(1, round(1e6 * self.seconds / self.steps)) if self.steps else 1

    def add(self, other: Statistics) -> None:
        """Counts what others counted, too."""
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(other, one.name)
            both = list(map(operator.add, mine, theirs)) if isinstance(mine, list) else mine + theirs
            setattr(self, one.name, both)


@dataclass(slots=True)
class Share:
    """What a class of work had of the engine.

    Attributes:
        batches: Its batches.
        seconds: Seconds that they ran.
    """

    batches: int = 0
    seconds: float = 0.0
