"""The engine: takes batches from the scheduler, runs them, commits them, tells the sinks.

One task of the event loop drives it. A batch that is predicted to be short runs right there: handing it
to a thread would cost more than it takes. A long one runs on the engine's only thread while the loop goes
on reading frames. Between batches the loop gets a turn, so that newcomers join between slices.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from statestream import errors
from statestream.signature import numpy_dtype, step_shape
from statestream_server.arrays import Array, Bools, Ints
from statestream_server.engine.costs import Costs
from statestream_server.engine.lane import Priority, Slice
from statestream_server.engine.predictions import Prediction, Predictions, Predictor
from statestream_server.engine.scheduler import Scheduler
from statestream_server.engine.table import Table
from statestream_server.engine.work import Work

log = logging.getLogger(__name__)

BATCH_SECONDS = 2e-3
"""What a batch is to take at most: newcomers wait that long before they join."""
INLINE_SECONDS = 4e-3
"""Batches predicted to take longer run on the thread."""
MAX_BATCH = 4096
"""The most rows in a batch, whatever they cost."""


@dataclass(slots=True)
class Statistics:
    """What the engine did so far.

    Attributes:
        batches: Batches run.
        rows: Rows in them, in all; `rows / batches` is the mean batch.
        steps: Row-steps run.
        failed: Chunks that were not applied.
        seconds: Seconds spent running models.
        capped: Batches that were cut by the time limit; more rows waited.
        threaded: Batches that ran on the thread.
    """

    batches: int = 0
    rows: int = 0
    steps: int = 0
    failed: int = 0
    seconds: float = 0.0
    capped: int = 0
    threaded: int = 0


@dataclass(slots=True)
class _Lane:
    """What the engine knows of one table."""

    table: Table
    costs: Costs
    works: dict[int, Work] = field(default_factory=dict)

    def oldest(self, priority: Priority) -> tuple[int, int] | None:
        return self.table.lane.oldest(priority)


class Engine:
    """Runs everything that steps or predicts, one batch at a time."""

    def __init__(self) -> None:
        """An engine without tables; `start` sets it going."""
        self.statistics = Statistics()
        self.scheduler = Scheduler()
        self.queued_bytes = 0
        """Bytes of inputs that wait or run."""
        self._lanes: dict[int, _Lane] = {}
        self._predictions: dict[int, Predictions] = {}
        self._ages = itertools.count(1)
        self._numbers = itertools.count(1)
        self._wake = asyncio.Event()
        self._turn: asyncio.Future[None] | None = None
        self._slabs = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to run batches."""
        self._task = asyncio.create_task(self._run(), name="engine")

    async def failed(self) -> None:
        """Never returns while all is well.

        Raises:
            Exception: What stopped the engine; rows may be half-way, so the process must end and its
                successor go on from the store.
        """
        assert self._task is not None, "the engine is not started"
        await asyncio.shield(self._task)

    async def close(self) -> None:
        """Stops after the batch in progress; what waits is not run."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown()

    def add(self, table: Table) -> None:
        """Serves a table's rows."""
        self._lanes[id(table)] = _Lane(table, Costs(BATCH_SECONDS))

    def remove(self, table: Table) -> None:
        """Serves it no longer; nothing of it may be queued."""
        del self._lanes[id(table)]

    def submit(self, table: Table, work: Work, priority: Priority) -> None:
        """Queues a work's chunks behind what their rows have queued."""
        lane = self._lanes[id(table)]
        work.number = next(self._numbers)
        lane.works[work.number] = work
        self.queued_bytes += work.nbytes
        table.lane.enqueue(work.rows, work.steps, work.number, priority, next(self._ages))
        self._wake.set()

    async def predict(
        self, graph: Predictor, inputs: Sequence[Array], axes: Sequence[int], output_axes: Sequence[int]
    ) -> list[Array]:
        """Runs a graph without rows; calls of equal shape share a batch. A cancelled call is not run.

        Args:
            graph: The graph.
            inputs: One array for every input, the graph's own axes.
            axes: The batch axis of each input; empty where the graph has none, then the call runs alone.
            output_axes: The batch axis of each output.

        Returns:
            One array for every output.

        Raises:
            BadTensor: The graph refuses the inputs.
        """
        if id(graph) not in self._predictions:
            self._predictions[id(graph)] = Predictions(graph, Costs(BATCH_SECONDS))
        outputs: asyncio.Future[list[Array]] = asyncio.get_running_loop().create_future()
        self._predictions[id(graph)].push(Prediction(list(inputs), axes, output_axes, outputs), next(self._ages))
        self._wake.set()
        return await outputs

    def forget(self, graph: Predictor) -> None:
        """Runs a graph no longer; calls that wait are cancelled."""
        queue = self._predictions.pop(id(graph), None)
        if queue is not None:
            queue.cancel()

    def cancel(self, table: Table, rows: Sequence[int], error: errors.StatestreamError) -> None:
        """Takes out what is queued for rows, but for what runs now; the sinks hear `error`."""
        self._end(self._lanes[id(table)], table.lane.cancel(rows), error)
        self._progress()

    async def settled(self, table: Table, rows: Ints) -> None:
        """Waits until nothing is queued for rows."""
        while not table.lane.idle(rows).all():
            if self._turn is None:
                self._turn = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._turn)

    def still(self) -> asyncio.Lock:
        """Held while slabs are read, written or grown from outside: `async with engine.still(): …`.

        The thread holds it while it runs a batch. Do not await inside.
        """
        return self._slabs

    @property
    def queued(self) -> int:
        """Chunks that wait or run."""
        return sum(lane.table.lane.queued for lane in self._lanes.values())

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            queues: list[_Lane | Predictions] = [*self._lanes.values(), *self._predictions.values()]
            choice = self.scheduler.choose(queues)
            if choice is None:
                self._wake.clear()
                continue
            started = time.perf_counter()
            if isinstance(choice.queue, Predictions):
                await self._predict(choice.queue)
            else:
                await self._step(choice.queue, choice.priority, choice.steps)
            self.scheduler.charge(choice.priority, time.perf_counter() - started)
            await asyncio.sleep(0)

    async def _call(self, predicted: float, function: Callable[[], object]) -> None:
        """Runs a batch here or on the thread."""
        if predicted < INLINE_SECONDS:
            function()
            return
        self.statistics.threaded += 1
        async with self._slabs:
            await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _progress(self) -> None:
        """Wakes those who wait for rows to settle."""
        if self._turn is not None:
            self._turn.set_result(None)
            self._turn = None

    async def _predict(self, queue: Predictions) -> None:
        batch = queue.take(MAX_BATCH)
        started = time.perf_counter()
        await self._call(queue.costs.predict(batch.rows), batch.run)
        seconds = time.perf_counter() - started
        queue.costs.observe(batch.rows, seconds)
        self._count(batch.rows, batch.rows, seconds)
        batch.deliver()

    async def _step(self, lane: _Lane, priority: Priority, steps: int) -> None:
        table = lane.table
        batch = table.lane.take(priority, steps, lane.costs.rows(steps, most=MAX_BATCH))
        run = _StepRun(lane, batch)
        started = time.perf_counter()
        await self._call(lane.costs.predict(len(batch.entries) * steps), run.run)
        seconds = time.perf_counter() - started
        lane.costs.observe(len(batch.entries) * steps, seconds)
        self._count(len(batch.entries), len(batch.entries) * steps, seconds)
        self._finish(lane, batch, run)

    def _count(self, rows: int, steps: int, seconds: float) -> None:
        statistics = self.statistics
        statistics.batches += 1
        statistics.rows += rows
        statistics.steps += steps
        statistics.seconds += seconds

    def _finish(self, lane: _Lane, batch: Slice, run: _StepRun) -> None:
        queue = lane.table.lane
        finished, failed = queue.advance(batch, run.bad, next(self._ages))
        for work, places in _by_work(lane, finished):
            work.sink.completed(work, places)
            self._forget(lane, work, len(places))
        self._free(lane, finished)
        for entry in failed.tolist():
            self._end(lane, np.asarray([entry]), run.error_of(entry))
        self._progress()

    def _end(self, lane: _Lane, entries: Ints, error: errors.StatestreamError) -> None:
        """Ends entries that were not applied."""
        self.statistics.failed += len(entries)
        for work, places in _by_work(lane, entries):
            work.sink.failed(work, places, error)
            self._forget(lane, work, len(places))
        self._free(lane, entries)

    def _free(self, lane: _Lane, entries: Ints) -> None:
        shadows = lane.table.lane.shadow[entries]
        if (shadows >= 0).any():
            lane.table.release(shadows[shadows >= 0])
        lane.table.lane.release(entries)

    def _forget(self, lane: _Lane, work: Work, count: int) -> None:
        work.pending -= count
        if not work.pending:
            self.queued_bytes -= work.nbytes
            del lane.works[work.number]


