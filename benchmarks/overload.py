"""What more load than there is room for costs: goodput and waits at twice the peak, and a tenant beside a flood.

`python -m benchmarks.overload` gives the server one core and the generator another. The peak is what callers in closed
loop get; then calls come at twice that rate, whatever became of the ones before, and each that is not answered within a
second is lost. With --docs it writes its section of docs/benchmarks.md.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import grpc
import numpy as np

from benchmarks import figures, models, page, processes
from benchmarks.cases import run
from benchmarks.processes import Process
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc as stubs
from statestream.v1.tensor_pb2 import Tensor
from statestream_server.access import tokens

MODEL: Final = "lstm-wide"
STEPS: Final = 16
"""Steps of one call: so many that the model is what is overloaded, and a generator in Python can do twice the peak."""
CALLERS: Final = 128
"""Callers in closed loop, for the peak."""
MOST: Final = 8192
"""Calls that are under way at most at the generator."""
USELESS: Final = 1.0
"""Seconds after which an answer is useless."""
VICTIM: Final = 4
"""Callers in closed loop of the tenant beside the flood."""
AGAIN: Final = 0.1
"""Seconds that a caller in closed loop waits who was refused."""
_CODE: Final = grpc.StatusCode.RESOURCE_EXHAUSTED


@dataclass
class Seen:
    """What became of calls.

    Attributes:
        good: Seconds from when a call was due to its answer, of those that had one in time.
        refused: How many were refused at once.
        late: How many were not answered in time.
    """

    good: list[float] = field(default_factory=list)
    refused: int = 0
    late: int = 0

    def at(self, quantile: float) -> float:
        """Milliseconds at a quantile."""
        return 1e3 * float(np.quantile(self.good, quantile)) if self.good else float("nan")


class Caller:
    """Calls of one tenant, each on a session that has none under way."""

    def __init__(self, channel: grpc.aio.Channel, token: str, name: str) -> None:
        """No session yet."""
        self._stub = stubs.InferenceServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._name = name
        self._free = deque[tuple[str, int]]()
        self._made = 0
        x = np.random.default_rng(0).normal(size=(STEPS, 8)).astype(np.float32)
        self._inputs = [Tensor(name="x", dtype="float32", shape=x.shape, data=x.tobytes())]
        self.under_way = 0

    async def call(self, seen: Seen, due: float) -> None:
        """One call; a session is used again where it is known where it stands."""
        if self._free:
            session, position = self._free.popleft()
        else:
            self._made += 1
            session, position = f"{self._name}-{self._made}", 0
        request = pb.StepRequest(
            model=MODEL, session_id=session, position=position, acked_position=position, inputs=self._inputs
        )
        self.under_way += 1
        try:
            reply = await self._stub.Step(request, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is _CODE:
                seen.refused += 1
                self._free.append((session, position))
            else:
                raise
        else:
            self._free.append((session, reply.position))
            passed = time.perf_counter() - due
            if passed <= USELESS:
                seen.good.append(passed)
            else:
                seen.late += 1
        finally:
            self.under_way -= 1

    async def closed(self, count: int, seconds: float) -> Seen:
        """So many callers that wait for their answers."""
        seen, end = Seen(), time.perf_counter() + seconds

        async def one() -> None:
            while (now := time.perf_counter()) < end:
                before = seen.refused
                await self.call(seen, now)
                if seen.refused > before:
                    await asyncio.sleep(AGAIN)

        await asyncio.gather(*(one() for _ in range(count)))
        return seen

    async def open(self, rate: float, seconds: float) -> Seen:
        """Calls at a rate, whatever became of the ones before."""
        seen, began, begun, tasks = Seen(), time.perf_counter(), 0, set[asyncio.Task[None]]()
        while (now := time.perf_counter()) < began + seconds:
            while begun < (now - began) * rate:
                if self.under_way >= MOST:
                    seen.late += 1
                else:
                    task = asyncio.create_task(self.call(seen, began + begun / rate))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                begun += 1
            await asyncio.sleep(0.002)
        await asyncio.gather(*tasks)
        return seen


async def _measure(server: Process, secrets: dict[str, str], seconds: float, rounds: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {}

    def note(**values: float) -> None:
        for name, value in values.items():
            found.setdefault(name, []).append(value)

    async with (
        grpc.aio.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as one,
        grpc.aio.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as other,
    ):
        flood, victim = Caller(one, secrets["flood"], "a"), Caller(other, secrets["victim"], "b")
        await flood.closed(CALLERS, 1.0)
        await victim.closed(VICTIM, 0.3)
        for _ in range(rounds):
            peak = await flood.closed(CALLERS, seconds)
            rate = len(peak.good) / seconds
            over = await flood.open(2 * rate, seconds)
            note(
                peak=rate, peak_p99=peak.at(0.99), goodput=len(over.good) / seconds,
                ratio=len(over.good) / len(peak.good), over_p50=over.at(0.5), over_p99=over.at(0.99),
                refused=over.refused / seconds, late=over.late / seconds,
            )  # fmt: skip
            alone = await victim.closed(VICTIM, seconds)
            beside, _ = await asyncio.gather(victim.closed(VICTIM, seconds), flood.open(2 * rate, seconds))
            note(
                alone_p50=alone.at(0.5), alone_p99=alone.at(0.99),
                beside_p50=beside.at(0.5), beside_p99=beside.at(0.99),
                beside_refused=beside.refused, times=beside.at(0.99) / alone.at(0.99),
            )  # fmt: skip
    return {
        name: [figures.rounded(float(f(values))) for f in (np.median, np.min, np.max)] for name, values in found.items()
    }


def measure(folder: Path, seconds: float, rounds: int, edge: str) -> dict[str, Any]:
    """Measures on a server of its own, which has the first core, while this process has another."""
    models.make(folder / "models")
    file, secrets = folder / "tokens.toml", {}
    for tenant in ("flood", "victim"):
        secrets[tenant], _ = tokens.new(file, tenant, frozenset({tokens.STEP}), time.time() + 86_400)
    file.write_text("[limits]\ncalls = 100_000\nsessions = 100_000\n\n" + file.read_text())
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])  # The server inherits it.
    with processes.statestream(folder / "models", folder, "--edge", edge, "--tokens", str(file)) as server:
        os.sched_setaffinity(0, cores[1:2] or cores)
        try:
            return run(_measure(server, secrets, seconds, rounds))  # type: ignore[no-any-return]
        finally:
            os.sched_setaffinity(0, cores)


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Everything is measured so often; medians count.")
@click.option("--seconds", default=3.0, show_default=True, help="How long each measurement takes.")
@click.option("--edge", default="h2", show_default=True, type=click.Choice(["h2", "grpcio"]))
@click.option("--docs", is_flag=True, help="Writes the section of docs/benchmarks.md.")
def main(rounds: int, seconds: float, edge: str, docs: bool) -> None:
    """Measures what twice as many calls as there is room for come to, and what a flood costs another tenant."""
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), seconds, rounds, edge)
    click.echo(page.overload(found))
    if docs:
        figures.update({"overload": found})
        page.write()


if __name__ == "__main__":
    main()
