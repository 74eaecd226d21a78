"""A drive: rows that the server steps by itself, each next input made by a policy of the last outputs.

Forecasts, texts and whatever else runs on without a caller's input are drives: they differ in their policy alone. The
rows are rows of the engine's batch as any other; what is told is told as its reader takes it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Generic, NamedTuple, ParamSpec, Protocol, TypeVar

import numpy as np

from statestream.contract.signature import forecast_outputs
from statestream_server.arrays import Array, Ints
from statestream_server.drivers import waiting
from statestream_server.drivers.bounds import driving
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import Table
from statestream_server.engine.work import Priority
from statestream_server.settings import Limits

_TURN_BYTES = 256 << 10
"""Bytes of rows that are read, written or copied in one turn of the loop; more would hold the others up."""
_TURN_ROWS = 4096
"""The most rows, whatever they have."""
_ASIDE = 2048
"""Rows from which on a policy thinks on a thread of its own."""

P = ParamSpec("P")
T = TypeVar("T")


class Move(NamedTuple, Generic[T]):
    """What a policy makes of the last outputs.

    Attributes:
        told: What its caller is told; None for nothing.
        inputs: What the rows that go on get next: one array for every input of the signature, each
            [R, T, ...one step]. None where the drive is over.
        parents: [R] for each row that goes on the place of the row that it goes on from: one that is named more than
            once is forked, one that is not named is freed. None where all go on from themselves.
    """

    told: T | None
    inputs: Sequence[Array] | None = None
    parents: Ints | None = None


class Policy(Protocol[T]):
    """What makes next inputs of outputs.

    It depends on what it was made with, on the outputs, and on nothing else: not on time, not on what runs beside. So
    a drive that begins anew from where it began, here or elsewhere, tells the same, and `roll` can go on in the middle.
    """

    def next(self, step: int, outputs: Sequence[Array]) -> Move[T]:
        """The move of a step.

        Args:
            step: 0 for the first, then one more each time.
            outputs: What `Drive.step` gave, [R, ...one step] each; of the first step what `roll` was given.
        """


class Drive:
    """Rows of one table, from `async with` to its end, whatever ends it: then they are free at once."""

    def __init__(
        self,
        engine: Engine,
        table: Table,
        limits: Limits,
        priority: Priority,
        outputs: Sequence[str],
        most: int,
        *,
        weight: int = 0,
    ) -> None:
        """A drive without rows yet.

        Args:
            engine: What runs them.
            table: Whose rows they are.
            limits: How many all drives may have.
            priority: The class of their work.
            outputs: The outputs that `step` gives, by name.
            most: The most rows that it will have at a time.
            weight: As how many rows they count where a policy looks at them, if as more.
        """
        self.table = table
        self.rows: Ints = np.empty(0, np.int64)
        """[R] the rows, in the policy's order."""
        self.most = most
        """The most rows that it will have at a time."""
        self.weight = max(most, weight)
        """As how many rows they count where a policy looks at them."""
        self._engine = engine
        self._limits = limits
        self._priority = priority
        names = [spec.name for spec in table.model.signature.outputs]
        self._outputs = [names.index(name) for name in outputs]
        self._row_bytes = sum(column.dtype.itemsize * math.prod(column.shape) for column in table.rows.columns)
        self._fresh: Ints = np.empty(0, np.int64)
        self._counted = ExitStack()

    async def __aenter__(self) -> Drive:
        """Counts its rows.

        Raises:
            TooManySessions: With those under way there would be too many.
        """
        self._counted.enter_context(driving(self.table, self.most, self._limits))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Frees its rows; nothing of them is queued any more."""
        self._counted.close()
        held = np.concatenate([self.rows, self._fresh])
        self.rows = self._fresh = np.empty(0, np.int64)
        self.table.release(held, scratch=True)

    async def begin(self, tags: Array | int, values: Sequence[Array] | None = None, count: int = 1) -> None:
        """Takes rows.

        Args:
            tags: [R] or one: what stands for them where work is noted.
            values: What they hold, for every column but sparse ones [R, ...]; where left out they are as new sessions.
            count: R.

        Raises:
            TooManySessions: There is no memory for them.
        """
        await self._allocate(count)
        self.rows, self._fresh = self._fresh, self.rows
        self.table.tag[self.rows] = tags
        async for cut in self._slices(count):
            async with self._engine.still():
                if values is None:
                    self.table.rows.reset(self.rows[cut])
                else:
                    self.table.rows.write(self.rows[cut], [value[cut] for value in values])

    async def last(self) -> list[Array]:
        """The last step of every output that forecasts start from, [R, ...] each."""
        signature = self.table.model.signature
        return await self.read(len(signature.states), len(forecast_outputs(signature)))

    async def read(self, first: int = 0, count: int | None = None) -> list[Array]:
        """What the rows hold, for `count` columns from the `first` on [R, ...]; see `Rows`."""
        chosen = slice(first, None if count is None else first + count)
        parts = []
        async for cut in self._slices(len(self.rows)):
            async with self._engine.still():
                parts.append(self.table.rows.read(self.rows[cut])[chosen])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    async def warm(self, steps: Ints, inputs: Sequence[Array]) -> None:
        """Steps the rows through past inputs: `steps` [R] each, for every input packed [S, ...one step].

        Raises:
            StatestreamError: Some were refused.
        """
        await waiting.run(self._engine, self.table, self.rows, steps, list(inputs), self._priority, wanted=False)

    async def step(self, inputs: Sequence[Array]) -> list[Array]:
        """Steps the rows: T steps each, for every input [R, T, ...one step]. The last outputs, [R, ...one step] each.

        Raises:
            StatestreamError: Some were refused.
        """
        count, steps = len(self.rows), inputs[0].shape[1]
        packed = [array.reshape(-1, *array.shape[2:]) for array in inputs]
        lengths = np.full(count, steps, np.int64)
        found = await waiting.run(self._engine, self.table, self.rows, lengths, packed, self._priority)
        return [found[place].reshape(count, steps, *found[place].shape[1:])[:, -1] for place in self._outputs]

    async def follow(self, parents: Ints) -> None:
        """Makes the rows those that a move names: forks what goes on more than once, frees what does not go on.

        Raises:
            TooManySessions: There is no memory for them.
        """
        named, first = np.unique(parents, return_index=True)
        rows = np.full(len(parents), -1, np.int64)
        rows[first] = self.rows[named]
        idle = np.delete(self.rows, named)
        copies = np.flatnonzero(rows < 0)
        if len(copies) > len(idle):
            await self._allocate(len(copies) - len(idle))
        targets = np.concatenate([idle, self._fresh])
        sources, used = self.rows[parents[copies]], targets[: len(copies)]
        self.table.tag[used] = self.table.tag[sources]
        async for cut in self._slices(len(copies)):
            async with self._engine.still():
                self.table.rows.copy(sources[cut], used[cut])
        rows[copies] = used
        self.rows, self._fresh = rows, np.empty(0, np.int64)
        self.table.release(targets[len(copies) :], scratch=True)

    async def add(self, sources: Ints) -> None:
        """Takes more rows, as copies of other rows of the table that stay as they are meanwhile.

        Raises:
            TooManySessions: There is no memory for them.
        """
        await self._allocate(len(sources))
        self.table.tag[self._fresh] = self.table.tag[sources]
        async for cut in self._slices(len(sources)):
            async with self._engine.still():
                self.table.rows.copy(sources[cut], self._fresh[cut])
        self.rows, self._fresh = np.concatenate([self.rows, self._fresh]), np.empty(0, np.int64)

    async def _allocate(self, count: int) -> None:
        """Puts rows that nobody has into `_fresh`, so that they are freed whatever comes."""
        async with self._engine.still():
            self._fresh = self.table.allocate(count, scratch=True)

    async def _slices(self, count: int) -> AsyncGenerator[slice, None]:
        """Rows 0 … count - 1 in parts, each in a turn of the loop."""
        each = max(1, min(_TURN_ROWS, _TURN_BYTES // max(1, self._row_bytes)))
        for low in range(0, count, each):
            if low:
                await asyncio.sleep(0)
            yield slice(low, min(low + each, count))


async def roll(drive: Drive, policy: Policy[T], outputs: Sequence[Array], begin: int = 0) -> AsyncGenerator[T, None]:
    """Drives rows until their policy ends it. Nothing runs ahead of who reads.

    Args:
        drive: The rows.
        policy: What they get.
        outputs: What its first step sees.
        begin: The first step that is told: those before it were told elsewhere.

    Yields:
        What the policy tells.

    Raises:
        StatestreamError: A step was refused, or there is no memory for a fork.
    """
    step = 0
    while True:
        move = await aside(drive.weight, policy.next, step, outputs)
        if move.told is not None and step >= begin:
            yield move.told
        if move.inputs is None:
            return
        if move.parents is not None:
            await drive.follow(move.parents)
        outputs = await drive.step(move.inputs)
        step += 1


async def aside(rows: int, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a function that looks at so many rows: where they are many on a thread, or everything else would wait."""
    if rows < _ASIDE:
        return do(*args, **kwargs)
    return await asyncio.to_thread(do, *args, **kwargs)
