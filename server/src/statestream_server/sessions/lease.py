"""The lease: for how long the store's word that rows are ours holds, and replies that wait until it says so again.

A process that was stopped, or cut off from the store, wakes to sessions that others took over meanwhile. So
time is cut into leases: one ends where two contacts with the store lie more than two intervals apart, or
where the process itself stood still for as long. A reply leaves where the store said under this lease that its
rows are ours; else it waits until the store was asked for their epochs, and rows that moved are dropped.
While the store does not answer, replies leave: then safety rests on each session having one writer.

What remains: a reply that passed the last look at the clock and is stopped on its way to the socket. To its
reader that is a reply delayed by the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Ints
from statestream_server.engine.table import Table
from statestream_server.sessions.releases import Release, Withheld, rows_of
from statestream_server.stores.base import Store
from statestream_server.stores.rules import counted

log = logging.getLogger(__name__)

_CLOCK: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)
_SLICE = 4096
"""Rows asked for at a time."""
_PATROL = 128
"""Rows asked for in each round although nothing speaks for a move: one that moved leaves memory some time."""
_SHORTEST_TTL = 5.0
"""Seconds for which a beat holds, at least; ten intervals where those are longer."""


def monotonic() -> float:
    """Seconds on a clock that also counts while the machine sleeps, where there is one."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


class Asked(NamedTuple):
    """A question to the store that is on its way: when it left, under which lease, after how many stops."""

    at: float
    lease: int
    stops: int


