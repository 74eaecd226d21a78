"""A crowd: callers of one tenant in a process of their own, so that what they take of their core delays nobody else's.

`python -m benchmarks.crowd ADDRESS TOKEN NAME CORE NICE` is told line by line what to do, `sessions COUNT 0` (which are
stepped by turns from then on), `closed COUNT SECONDS` or `open RATE SECONDS`, and says a line of JSON when it is done;
`Crowd` is its other end.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final

import grpc
import numpy as np

from benchmarks.cases import run
from benchmarks.processes import Process
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc as stubs
from statestream.v1.tensor_pb2 import Tensor

MODEL: Final = "lstm-wide"
STEPS: Final = 16
"""Steps of one call: so many that the model is what is overloaded, and a generator in Python can do twice the peak."""
USELESS: Final = 1.0
"""Seconds after which an answer is useless."""
_TOGETHER: Final = 32
"""Sessions that are opened at a time."""
_AGAIN: Final = 0.1
"""Seconds that a caller in closed loop waits who was refused."""
_CODE: Final = grpc.StatusCode.RESOURCE_EXHAUSTED
_DROPPED: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What callers hear of calls that gRPC's core drops."""


@dataclass
class Seen:
    """What became of calls.

    Attributes:
        good: Seconds from when a call was due to its answer, of those that had one in time, and before the end.
        refused: How many were refused at once.
        late: How many were not answered in time, or dropped.
        behind: Seconds by which calls were begun too late, at the 99th percentile.
        busy: Seconds of processor time of the callers for each second.
    """

    good: list[float] = field(default_factory=list)
    refused: int = 0
    late: int = 0
    behind: float = 0.0
    busy: float = 0.0

    def at(self, quantile: float) -> float:
        """Milliseconds at a quantile."""
        return 1e3 * float(np.quantile(self.good, quantile)) if self.good else float("nan")


class Crowd:
    """The callers of one tenant, in another process."""

    def __init__(self, server: Process, token: str, name: str, core: int, nice: int = 0) -> None:
        """Starts it on a core; the higher `nice`, the more it leaves to others there."""
        command = [sys.executable, "-m", "benchmarks.crowd", server.address, token, name, str(core), str(nice)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
        )

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()

    def begin(self, kind: str, amount: float, seconds: float) -> None:
        """Has it do something; `end` says what came of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind} {amount} {seconds}\n")
        self._process.stdin.flush()

    def end(self) -> Seen:
        """What came of it, once it is done."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the callers failed; their own message is above")
        return Seen(**json.loads(line))

    def sessions(self, count: int) -> None:
        """Opens sessions; not more calls than these are under way at a time."""
        self.begin("sessions", count, 0)
        self.end()

    def closed(self, count: int, seconds: float) -> Seen:
        """So many callers, each of whom waits for its answer before it calls again."""
        self.begin("closed", count, seconds)
        return self.end()

    def open(self, rate: float, seconds: float) -> Seen:
        """Calls at a rate a second, whatever became of the ones before."""
        self.begin("open", rate, seconds)
        return self.end()


class _Callers:
    """Calls of one tenant, each on a session that has none under way."""

    def __init__(self, channel: grpc.aio.Channel, token: str, name: str) -> None:
        self._stub = stubs.InferenceServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._name = name
        self._free = deque[tuple[str, int]]()
        x = np.random.default_rng(0).normal(size=(STEPS, 8)).astype(np.float32)
        self._inputs = [Tensor(name="x", dtype="float32", shape=x.shape, data=x.tobytes())]

    async def sessions(self, count: float, _seconds: float) -> Seen:
        seen, new = Seen(), iter(range(int(count)))

        async def one() -> None:
            for number in new:
                self._free.appendleft((f"{self._name}-{number}", 0))
                await self._call(seen, time.perf_counter())

        await asyncio.gather(*(one() for _ in range(_TOGETHER)))
        return seen

    async def _call(self, seen: Seen, due: float, end: float = math.inf) -> None:
        if not self._free:
            seen.late += 1
            await asyncio.sleep(0.002)
            return
        session, position = self._free.popleft()
        request = pb.StepRequest(
            model=MODEL, session_id=session, position=position, acked_position=position, inputs=self._inputs
        )
        try:
            reply = await self._stub.Step(request, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is _CODE:
                seen.refused += 1
                self._free.append((session, position))
            elif error.code() in _DROPPED:
                seen.late += 1  # And where its session stands is not known.
            else:
                raise
        else:
            self._free.append((session, reply.position))
            now = time.perf_counter()
            if now - due > USELESS:
                seen.late += 1
            elif now <= end:
                seen.good.append(now - due)

    async def closed(self, count: float, seconds: float) -> Seen:
        seen, end = Seen(), time.perf_counter() + seconds

        async def one() -> None:
            while (now := time.perf_counter()) < end:
                before = seen.refused
                await self._call(seen, now, end)
                if seen.refused > before:
                    await asyncio.sleep(_AGAIN)

        await asyncio.gather(*(one() for _ in range(int(count))))
        return seen

    async def open(self, rate: float, seconds: float) -> Seen:
        seen, began, begun, tasks = Seen(), time.perf_counter(), 0, set[asyncio.Task[None]]()
        behind, most = list[float](), len(self._free)
        while (now := time.perf_counter()) < began + seconds:
            while begun < (now - began) * rate:
                due = began + begun / rate
                if len(tasks) >= most:
                    seen.late += 1
                else:
                    task = asyncio.create_task(self._call(seen, due, began + seconds))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                    behind.append(time.perf_counter() - due)
                begun += 1
            await asyncio.sleep(0.002)
        await asyncio.gather(*tasks)
        seen.behind = float(np.quantile(behind, 0.99))
        return seen


async def _listen(address: str, token: str, name: str) -> None:
    loop = asyncio.get_running_loop()
    async with grpc.aio.insecure_channel(address) as channel:
        callers = _Callers(channel, token, name)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            kind, amount, seconds = line.split()
            began, used = time.perf_counter(), time.process_time()
            seen = await getattr(callers, kind)(float(amount), float(seconds))
            seen.busy = (time.process_time() - used) / (time.perf_counter() - began)
            print(json.dumps(asdict(seen)), flush=True)


if __name__ == "__main__":
    _address, _token, _name, _core, _nice = sys.argv[1:]
    os.sched_setaffinity(0, [int(_core)])
    os.nice(int(_nice))
    run(_listen(_address, _token, _name))
