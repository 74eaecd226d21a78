"""Mixed load without pause, and ONNX Runtime alone as the judge of some of its outputs."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import statestream
from benchmarks.raw import open_graph, start_states
from statestream import errors

FEATURES = 8
JUDGED = 4
"""Sessions of a pool whose outputs are compared."""


class Judge:
    """What a model gives for the same inputs without server, sessions and neighbours."""

    def __init__(self, path: Path, batch: int) -> None:
        self._graph = open_graph(str(path))
        self._states = start_states(self._graph, batch)

    def step(self, x: np.ndarray) -> np.ndarray:
        """x [B, T, F] to y [B, T, O]; the states go on."""
        y, *new = self._graph.run(None, {"x": x, **self._states})
        self._states = dict(zip(self._states, new, strict=True))
        return np.asarray(y)


class Load:
    """Everything that callers do, each kind in a loop of its own until `end`.

    Attributes:
        done: How often each thing was done.
        compared: Outputs that were compared with ONNX Runtime alone.
        different: Those whose bits differed.
    """

    def __init__(self, address: str, models: Path, end: float, *, leak: bool = False) -> None:
        """Load for the server at `address`, until `time.monotonic()` is `end`.

        Args:
            address: The server.
            models: Its models folder, made by models.py.
            end: When to stop.
            leak: Never closes what the loop of comings and goings opens; a soak must find that.
        """
        self.done: Counter[str] = Counter()
        self.compared = 0
        self.different = 0
        self._address = address
        self._models = models
        self._end = end
        self._leak = leak
        self._kept: list[Any] = []

    async def run(self) -> None:
        """Runs all loops; the first that fails ends it."""
        async with (
            statestream.aio.connect(self._address) as client,
            statestream.aio.connect(self._address) as other,
            asyncio.TaskGroup() as group,
        ):
            loops: list[Callable[[Any, np.random.Generator], Awaitable[None]]] = [
                self._pool,
                self._feed_of_a_pool,
                self._some_of_a_pool,
                self._tasks,
                self._comings_and_goings,
                self._named,
                self._forecasts,
                self._predictions,
                self._refusals,
                self._forks,
            ]
            for seed, loop in enumerate(loops):
                group.create_task(self._guarded(loop, (client, other)[seed % 2], seed))

    async def _guarded(self, loop: Any, client: Any, seed: int) -> None:
        await loop(client, np.random.default_rng(seed))

    def _going(self) -> bool:
        return time.monotonic() < self._end

    def _judge(self, batch: int) -> Judge:
        return Judge(self._models / "lstm" / "1" / "model.onnx", batch)

    def _compare(self, ours: np.ndarray, judge: Judge, x: np.ndarray) -> None:
        wanted = judge.step(x)
        self.compared += wanted.size
        self.different += int((np.asarray(ours).reshape(wanted.shape) != wanted).sum())

    async def _pool(self, client: Any, random: np.random.Generator) -> None:
        judge = self._judge(JUDGED)
        async with client.sessions("lstm", 64) as pool:
            while self._going():
                x = random.normal(size=(64, int(random.integers(1, 20)), FEATURES)).astype(np.float32)
                self._compare((await pool.step(x))[:JUDGED], judge, x[:JUDGED])
                self.done["steps of pools"] += x.shape[0] * x.shape[1]

    async def _feed_of_a_pool(self, client: Any, random: np.random.Generator) -> None:
        judge, under_way = self._judge(JUDGED), deque[np.ndarray]()

        def feed() -> Iterator[np.ndarray]:
            while self._going():
                under_way.append(random.normal(size=(64, int(random.integers(1, 20)), FEATURES)).astype(np.float32))
                yield under_way[-1]

        async with client.sessions("lstm", 64) as pool:
            async for y in pool.stream(feed(), ahead=3):
                x = under_way.popleft()
                self._compare(y[:JUDGED], judge, x[:JUDGED])
                self.done["steps of pools"] += x.shape[0] * x.shape[1]

    async def _some_of_a_pool(self, client: Any, random: np.random.Generator) -> None:
        async with client.sessions("lstm", 512) as pool:
            while self._going():
                rows = random.permutation(512)[: random.integers(1, 512)]
                await pool.step(np.ones((len(rows), FEATURES), np.float32), rows=rows)
                self.done["steps of pools"] += len(rows)

    async def _tasks(self, client: Any, random: np.random.Generator) -> None:
        async def one(number: int) -> None:
            judge = self._judge(1)
            async with client.session("lstm") as session:
                while self._going():
                    x = random.normal(size=FEATURES).astype(np.float32)
                    y = await session.step(x)
                    if number < JUDGED:
                        self._compare(y, judge, x[np.newaxis, np.newaxis])
                    self.done["awaited steps"] += 1

        await asyncio.gather(*(one(number) for number in range(32)))

    async def _comings_and_goings(self, client: Any, random: np.random.Generator) -> None:
        while self._going():
            count = int(random.integers(1, 200))
            opening = client.sessions("lstm", count)
            pool = await opening.__aenter__()
            await pool.step(np.ones((count, FEATURES), np.float32))
            self.done["sessions opened"] += count
            if self._leak:
                self._kept.append(pool)
                continue
            await pool.close()

    async def _named(self, client: Any, random: np.random.Generator) -> None:
        while self._going():
            async with client.session("lstm", f"soak-{random.integers(20)}") as session:
                await session.step(np.ones((3, FEATURES), np.float32))
                self.done["named sessions resumed"] += 1
        for number in range(20):
            async with client.session("lstm", f"soak-{number}") as session:
                await session.delete()

    async def _forecasts(self, client: Any, random: np.random.Generator) -> None:
        while self._going():
            await client.forecast("loop", random.normal(size=(8, 2)).astype(np.float32), 12)
            self.done["forecasts"] += 1
            await asyncio.sleep(0.01)

    async def _predictions(self, client: Any, random: np.random.Generator) -> None:
        x = random.normal(size=(4, 1, 28, 28)).astype(np.float32)
        while self._going():
            await client.predict("convnet", x)
            self.done["predictions"] += 1
            await asyncio.sleep(0.01)

    async def _refusals(self, client: Any, random: np.random.Generator) -> None:
        judge = self._judge(1)
        bad = np.full((5, FEATURES), np.nan, np.float32)
        async with client.session("lstm") as session:
            while self._going():
                x = random.normal(size=(5, FEATURES)).astype(np.float32)
                self._compare(await session.step(x), judge, x[np.newaxis])
                try:
                    await session.step(bad)
                except (errors.NonFiniteState, errors.BadTensor):
                    self.done["chunks refused"] += 1
                await asyncio.sleep(0.01)

    async def _forks(self, client: Any, random: np.random.Generator) -> None:
        async with client.session("lstm") as session:
            while self._going():
                x = random.normal(size=(2, FEATURES)).astype(np.float32)
                await session.step(x)
                async with await session.fork() as twin:
                    await twin.step(x)
                self.done["forks"] += 1
                await asyncio.sleep(0.01)
