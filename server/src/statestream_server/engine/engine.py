"""The engine: takes batches from the scheduler, runs them, commits them, tells the sinks.

It runs in turns of the event loop, one batch a turn, so that newcomers join between slices. A batch that is
predicted to be short runs right there: handing it to a thread would cost more than it takes. A long one runs
on the engine's only thread while the loop goes on reading frames.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

from statestream.contract import errors
from statestream_server.arrays import Ints, every
from statestream_server.engine.batch import Batch
from statestream_server.engine.calls import Calls
from statestream_server.engine.courtesy import BESIDE_LIVE, Courtesy
from statestream_server.engine.lane import Lane
from statestream_server.engine.line import Line, Pace
from statestream_server.engine.predictions import Predictions, Together
from statestream_server.engine.queues import Queues, unloaded
from statestream_server.engine.refusing import refuse, refuse_all
from statestream_server.engine.scheduler import Choice, Company, Costs, Scheduler, Statistics, Why
from statestream_server.engine.still import Still
from statestream_server.engine.table import Table
from statestream_server.engine.telling import tell_slow, trace, trace_end
from statestream_server.engine.tickets import Ticket
from statestream_server.engine.traced import Tracer
from statestream_server.engine.watch import Watch
from statestream_server.engine.work import Priority, Sink, Work
from statestream_server.lag import NOTED_ROWS, TurnLoad
from statestream_server.models.model import Predictor

INLINE_SECONDS = 4e-3
"""Batches predicted to take longer run on the thread."""
FEW_WAITING = 64
"""So few that wait are never too many, however long each of them takes."""
MAX_BATCH = 4096
"""The most rows in a batch, whatever they cost."""
W = TypeVar("W", bound=Work)


class Engine:
    """Runs everything that steps or predicts, one batch at a time."""

    def __init__(self, turns: TurnLoad, watch: Watch) -> None:
        """An engine without tables; `start` sets it going.

        `turns` hears what is done in a turn of the loop, `watch` what runs.
        """
        self._load = turns
        self._watch = watch
        self.statistics = Statistics()
        """What it did so far; the numbers go on."""
        self.tracer: Tracer | None = None
        """Who makes spans of what runs; None where nothing is traced."""
        self.slow = math.inf
        """Seconds after which a batch is worth a line in the log."""
        self.on_device = False
        """Whether models run elsewhere than on the thread that runs a batch."""
        self.scheduler = Scheduler()
        self.feeds: list[Callable[[], None]] = []
        """Called before a batch is chosen: they submit what came since the last one."""
        self.lone: Callable[[], bool] | None = None
        """Called before those where nothing waits: runs what came by itself, see alone.py; whether it did."""
        self.ended: list[Callable[[], None]] = []
        """Called when a batch has ended and all who waited for it were told."""
        self._tables: dict[Lane, Table] = {}
        self.line = Line()
        """In which order waits what came."""
        self._calls = Queues(self.line, watch)
        self._pace = Pace()
        self._backlog = False
        """Whether something waited when the last batch had ended."""
        self._due = False
        self._company = Company()
        self.courtesy = Courtesy()
        self._slabs = Still()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: asyncio.Future[None] | None = None
        self._on_thread: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to run batches."""
        self._loop = asyncio.get_running_loop()
        self._failure = self._loop.create_future()
        self.wake()

    async def failed(self) -> None:
        """Never returns while all is well.

        Raises:
            Exception: What stopped the engine; rows may be half-way, so the process must end and its
                successor go on from the store.
        """
        assert self._failure is not None, "the engine was not started"
        await asyncio.shield(self._failure)

    @property
    def broken(self) -> bool:
        """Whether it stopped on an error: rows may be half-way, and nothing of them may be kept."""
        return self._failure is not None and self._failure.done()

    async def close(self) -> None:
        """Stops after the batch in progress; what waits is not run."""
        self._loop = None
        if self._on_thread is not None:
            await self._on_thread
        self._thread.shutdown()

    def add(self, table: Table) -> None:
        """Serves a table's rows."""
        table.lane.line = self.line
        self._tables[table.lane] = table

    def remove(self, table: Table) -> None:
        """Serves it no longer; nothing of it may be queued."""
        del self._tables[table.lane]

    def tables(self) -> list[Table]:
        """The tables that are served."""
        return list(self._tables.values())

    def check(self, table: Table) -> None:
        """Checks that a table is served still: what is submitted to another is never run.

        Raises:
            ModelNotFound: Its version was unloaded.
        """
        if table.lane not in self._tables:
            raise unloaded(table.model.name, table.model.version)

    def submit(self, table: Table, work: W, priority: Priority, sink: Sink[W]) -> None:
        """Queues a work's chunks behind what their rows have queued; `sink` hears how they end."""
        work.sink, work.since = sink, time.perf_counter()
        if self.tracer is not None:
            work.unders = self.tracer.queued()
        if self._watch.wary:
            suspects = self._watch.suspected(table.mark, table.tag[work.rows])
            if suspects is not None:
                table.lane.suspects.suspect(work.rows[suspects])
        if self.line.several and priority is Priority.LIVE:
            work.tenant = table.tenant.item(work.rows.item(0))
        table.lane.enqueue(work, priority, self.line.behind())
        self.wake(len(work.rows))

    def call(self, graph: Predictor, calls: Calls, mark: bytes) -> None:
        """Queues calls of a graph without rows, of the model that `mark` stands for where work is noted.

        Calls of equal shape share a batch. Their sink hears how they end, some perhaps at once.
        """
        if self.tracer is not None:
            calls.unders = self.tracer.current()
        self._calls.put(graph, calls, mark)
        self.wake(len(calls.rows))

    def forget(self, graph: Predictor, model: str, version: int) -> None:
        """Runs the graph of a version no longer; calls that wait end with ModelNotFound."""
        self.take_in()
        self._calls.forget(graph, model, version)

    def statistics_of(self, table: Table | None, graphs: Iterable[Predictor | None]) -> Statistics:
        """What ran of a model so far: of its table, and of its graphs without rows."""
        found = self._calls.statistics(graphs)
        if table is not None:
            found.add(table.statistics)
        return found

    def cancel(self, table: Table, rows: Ints, error: errors.StatestreamError) -> None:
        """Takes out what is queued for rows, but for what runs now; the sinks hear `error`."""
        for part in table.lane.cancel(rows):
            refuse(self.statistics, table, part, error)

    async def settled(self, table: Table, rows: Ints) -> None:
        """Waits until all that is queued for rows now has run or was refused; what comes later does not hold it up.

        Whoever reads a row then does so under `still`: it is between two chunks, and others may be queued.
        """
        ended = asyncio.Event()
        if table.lane.watch(rows, Ticket(ended.set)):
            await ended.wait()

    async def idle(self, table: Table, rows: Ints) -> None:
        """Waits until nothing is queued for rows; for rows to which nobody can queue any more."""
        while not every(table.lane.idle(rows)):
            await self.settled(table, rows)

    def still(self) -> Still:
        """Held while slabs are read, written or grown from outside: `async with engine.still(): …`.

        The thread has them while it runs a batch. Do not await inside.
        """
        return self._slabs

    @property
    def due(self) -> bool:
        """Whether it takes in, or runs, something in the next turn of the loop."""
        return self._due and self._on_thread is None

    @property
    def queued_bytes(self) -> int:
        """Bytes of the inputs of chunks that wait or run."""
        return sum(lane.nbytes for lane in self._tables)

    @property
    def queued(self) -> int:
        """Chunks that wait or run."""
        return sum(lane.queued for lane in self._tables)

    def take_in(self) -> None:
        """Has chunks that just arrived submitted; call it before anything that must come after them."""
        for hand_over in tuple(self.feeds):
            hand_over()

    def wake(self, arrived: int = 0) -> None:
        """Lets the engine look for work in the next turn of the loop, as so many chunks or calls arrived."""
        self._company.arrived += arrived
        if not self._due and self._loop is not None:
            self._due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """One turn of the loop: takes in what came, chooses a batch, runs it and commits it."""
        if self._loop is None:
            return
        if self._company.keeps_coming(backlog=self._backlog):
            self._loop.call_soon(self._turn)
            return
        try:
            if self.lone is not None and self._on_thread is None and not self._waits() and self.lone():
                self._backlog = False
            for hand_over in tuple(self.feeds):
                hand_over()
            self._due, self._company.arrived = False, 0
            if self._on_thread is not None:
                return
            queues: list[Lane | Predictions] = [lane for lane in self._tables if lane.queued]
            queues += [queue for queue in self._calls.by_graph.values() if len(queue)]
            choice = self.scheduler.choose(queues)
            if choice is None:
                return
            if choice.priority is Priority.FORECAST and self.courtesy.gives_way(queues):
                self.scheduler.put_back()
                self.wake()
                return
            if choice.priority is Priority.LIVE:
                self.line.now = max(self.line.now, choice.age)
            batch: Batch | Together
            if isinstance(choice.queue, Predictions):
                batch = choice.queue.take(MAX_BATCH)
            elif choice.steps:
                table = self._tables[choice.queue]
                batch = Batch(
                    table, choice.priority, choice.steps, self._most(table, choice.priority, choice.steps), self._watch
                )
            else:
                self._pass_marks(self._tables[choice.queue], choice.priority)
                return
            if is_short(batch.costs, batch.count, batch.steps):
                self._ended(choice, batch, batch.run())
            else:
                self.statistics.threaded += 1
                self._on_thread = asyncio.create_task(self._aside(choice, batch), name="engine-batch")
        except Exception as error:
            self._fail(error)

    def _most(self, table: Table, priority: Priority, steps: int) -> int:
        """The most rows of a batch."""
        if priority is not Priority.FORECAST or not self.courtesy.beside_live:
            return MAX_BATCH
        return max(1, table.costs.rows(steps, most=MAX_BATCH) // BESIDE_LIVE)

    async def _aside(self, choice: Choice[Lane | Predictions], batch: Batch | Together) -> None:
        """Runs a batch on the thread."""
        try:
            with self._slabs.on_thread():
                seconds = await asyncio.get_running_loop().run_in_executor(self._thread, batch.run)
            self._on_thread = None
            self._ended(choice, batch, seconds)
        except Exception as error:
            self._fail(error)

    def _ended(self, choice: Choice[Lane | Predictions], batch: Batch | Together, seconds: float) -> None:
        """Tells of a batch and notes what it cost; newcomers join in the turn of the loop before the next."""
        # By the thread's own time: where others want the processor, or the interpreter, batches that seem to cost more
        # would become smaller, and then cost more.
        cost = seconds if self.on_device else batch.used
        news = not batch.searched and batch.costs.observe(batch.count, batch.steps, cost)
        waited = time.perf_counter() - seconds - batch.since
        of = batch.table if isinstance(batch, Batch) else choice.queue
        assert not isinstance(of, Lane)
        if self.tracer is not None:
            trace(self.tracer, of, batch, choice.priority, waited, seconds)
        self.scheduler.charge(choice.priority, seconds)
        if choice.priority is Priority.LIVE:
            self.courtesy.lived = batch.since
        if isinstance(batch, Together):
            batch.deliver()
            if self._backlog:
                self._pace.note(batch.ended, self._passed(seconds))
            # What is not done yet waits behind the others again.
            assert isinstance(choice.queue, Predictions)
            for calls in batch.again:
                self._calls.push(choice.queue, calls)
        else:
            table, lane = batch.table, batch.table.lane
            if news:
                # A long chunk is cut so that newcomers need not wait for all of it.
                lane.max_slice = batch.costs.longest(table.max_slice)
            if batch.searched or batch.again is not None:
                batch.judge()
            if self.line.several:
                lane.cost = table.statistics.step_cost
            ended = lane.advance(batch.parts, batch.steps, batch.bad, self.line.behind(), batch.again)
            if self._backlog:
                self._pace.note(sum([len(part.places) for part in ended.finished]), self._passed(seconds))
            for work, places, _ in ended.finished:
                work.sink.completed(work, places)
                if work.shadow is not None:
                    table.free_shadows(work, places)
            if ended.failed:
                refuse_all(self.statistics, batch, ended)
            if self.tracer is not None:
                trace_end(self.tracer, ended)
        self._backlog = self._waits()
        if self._backlog:
            self.line.shared(chain.from_iterable([table.tenants for table in self._tables.values()]))
            self.wake()
        elif self.line.several:
            self.line.shared(())
        ran, row = seconds, None
        if isinstance(batch, Batch):
            ran, row = batch.ran, batch.rows.item(0) if batch.count == 1 else None
        self.note(of, batch.count, batch.steps, batch.why, waited, seconds, ran, row, choice.priority)

    def note(
        self, of: Table | Predictions, count: int, steps: int, why: Why, waited: float, seconds: float, ran: float,
        row: int | None, priority: Priority = Priority.LIVE,
    ) -> None:  # fmt: skip
        """Notes, once all who waited for it were told, that rows (`row`, where it was one) ran for so many steps each.

        The oldest had `waited`; it took `seconds`, of which the model itself `ran`.
        """
        for told in self.ended:
            told()
        # What no caller waits for.
        if count >= NOTED_ROWS:
            self._load.note(count)
        for statistics in (self.statistics, of.statistics):
            statistics.count(count, steps, seconds, why, waited)
        # What a forecast of many paths waits for is its own rows.
        if waited + seconds > self.slow and priority is not Priority.FORECAST:
            tell_slow(of, count, steps, waited, seconds, ran, row)
        self.courtesy.over = time.perf_counter()

    def _waits(self) -> bool:
        """Whether something waits or runs."""
        return any([lane.queued for lane in self._tables]) or any(map(len, self._calls.by_graph.values()))

    def _passed(self, seconds: float) -> float:
        """The seconds that a batch held up what waits: those that it ran, and those before it since the last one."""
        return max(seconds, time.perf_counter() - self.courtesy.over)

    def wait(self, tenant: str | None = None) -> float:
        """Seconds that what comes now of a tenant will wait, about, going by what waits and how fast others ended."""
        calls = [each.waiting for each in self._calls.by_graph.values()]
        waiting = sum([lane.queued for lane in self._tables]) + sum(calls)
        return self._pace.wait(waiting) * self.line.share(tenant) if waiting > FEW_WAITING else 0.0

    def _fail(self, error: Exception) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)
        self._loop = None  # Rows may be half-way: nothing runs any more.

    def _pass_marks(self, table: Table, priority: Priority) -> None:
        """Passes the marks that are next on their rows, between two batches: resets take their rows back."""
        began = time.perf_counter()
        parts, _, _ = table.lane.take(priority, 0, MAX_BATCH)
        for part in parts:
            table.restart(part)
        self.scheduler.charge(priority, time.perf_counter() - began)
        for work, places, _ in table.lane.advance(parts, 0, None, self.line.behind()).finished:
            work.sink.completed(work, places)
        self.wake()


def is_short(costs: Costs, count: int, steps: int) -> bool:
    """Whether rows of so many steps are predicted to run so shortly that they run in a turn of the loop."""
    return costs.predict(count, steps) < INLINE_SECONDS
