"""The engine: takes batches from the scheduler, runs them, commits them, tells the sinks.

It runs in turns of the event loop, one batch a turn, so that newcomers join between slices. A batch that is
predicted to be short runs right there: handing it to a thread would cost more than it takes. A long one runs
on the engine's only thread while the loop goes on reading frames.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from statestream.contract import errors
from statestream_server.arrays import Array, Ints, every
from statestream_server.engine.batch import APART, Batch
from statestream_server.engine.costs import Costs
from statestream_server.engine.lane import Ended, Lane
from statestream_server.engine.marks import RESET
from statestream_server.engine.predictions import Prediction, Predictions, Together
from statestream_server.engine.scheduler import Choice, Head, Scheduler
from statestream_server.engine.statistics import Statistics, Why
from statestream_server.engine.table import Table
from statestream_server.engine.tickets import Ticket
from statestream_server.engine.watch import Unwatched, Watch
from statestream_server.engine.work import NONE, Part, Priority, Work
from statestream_server.lag import TurnLoad
from statestream_server.models.model import Predictor

BATCH_SECONDS = 2e-3
"""What a batch is to take at most: newcomers wait that long before they join."""
INLINE_SECONDS = 4e-3
"""Batches predicted to take longer run on the thread."""
_MANY = 64
"""Chunks that are worth a batch without a look at what else comes."""
_MOST_TURNS = 16
"""TurnLoad of the loop that a few chunks wait at most, for company that keeps coming."""
MAX_BATCH = 4096
"""The most rows in a batch, whatever they cost."""


@dataclass(slots=True)
class _Lane:
    """What the engine knows of one table."""

    table: Table
    costs: Costs
    row_by_row: bool

    def heads(self) -> Iterable[Head]:
        return self.table.lane.heads()


class Engine:
    """Runs everything that steps or predicts, one batch at a time."""

    def __init__(self, turns: TurnLoad | None = None, watch: Watch | None = None) -> None:
        """An engine without tables; `start` sets it going.

        `turns` hears what is done in a turn of the loop, `watch` what runs.
        """
        self._turns_of_loop = turns or TurnLoad()
        self._watch = watch or Unwatched()
        self._statistics = Statistics()
        self.scheduler = Scheduler()
        self.feeds: list[Callable[[], None]] = []
        """Called before a batch is chosen: they submit what came since the last one."""
        self._lanes: dict[int, _Lane] = {}
        self._predictions: dict[int, Predictions] = {}
        self._ages = itertools.count(1)
        self._due = False
        self._arrived = self._gathered = self._turns = 0
        self._slabs = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: asyncio.Future[None] | None = None
        self._on_thread: asyncio.Task[None] | None = None

    def statistics(self) -> Statistics:
        """What it did so far; the numbers go on."""
        return self._statistics

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
        self._lanes[id(table)] = _Lane(table, Costs(BATCH_SECONDS), table.rows.row_by_row)

    def remove(self, table: Table) -> None:
        """Serves it no longer; nothing of it may be queued."""
        del self._lanes[id(table)]

    def tables(self) -> list[Table]:
        """The tables that are served."""
        return [lane.table for lane in self._lanes.values()]

    def check(self, table: Table) -> None:
        """Checks that a table is served still: what is submitted to another is never run.

        Raises:
            ModelNotFound: Its version was unloaded.
        """
        if id(table) not in self._lanes:
            raise unloaded(table.model.name, table.model.version)

    def submit(self, table: Table, work: Work, priority: Priority) -> None:
        """Queues a work's chunks behind what their rows have queued."""
        work.since = time.perf_counter()
        if self._watch.wary:
            suspects = self._watch.suspected(table.mark, table.tag[work.rows])
            if suspects is not None:
                table.lane.suspect(work.rows[suspects])
        table.lane.enqueue(work, priority, next(self._ages))
        self.wake(len(work.rows))

    async def predict(
        self, graph: Predictor, inputs: Sequence[Array], axes: Sequence[int], output_axes: Sequence[int], mark: bytes
    ) -> list[Array]:
        """Runs a graph without rows; calls of equal shape share a batch. A cancelled call is not run.

        Args:
            graph: The graph.
            inputs: One array for every input, the graph's own axes.
            axes: The batch axis of each input; empty where the graph has none, then the call runs alone.
            output_axes: The batch axis of each output.
            mark: What stands for the model where work is noted.

        Returns:
            One array for every output.

        Raises:
            BadTensor: The graph refuses the inputs.
            Quarantined: Such a call was running in deaths of a server.
        """
        if id(graph) not in self._predictions:
            self._predictions[id(graph)] = Predictions(graph, BATCH_SECONDS, mark, self._watch)
        outputs: asyncio.Future[list[Array]] = asyncio.get_running_loop().create_future()
        call = Prediction(list(inputs), axes, output_axes, outputs, since=time.perf_counter())
        self._predictions[id(graph)].check(call)
        self._predictions[id(graph)].push(call, next(self._ages))
        self.wake(1)
        return await outputs

    def forget(self, graph: Predictor, model: str, version: int) -> None:
        """Runs the graph of a version no longer; calls that wait end with ModelNotFound."""
        queue = self._predictions.pop(id(graph), None)
        if queue is not None:
            queue.refuse(unloaded(model, version))

    def cancel(self, table: Table, rows: Ints, error: errors.StatestreamError) -> None:
        """Takes out what is queued for rows, but for what runs now; the sinks hear `error`."""
        for part in table.lane.cancel(rows):
            self._end(table, part, error)

    async def settled(self, table: Table, rows: Ints) -> None:
        """Waits until all that is queued for rows now has run or was refused; what comes later does not hold it up.

        Whoever reads a row then does so under `still`: it is between two chunks, and others may be queued.
        """
        ended = asyncio.get_running_loop().create_future()
        if table.lane.watch(rows, Ticket(partial(_resolve, ended))):
            await ended

    async def idle(self, table: Table, rows: Ints) -> None:
        """Waits until nothing is queued for rows; for rows to which nobody can queue any more."""
        while not every(table.lane.idle(rows)):
            await self.settled(table, rows)

    def still(self) -> asyncio.Lock:
        """Held while slabs are read, written or grown from outside: `async with engine.still(): …`.

        The thread holds it while it runs a batch. Do not await inside.
        """
        return self._slabs

    @property
    def queued_bytes(self) -> int:
        """Bytes of the inputs of chunks that wait or run."""
        return sum(lane.table.lane.nbytes for lane in self._lanes.values())

    @property
    def queued(self) -> int:
        """Chunks that wait or run."""
        return sum(lane.table.lane.queued for lane in self._lanes.values())

    def take_in(self) -> None:
        """Has chunks that just arrived submitted; call it before anything that must come after them."""
        for hand_over in self.feeds:
            hand_over()

    def wake(self, arrived: int = 0) -> None:
        """Lets the engine look for work in the next turn of the loop, as so many chunks or calls arrived."""
        self._arrived += arrived
        if not self._due and self._loop is not None:
            self._due = True
            self._loop.call_soon(self._run_next)

    def _more_to_come(self) -> bool:
        """Whether a turn that brought something is worth another before a batch runs.

        A few chunks cost a batch as much as a hundred. While each turn of the loop brings more, and they are few,
        the next costs less than a batch. Nothing is waited for: an idle loop runs at once what it has.
        """
        arrived, self._arrived = self._arrived, 0
        self._gathered += arrived
        self._turns += 1
        if arrived and self._gathered < _MANY and self._turns < _MOST_TURNS:
            return True
        self._gathered = self._turns = 0
        return False

    def _run_next(self) -> None:
        """Runs one batch, if one waits and none is on the thread."""
        if self._loop is None:
            return
        if self._more_to_come():
            self._loop.call_soon(self._run_next)
            return
        try:
            for hand_over in self.feeds:
                hand_over()
            self._due, self._arrived = False, 0
            if self._on_thread is not None:
                return
            queues: list[_Lane | Predictions] = [lane for lane in self._lanes.values() if lane.table.lane.queued]
            queues += [predictions for predictions in self._predictions.values() if len(predictions)]
            choice = self.scheduler.choose(queues)
            if choice is None:
                return
            if isinstance(choice.queue, _Lane) and not choice.steps:
                self._pass_marks(choice.queue.table, choice.priority)
                return
            run = self._prediction(choice.queue) if isinstance(choice.queue, Predictions) else self._step(choice)
            if run.predicted < INLINE_SECONDS:
                self._settle(run, choice.priority, _timed(run.run))
                return
            self._statistics.threaded += 1
            self._on_thread = asyncio.create_task(self._aside(run, choice.priority), name="engine-batch")
        except Exception as error:
            self._fail(error)

    async def _aside(self, run: _Run, priority: Priority) -> None:
        """Runs a batch on the thread."""
        try:
            async with self._slabs:
                seconds = await asyncio.get_running_loop().run_in_executor(self._thread, _timed, run.run)
            self._on_thread = None
            self._settle(run, priority, seconds)
        except Exception as error:
            self._fail(error)

    def _settle(self, run: _Run, priority: Priority, seconds: float) -> None:
        """What follows a batch; then the loop gets a turn, so that newcomers join before the next."""
        if run.batch is None or not run.batch.searched:
            run.costs.observe(run.rows, run.steps, seconds)
        self._turns_of_loop.note(run.rows)
        self._statistics.count(run.rows, run.steps, seconds, run.why, run.waited)
        self.scheduler.charge(priority, seconds)
        run.finish()
        if self.queued or any(map(len, self._predictions.values())):
            self.wake()

    def _fail(self, error: Exception) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)
        self._loop = None  # Rows may be half-way: nothing runs any more.

    def _prediction(self, queue: Predictions) -> _Run:
        batch = queue.take(MAX_BATCH)
        waited = time.perf_counter() - batch.calls[0].since
        finish = partial(self._deliver, queue, batch)
        return _Run(batch.run, finish, batch.costs, batch.rows, 1, queue.why(batch, MAX_BATCH), waited)

    def _deliver(self, queue: Predictions, batch: Together) -> None:
        """Hands over what a batch of calls gave; what is not done yet waits behind the others again."""
        batch.deliver()
        for call in batch.again:
            queue.push(call, next(self._ages))

    def _step(self, choice: Choice[_Lane | Predictions]) -> _Run:
        lane, steps = choice.queue, choice.steps
        assert isinstance(lane, _Lane)
        # A long chunk is cut so that newcomers need not wait for all of it.
        lane.table.lane.max_slice = lane.costs.longest(lane.table.max_slice)
        apart = choice.priority is Priority.SUSPECT
        most = APART if apart else lane.costs.rows(steps, most=lane.table.most_rows(steps, MAX_BATCH))
        taken = lane.table.lane.take(choice.priority, steps, most)
        why = Why.SERIAL if lane.row_by_row else _why(lane.table.lane, choice, taken.count, most)
        waited = time.perf_counter() - taken.parts[0].work.since
        batch = Batch(lane.table, taken, self._watch, apart=apart)
        return _Run(
            batch.run, partial(self._finish, lane.table, batch), lane.costs, taken.count, steps, why, waited, batch
        )

    def _finish(self, table: Table, batch: Batch) -> None:
        lane = table.lane
        if batch.apart:
            lane.trust(batch.rows)
            self._watch.survived(table.mark, batch.tags, batch.began)
        if len(batch.refused):
            lane.suspect(batch.refused)
        ended, behind = lane.advance(batch.taken, batch.bad, next(self._ages), batch.again)
        self._complete(table, ended)
        for work, _, failed in ended:
            if len(failed):
                for places, error in batch.errors_of(work.rows[failed], failed):
                    self._end(table, Part(work, places), error)
        for part in behind:
            self._statistics.failed += len(part.places)
            part.work.sink.behind(part.work, part.places)
            self._free(table, *part)

    def _pass_marks(self, table: Table, priority: Priority) -> None:
        """Passes the marks that are next on their rows, between two batches: resets take their rows back."""
        began = time.perf_counter()
        taken = table.lane.take(priority, 0, MAX_BATCH)
        for work, places in taken.parts:
            assert work.kinds is not None
            rows = work.rows[places[work.kinds[places] == RESET]]
            if len(rows):
                table.rows.reset(rows)
        self.scheduler.charge(priority, time.perf_counter() - began)
        self._complete(table, table.lane.advance(taken, None, next(self._ages))[0])
        self.wake()

    def _complete(self, table: Table, ended: Sequence[Ended]) -> None:
        """Tells of chunks that ran to their end."""
        for work, finished, _ in ended:
            if len(finished):
                work.sink.completed(work, finished)
                self._free(table, work, finished)

    def _end(self, table: Table, part: Part, error: errors.StatestreamError) -> None:
        """Ends chunks that were not applied."""
        self._statistics.failed += len(part.places)
        part.work.sink.failed(part.work, part.places, error)
        self._free(table, part.work, part.places)

    def _free(self, table: Table, work: Work, places: Ints) -> None:
        """Lets go of what ended chunks needed to run."""
        if work.shadow is not None:
            shadows = work.shadow[places]
            table.release(shadows[shadows != NONE])


