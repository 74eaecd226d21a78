"""What a step, a record and a take-over cost on this machine, and runs of two and three replicas to compare with."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import statestream
from benchmarks import processes
from benchmarks.load import FEATURES
from benchmarks.processes import Process
from benchmarks.scale.fleet import Setting, calls
from tests.server.stores.redis_server import Server as Redis
from tests.server.stores.redis_server import redis_server

MODEL = "lstm"
SMALL, LARGE, STREAMS = 50, 1000, 8
"""Frames of two sizes tell what a frame costs and what a step in it."""
PERIOD, SECONDS = 0.1, 2.5
MANY = 20_000
"""Records of a large save."""
NEVER = "3600"
"""Seconds between checkpoints where the measurement says itself when it saves."""


@dataclass
class Stream:
    """One client with a pool of sessions, which step once in each period; what fell due meanwhile goes together."""

    client: statestream.aio.Client
    pool: Any
    due: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)

    async def drive(self, period: float, phase: float, until: float) -> None:
        """Steps until the clock, `time.monotonic`, says `until`."""
        size = len(self.pool)
        fell = time.monotonic() + phase
        while fell < until:
            await asyncio.sleep(max(0.0, fell - time.monotonic()))
            count = max(1, int((time.monotonic() - fell) / period) + 1)
            x = np.zeros((size, FEATURES) if count == 1 else (size, count, FEATURES), np.float32)
            await self.pool.step(x)
            now = time.monotonic()
            for _ in range(count):
                self.due.append(fell)
                self.late.append(now - fell)
                fell += period


@contextmanager
def fleet(models: Path, folder: Path, replicas: int, *options: str) -> Iterator[tuple[list[Process], Redis]]:
    """Servers over a Redis of their own."""
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(folder, "--appendonly", "yes", "--appendfsync", "everysec"))
        more = ["--store", redis.url, "--no-rebalance", *options]
        yield [stack.enter_context(processes.statestream(models, folder, *more)) for _ in range(replicas)], redis
        redis.client.flushall()


@asynccontextmanager
async def streams(addresses: Sequence[str], count: int, size: int, name: str = "s") -> AsyncIterator[list[Stream]]:
    """So many clients with so many sessions each; client k begins at address k."""
    settings = statestream.Settings(retry_timeout=60, replay_buffer_bytes=256 << 20)
    async with AsyncExitStack() as stack:
        found = []
        for number in range(count):
            turn = number % len(addresses)
            at = ",".join([*addresses[turn:], *addresses[:turn]])
            client = await stack.enter_async_context(statestream.aio.connect(at, settings=settings))
            ids = [f"{name}-{number}-{session}" for session in range(size)]
            found.append(Stream(client, await client.sessions(MODEL, ids=ids)))
        yield found


def redis_seconds(redis: Redis) -> float:
    """Processor time that Redis used so far."""
    found = redis.client.info("cpu")
    return float(found["used_cpu_user"] + found["used_cpu_sys"])


async def drive(all_: Sequence[Stream], period: float, seconds: float) -> None:
    """Has all streams step for some seconds, evenly out of phase."""
    until = time.monotonic() + seconds
    phases = [period * number / len(all_) for number in range(len(all_))]
    await asyncio.gather(*(one.drive(period, phase, until) for one, phase in zip(all_, phases, strict=True)))


async def frames(models: Path, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of server and caller for a frame and for a step in it, a value a round; and of the round trip."""
    found: dict[str, list[float]] = {name: [] for name in ("frame", "step", "client_frame", "client_step", "trip")}
    with fleet(models, folder, 1, "--durability", "none") as ([server], _):
        for number in range(rounds):
            each = []
            for size in (SMALL, LARGE):
                async with streams([server.address], STREAMS, size, f"f{number}-{size}") as all_:
                    await drive(all_, PERIOD, 3 * PERIOD)
                    count = sum(len(one.late) for one in all_)
                    before, own = server.cpu_seconds(), time.process_time()
                    await drive(all_, PERIOD, SECONDS)
                    used = (server.cpu_seconds() - before, time.process_time() - own)
                    late = [value for one in all_ for value in one.late][count:]
                    each.append([seconds / len(late) for seconds in used] + [statistics.median(late)])
            (small, small_own, trip), (large, large_own, _) = each
            step = (large - small) / (LARGE - SMALL)
            own_step = max(0.0, (large_own - small_own) / (LARGE - SMALL))
            found["step"].append(step)
            found["frame"].append(max(0.0, small - SMALL * step))
            found["client_step"].append(own_step)
            found["client_frame"].append(max(0.0, small_own - SMALL * own_step))
            found["trip"].append(max(0.0, trip - small - small_own))
    return found


