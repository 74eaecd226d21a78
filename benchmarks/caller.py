"""What pairs.py has a process of its own call: one load on a server through the public client.

`python benchmarks/caller.py LOAD ADDRESS SERVER_PID AMOUNT` prints {"done", "server", "client", "seconds"}: how much
was done, and the processor seconds of server and client for it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import statestream

FEATURES = 8
_TASKS = 256
_POOL = 1024


def _cpu(pid: int) -> float:
    """Seconds, to the nanosecond of the scheduler's own account, over all threads."""
    return sum(int((task / "schedstat").read_text().split()[0]) / 1e9 for task in Path(f"/proc/{pid}/task").iterdir())


class Caller:
    """One connected client and its loads; each does about so much and tells how much it did."""

    def __init__(self, address: str, pid: int) -> None:
        """A caller of the server at `address`, which is the process `pid`."""
        self._address = address
        self._pid = pid
        self.figures: dict[str, float] = {}

    def lone(self, amount: int) -> None:
        """One session, one awaited step at a time."""
        x = np.zeros(FEATURES, np.float32)
        with statestream.connect(self._address) as client, client.session("lstm") as session:

            def steps(count: int) -> None:
                for _ in range(count):
                    session.step(x)

            steps(200)
            self._measure(lambda: steps(amount), amount)

    def tasks(self, amount: int) -> None:
        """256 tasks, each awaits single steps of a session of its own."""

        async def main() -> None:
            x = np.zeros(FEATURES, np.float32)
            async with statestream.aio.connect(self._address) as client:
                sessions = [await client.session("lstm") for _ in range(_TASKS)]

                async def steps(session: object, count: int) -> None:
                    for _ in range(count):
                        await session.step(x)  # type: ignore[attr-defined]

                async def all_of(count: int) -> None:
                    await asyncio.gather(*(steps(session, count) for session in sessions))

                await all_of(20)
                begun = self._now()
                await all_of(amount // _TASKS)
                self._note(begun, amount // _TASKS * _TASKS)

        asyncio.run(main())

    def pool(self, amount: int) -> None:
        """A pool of 1,024, a step of each a frame, three frames under way."""
        self._pool(amount, (_POOL, FEATURES), _POOL)

    def chunks(self, amount: int) -> None:
        """A pool of 256, 16 steps of each a frame, three frames under way."""
        self._pool(amount, (256, 16, FEATURES), 256)

    def opens(self, amount: int) -> None:
        """A pool that is opened and closed."""
        with statestream.connect(self._address) as client:
            with client.sessions("lstm", 1000):
                pass

            def run() -> None:
                with client.sessions("lstm", amount):
                    pass

            self._measure(run, amount)

    def predict(self, amount: int) -> None:
        """Predictions of one image by 16 tasks."""

        async def main() -> None:
            x = np.zeros((1, 1, 28, 28), np.float32)
            async with statestream.aio.connect(self._address) as client:

                async def calls(count: int) -> None:
                    for _ in range(count):
                        await client.predict("convnet", x)

                await calls(20)
                begun = self._now()
                await asyncio.gather(*(calls(amount // 16) for _ in range(16)))
                self._note(begun, amount // 16 * 16)

        asyncio.run(main())

    def _pool(self, amount: int, shape: tuple[int, ...], sessions: int) -> None:
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        steps = int(np.prod(shape[:-1]))
        with statestream.connect(self._address) as client, client.sessions("lstm", sessions) as pool:

            def run(frames: int) -> None:
                for _ in pool.stream((x for _ in range(frames)), ahead=3):
                    pass

            run(10)
            self._measure(lambda: run(max(1, amount // steps)), max(1, amount // steps) * steps)

    def _measure(self, run: Callable[[], None], done: int) -> None:
        begun = self._now()
        run()
        self._note(begun, done)

    def _now(self) -> tuple[float, float, float]:
        return _cpu(self._pid), time.process_time(), time.perf_counter()

    def _note(self, begun: tuple[float, float, float], done: int) -> None:
        server, client, seconds = (now - then for now, then in zip(self._now(), begun, strict=True))
        self.figures = {"done": done, "server": server, "client": client, "seconds": seconds}


if __name__ == "__main__":
    load, address, pid, amount = sys.argv[1:]
    caller = Caller(address, int(pid))
    getattr(caller, load)(int(amount))
    print(json.dumps(caller.figures))