@dataclass(slots=True)
class _Run:
    """A batch that is about to run.

    Attributes:
        run: Runs it, here or on the thread.
        finish: Tells of it, on the loop.
        costs: What such batches took.
        rows: Its rows.
        steps: The steps of each.
        why: Why it is not larger.
        waited: Seconds since its oldest work came.
        batch: The batch of steps that it is, None for predictions.
    """

    run: Callable[[], None]
    finish: Callable[[], None]
    costs: Costs
    rows: int
    steps: int
    why: Why
    waited: float
    batch: Batch | None = None

    @property
    def predicted(self) -> float:
        """Seconds that it will take."""
        return self.costs.predict(self.rows, self.steps)


def _why(lane: Lane, choice: Choice[_Lane | Predictions], count: int, most: int) -> Why:
    """Why a batch that was just taken from a lane is not larger."""
    if lane.queued == count:
        return Why.ALL
    others = False
    for head in lane.heads():
        if (head.priority, head.steps) == (choice.priority, choice.steps):
            return Why.MOST if most == MAX_BATCH else Why.TIME
        others = True
    return Why.SLICES if others else Why.BUSY


def unloaded(model: str, version: int) -> errors.ModelNotFound:
    """What a caller is told whose call outlived its model."""
    return errors.ModelNotFound(f"{model!r} version {version} was unloaded while the call ran; load it, and call again")


def _resolve(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


def _timed(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