async def records(models: Path, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of server and Redis for a record and for a script call, bytes of a record, a value a round.

    Records lie in buckets, and a call writes those of one bucket: so few records at once cost more, each.
    """
    names = ("record", "call", "shard_record", "shard_call", "record_wire", "record_memory")
    found: dict[str, list[float]] = {name: [] for name in names}
    with fleet(models, folder, 1, "--checkpoint-interval", NEVER) as ([server], redis):
        for number in range(rounds):
            each = list[tuple[float, float, float]]()
            for size in (LARGE, MANY):
                async with streams([server.address], 1, size, f"r{number}-{size}") as [one]:
                    x = np.zeros((size, FEATURES), np.float32)
                    repeats = MANY // size
                    used = np.zeros(3)
                    for _ in range(repeats):
                        await one.pool.step(x)
                        before = _used(server, redis)
                        await one.pool.flush()
                        used += _used(server, redis) - before
                    each.append(tuple(used / repeats))
                    if size == MANY:
                        memory = redis.client.info("memory")["used_memory_dataset"]
                    await one.pool.delete()
            for where, (few, many) in enumerate(zip(*each, strict=True)):
                # few = LARGE · record + calls(LARGE) · call; many likewise.
                matrix = np.asarray([[LARGE, calls(LARGE)], [MANY, calls(MANY)]])
                record, call = np.linalg.solve(matrix, [few, many])
                if where < 2:
                    found[("record", "shard_record")[where]].append(float(record))
                    found[("call", "shard_call")[where]].append(float(call))
                else:
                    found["record_wire"].append(many / MANY)
            found["record_memory"].append(memory / MANY)
    return found


def _used(server: Process, redis: Redis) -> np.ndarray:
    wire = redis.client.info("stats")["total_net_input_bytes"]
    return np.asarray([server.cpu_seconds(), redis_seconds(redis), wire], np.float64)


async def claims(models: Path, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of server and Redis for a session that is taken over after a kill, and until a lone one goes on."""
    found: dict[str, list[float]] = {name: [] for name in ("claim", "shard_claim", "client_claim", "reconnect")}
    count = STREAMS * LARGE
    for number in range(rounds):
        with fleet(models, folder / f"claims-{number}", 3, "--checkpoint-interval", NEVER) as (servers, redis):
            alone, first, second = servers
            async with streams([alone.address, second.address], 1, 1, "alone") as [one]:
                await drive([one], PERIOD, PERIOD)
                await one.pool.flush()
                killed = time.monotonic()
                os.kill(alone.pid, signal.SIGKILL)
                await one.pool.step(np.zeros((1, FEATURES), np.float32))
                found["reconnect"].append(time.monotonic() - killed)
            async with streams([first.address, second.address], STREAMS, LARGE, "c") as all_:
                mine = all_[::2]
                await drive(mine, PERIOD, PERIOD)
                for one in mine:
                    await one.pool.flush()
                before = second.cpu_seconds(), redis_seconds(redis), time.process_time()
                os.kill(first.pid, signal.SIGKILL)
                x = np.zeros((LARGE, FEATURES), np.float32)
                await asyncio.gather(*(one.pool.step(x) for one in mine))
                moved = count / 2
                found["claim"].append((second.cpu_seconds() - before[0]) / moved)
                found["shard_claim"].append((redis_seconds(redis) - before[1]) / moved)
                found["client_claim"].append((time.process_time() - before[2]) / moved)
    return found


async def wire(models: Path, folder: Path) -> float:
    """Bytes of a step between caller and server, both ways, in frames of `LARGE`."""
    carried = 0

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal carried
        while data := await reader.read(1 << 16):
            carried += len(data)
            writer.write(data)
            await writer.drain()
        writer.close()

    with fleet(models, folder, 1, "--durability", "none") as ([server], _):

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection("127.0.0.1", server.port)
            with contextlib.suppress(asyncio.CancelledError):  # the loop ends while connections are open
                await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)

        listening = await asyncio.start_server(relay, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        async with streams([f"127.0.0.1:{port}"], 1, LARGE, "w") as [one]:
            x = np.random.default_rng(0).standard_normal((LARGE, FEATURES), np.float32)
            await one.pool.step(x)
            before = carried
            for _ in range(20):
                await one.pool.step(x)
            found = (carried - before) / 20 / LARGE
        listening.close()
    return found


async def run(models: Path, folder: Path, setting: Setting) -> dict[str, float]:
    """A real run of what `setting` says, on this machine, with one Redis; the figures that a simulation gives, too."""
    with fleet(models, folder, setting.replicas) as (servers, redis):
        async with streams([one.address for one in servers], setting.streams, setting.size, "v") as all_:
            await drive(all_, setting.period, 2 * setting.period)
            for one in all_:
                one.due.clear()
                one.late.clear()
            began = time.monotonic()
            before = sum(one.cpu_seconds() for one in servers), redis_seconds(redis)
            driving = asyncio.ensure_future(drive(all_, setting.period, setting.seconds))
            await asyncio.sleep(setting.kill_at)
            used = sum(one.cpu_seconds() for one in servers) - before[0], redis_seconds(redis) - before[1]
            killed = time.monotonic()
            os.kill(servers[0].pid, signal.SIGKILL)
            await driving
    steady, pauses = [], []
    for number, one in enumerate(all_):
        due, late = np.asarray(one.due), np.asarray(one.late)
        steady += late[(due - began > 1.5) & (due < killed - setting.period)].tolist()
        if number % setting.replicas == 0:
            pauses.append(float(late[(due + late > killed) & (due < killed + setting.period)].max(initial=0.0)))
    return {
        "replica_seconds": used[0] / setting.kill_at,
        "redis_seconds": used[1] / setting.kill_at,
        "steady_p50": float(np.quantile(steady, 0.5)),
        "steady_p99": float(np.quantile(steady, 0.99)),
        "pause_p50": float(np.quantile(pauses, 0.5)),
        "pause_max": max(pauses),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most of some rounds."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "rounds": len(values)}


def measured(models: Path, folder: Path, rounds: int, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """All costs, each with its spread."""
    found = dict[str, list[float]]()
    for name, measure in (("frames", frames), ("records", records), ("claims", claims)):
        say(name)
        place = folder / name
        place.mkdir()
        found |= asyncio.run(measure(models, place, rounds))
    say("wire")
    found["step_wire"] = [asyncio.run(wire(models, folder / "wire"))]
    return {name: spread(values) for name, values in found.items()}