class Lease:
    """Knows how far the store can be trusted to have said whose our rows are."""

    def __init__(
        self,
        store: Store,
        owner: str,
        interval: float,
        *,
        tables: Callable[[], Iterable[Table]],
        on_fenced: Callable[[Table, Ints, errors.StatestreamError], None],
        on_reset: Callable[[], None],
        load: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Lease that is not started.

        Args:
            store: The store.
            owner: The name of this process in it.
            interval: Seconds between checkpoints.
            tables: The tables of all sessions.
            on_fenced: Hears of rows whose session a newer owner has.
            on_reset: Hears that the store was emptied or replaced.
            load: Tells how many sessions callers have open here, for other processes.
            clock: Gives seconds that never go back.
        """
        self.owner = owner
        self.address = ""
        """Where other processes say that this one is reached."""
        self.resets = 0
        """How often the store was found emptied or replaced."""
        self.fenced = 0
        """Rows dropped because their session has a newer owner, found by asking."""
        self._store = store
        # What does not outlive this process, no other process can take over from.
        self._shared = store.survives.process_kill
        self._limit = 2 * interval
        self._pause = interval / 2
        self._ttl = max(_SHORTEST_TTL, 10 * interval)
        self.beat_seconds = self._ttl / 4
        """Seconds between two beats."""
        self._tables = tables
        self._on_fenced = on_fenced
        self._on_reset = on_reset
        self._load = load
        self._clock = clock
        self._number = 1
        self._stops = 0
        self._last = self._seen = clock()
        self._next_beat = 0.0
        self._generation = ""
        self._away = False
        self._held: list[Withheld] = []
        self._turn: asyncio.Future[None] | None = None
        self._wanted = asyncio.Event()
        self._patrolled: dict[int, int] = {}
        self._ticker: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def holding(self) -> int:
        """Replies that wait for the store's word."""
        return len(self._held)

    async def start(self, address: str) -> None:
        """Announces this process at `address` and begins to ask."""
        self.address = address
        self._last = self._seen = self._clock()  # Models loaded since it was made, and nobody was answered.
        try:
            await self._beat()
            self._generation = await self._store.generation()
        except errors.StoreUnavailable as error:
            log.error("the store cannot be told of this server yet: %s", error.message)
        if self._shared:
            self._tick()
            self._task = asyncio.create_task(self._run(), name="lease")

    async def failed(self) -> None:
        """Never returns while all is well.

        Raises:
            Exception: What stopped the asking; replies that wait would never leave, so the process must end.
        """
        await (asyncio.shield(self._task) if self._task is not None else asyncio.Event().wait())

    async def close(self) -> None:
        """Lets everything go and takes leave of the store.

        Raises:
            StoreUnavailable: The store hears of it when the last beat is over.
        """
        if self._ticker is not None:
            self._ticker.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._let_go(len(self._held), whatever=True)
        await self._store.leave(self.owner)

    def ask(self) -> Asked:
        """Call it before a question to the store; hand what it returns to `answered`."""
        self._look()
        return Asked(self._clock(), self._number, self._stops)

    def answered(self, asked: Asked, table: Table | None = None, rows: Ints | None = None) -> bool:
        """Notes an answer of the store, and that it confirmed rows of a table.

        Returns:
            Whether it is worth anything: not where this process stood still meanwhile.
        """
        self._notice_stop()
        if asked.stops != self._stops:
            return False
        self._away = False
        if asked.lease == self._number:
            self._last = max(self._last, asked.at)
        if table is not None and rows is not None:
            table.confirmed[rows] = asked.lease
        return True

    def lets_go(self, table: Table, rows: Ints) -> bool:
        """Whether the replies of rows may leave at once: nothing waits, and these rows are ours or the store away."""
        if self._held:
            return False
        if not self._shared:
            return True
        now = self._clock()
        if now - min(self._last, self._seen) > self._limit:
            self._look()
        self._seen = now
        # Bytes are compared: on the way of every reply, NumPy's comparison costs a short column ten times as much.
        return self._away or table.confirmed[rows].tobytes() == self._number.to_bytes(8, sys.byteorder) * len(rows)

    def release(self, table: Table, rows: Ints, release: Release) -> None:
        """Calls `release`, in order, once the store can be trusted to know these rows as ours, or is away."""
        if self.lets_go(table, rows):
            release(np.arange(len(rows)), None)
            return
        self._held.append(Withheld.of(table, rows, release))
        self._wanted.set()

    def look_again(self) -> None:
        """A claim that was on its way is not so any more: replies that wait for that may leave."""
        if self._held:
            self._wanted.set()

    def answering(self, table: Table) -> Ints:
        """Rows of a table whose replies wait."""
        return rows_of(table, self._held)

    async def released(self) -> None:
        """Returns when every reply that was given to `release` so far has left; later ones hold nobody up."""
        asked = list(self._held)
        while self._task is not None and any(len(held.places) for held in asked):
            if self._turn is None:
                self._turn = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._turn)

    async def check(self, table: Table, rows: Ints) -> Ints:
        """Asks whose sessions the rows are, and drops those that moved.

        Returns:
            Rows that are undecided, because a claim of ours is on its way: ask again.

        Raises:
            StoreUnavailable: The store does not answer; nothing is known.
        """
        named = [(row, key) for row in rows[table.epoch[rows] > 0].tolist() if (key := table.key(row)) is not None]
        if not named or not self._shared:
            return rows[:0]
        rows = np.asarray([row for row, _ in named], np.int64)
        claims, durable = table.claims(rows), table.durable[rows]
        asked = self.ask()
        heads = await self._store.heads([key for _, key in named])
        if not self.answered(asked):
            return rows
        epochs = np.asarray([0 if head is None else head.epoch for head in heads], np.uint64)
        fences = np.asarray(
            [0 if head is None else head.fence if head.live else head.epoch + 1 for head in heads], np.uint64
        )
        positions = np.asarray([0 if head is None else head.position for head in heads], np.uint64)
        same = table.are_claimed(rows, claims)
        # What the store lost, expired or holds of an earlier claim, or after a failover of an earlier save, is saved
        # again under the epoch that it had.
        behind = ((epochs < claims[1]) | (positions < durable)) & (fences <= claims[1])
        table.dirty[rows[same & behind]] = True
        ours = fences <= claims[1]
        table.confirmed[rows[same & ours]] = asked.lease
        moved, claiming = same & ~ours, table.claiming[rows]
        dead = np.asarray([head is not None and not head.live for head in heads], np.bool_)
        fenced = moved & ~claiming
        self.fenced += int(fenced.sum())
        for which, error in (
            (fenced & ~dead, errors.SessionMoved("another server took the session over")),
            (fenced & dead, errors.SessionNotFound("the session was deleted")),
        ):
            if which.any():
                self._on_fenced(table, rows[which], error)
        undecided: Ints = rows[moved & claiming]
        return undecided

    async def refresh(self) -> None:
        """Asks whether the store is still the one it was; where not, every session is registered again.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        asked = self.ask()
        generation = await self._store.generation()
        self.answered(asked)
        known, self._generation = self._generation, generation
        if known in ("", generation):
            return
        if counted(known)[0] == counted(generation)[0]:
            log.warning("sessions were erased in the store: it is asked whose those in memory are")
            self._next(self._clock())
            self._wanted.set()
        else:
            self.resets += 1
            log.warning("the store was emptied or replaced: every session in memory is registered again")
            self._on_reset()

    def _notice_stop(self) -> None:
        now = self._clock()
        # Where nobody else can take a session, nothing looks at the clock meanwhile, and no stop matters.
        if self._shared and now - self._seen > self._limit:
            log.warning(
                "this process stood still for %.1f s: the store is asked whose its sessions are", now - self._seen
            )
            self._stops += 1
            self._away = False
            self._next(now)
        self._seen = now

    def _look(self) -> None:
        self._notice_stop()
        if self._seen - self._last > self._limit:
            self._next(self._seen)

    def _next(self, now: float) -> None:
        self._number += 1
        self._last = now

    def _tick(self) -> None:
        """Runs while the process does: a gap between two ticks is a stop of the process."""
        self._notice_stop()
        self._ticker = asyncio.get_running_loop().call_later(self._pause, self._tick)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause):
                    await self._wanted.wait()
            self._wanted.clear()
            stops = self._stops
            try:
                await self._settle_held()
                await self._round()
            except errors.StoreUnavailable as error:
                self._notice_stop()
                # What failed before this process stood still says nothing of now.
                if stops == self._stops:
                    self._lose(error)

    def _lose(self, error: errors.StoreUnavailable) -> None:
        if not self._away:
            log.warning("the store does not answer, sessions go on without it: %s", error.message)
        self._away = True
        self._let_go(len(self._held))

    async def _settle_held(self) -> None:
        """Asks about the rows of the replies that wait now, and lets those go that may."""
        count = len(self._held)
        if not count:
            return
        stops = self._stops
        for table in {id(held.table): held.table for held in self._held[:count]}.values():
            rows = np.unique(rows_of(table, self._held[:count]))
            rows = rows[table.confirmed[rows] != self._number]
            for start in range(0, len(rows), _SLICE):
                await self.check(table, rows[start : start + _SLICE])
        self._notice_stop()
        if stops != self._stops:
            self._wanted.set()
        else:
            self._let_go(count)

    def _let_go(self, count: int, *, whatever: bool = False) -> None:
        """Lets the oldest replies leave, but for those of rows whose claim is on its way."""
        going, self._held = self._held[:count], self._held[count:]
        left = list[Withheld]()
        for held in going:
            waits = held.table.claiming[held.waiting] & held.still() & (not whatever)
            if not held.let_go(~waits):
                left.append(held)
        self._held = left + self._held
        if self._turn is not None:
            self._turn.set_result(None)
            self._turn = None

    async def _round(self) -> None:
        """What is asked regularly."""
        if self._clock() >= self._next_beat:
            await self._beat()
        tables = [table for table in self._tables() if table.sessions]
        if tables:
            await self.refresh()
        for table in tables:
            await self._patrol(table)

    async def _beat(self) -> None:
        await self._store.beat(self.owner, self.address, self._ttl, self._load())
        self._next_beat = self._clock() + self.beat_seconds

    async def _patrol(self, table: Table) -> None:
        """Asks about rows that are not confirmed under this lease, or else about the next few."""
        # Of all rows in NumPy, one by one those of a slice only: a table may have a million. Free rows have no epoch.
        unsure = np.flatnonzero((table.confirmed != self._number) & (table.epoch > 0))
        if len(unsure) > _SLICE:
            self._wanted.set()  # The next round comes at once.
        rows = unsure[:_SLICE]
        # What has no session counts as confirmed, so that it is not looked at again and again.
        table.confirmed[[row for row in rows.tolist() if table.ids[row] is None]] = self._number
        if not len(rows):
            start = self._patrolled.get(id(table), 0) % max(1, table.capacity)
            rows = np.arange(start, min(start + _PATROL, table.capacity))
            self._patrolled[id(table)] = start + _PATROL
        await self.check(table, rows)