class _StepRun:
    """One batch of steps, from gather to scatter."""

    def __init__(self, lane: _Lane, batch: Slice) -> None:
        self._lane = lane
        self._batch = batch
        self.bad: Bools = np.zeros(len(batch.entries), np.bool_)
        self._refusals: dict[int, errors.StatestreamError] = {}
        table, queue, entries = lane.table, lane.table.lane, batch.entries
        rows, done = queue.row[entries], queue.done[entries]
        first, last = done == 0, done + batch.steps >= queue.steps[entries]
        fresh = ~last & (queue.shadow[entries] < 0)
        if fresh.any():
            queue.shadow[entries[fresh]] = table.allocate(int(fresh.sum()), scratch=True)
        shadow = queue.shadow[entries]
        self._source: Ints = np.where(first, rows, shadow)
        self._target: Ints = np.where(last, rows, shadow)
        self._groups = [(work, places, at) for work, places, at in _by_work_at(lane, entries)]

    def run(self) -> None:
        """Gathers, runs the model, commits good rows, keeps the outputs in the works."""
        steps, queue = self._batch.steps, self._lane.table.lane
        done = queue.done[self._batch.entries]
        gathered = [work.gather(places, done[at], steps) for work, places, at in self._groups]
        if len(gathered) == 1:
            inputs = gathered[0]
        else:
            inputs = [np.concatenate(arrays) for arrays in zip(*gathered, strict=True)]
        # Rows in the order of the groups, as the inputs are.
        order = np.concatenate([at for _, _, at in self._groups]) if len(self._groups) > 1 else self._groups[0][2]
        outputs, bad = self._run(self._source[order], self._target[order], inputs)
        self.bad[order] = bad
        start = 0
        for work, places, at in self._groups:
            end = start + len(at)
            work.scatter(places, done[at], steps, [array[start:end] for array in outputs])
            start = end

    def error_of(self, entry: int) -> errors.StatestreamError:
        """Why an entry of this batch failed."""
        refusal = self._refusals.get(int(self._lane.table.lane.row[entry]))
        if refusal is not None:
            return refusal
        return errors.NonFiniteState(
            "the chunk would have put a value that is not finite into the state; the session stays before the chunk."
            " Look for NaN, infinity or very large numbers in the inputs"
        )

    def _run(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        rows = self._lane.table.rows
        try:
            return rows.step(source, target, inputs)
        except Exception as error:
            # The model itself refused something (a token beyond its table, say). Alone, only the
            # guilty rows are refused.
            if len(source) > 1:
                half = len(source) // 2
                left = self._run(source[:half], target[:half], [array[:half] for array in inputs])
                right = self._run(source[half:], target[half:], [array[half:] for array in inputs])
                return [np.concatenate(pair) for pair in zip(left[0], right[0], strict=True)], np.concatenate(
                    [left[1], right[1]]
                )
            log.warning("model %r refused a chunk: %s", self._lane.table.model.name, error)
            self._refusals[self._session_row(int(source[0]), int(target[0]))] = errors.BadTensor(
                f"the model cannot run these inputs: {error}", metadata={"field": "inputs"}
            )
            return self._no_outputs(inputs), np.ones(1, np.bool_)

    def _no_outputs(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs that nobody will see, in the shape of real ones."""
        lead = inputs[0].shape[:2]
        outputs = self._lane.table.model.signature.outputs
        return [np.zeros((*lead, *np.maximum(step_shape(spec), 1)), numpy_dtype(spec.dtype)) for spec in outputs]

    def _session_row(self, source: int, target: int) -> int:
        queue, entries = self._lane.table.lane, self._batch.entries
        at = int(np.flatnonzero((self._source == source) & (self._target == target))[0])
        return int(queue.row[entries[at]])


def _by_work_at(lane: _Lane, entries: Ints) -> list[tuple[Work, Ints, Ints]]:
    """Groups entries by work: the work, the places in it, and the indices into `entries`."""
    if not len(entries):
        return []
    queue = lane.table.lane
    numbers, places = queue.work[entries], queue.place[entries]
    if (numbers == numbers[0]).all():
        return [(lane.works[int(numbers[0])], places, np.arange(len(entries)))]
    order = np.argsort(numbers, kind="stable")
    cuts = np.flatnonzero(np.diff(numbers[order])) + 1
    return [(lane.works[int(numbers[at[0]])], places[at], at) for at in np.split(order, cuts)]


def _by_work(lane: _Lane, entries: Ints) -> list[tuple[Work, Ints]]:
    return [(work, places) for work, places, _ in _by_work_at(lane, entries)]
