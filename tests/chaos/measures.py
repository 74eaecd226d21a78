"""What durability costs: `python -m tests.chaos.measures cpu|resume|bytes`, figures as JSON.

cpu     the server's CPU-seconds per million steps, 10,000 sessions that step once a second, saved every
        second to sqlite against not saved at all; both servers take turns, so that the machine's moods
        meet both.
resume  a server with 100,000 sessions is killed and started again: seconds until all have stepped again.
bytes   what a session takes in each store.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import statestream
from tests.chaos.cluster import Cluster, cluster
from tests.chaos.figures import report
from tests.chaos.oracle import FEATURES, MODEL, write_model

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def cpu(models: Path, folder: Path, sessions: int, rounds: int, seconds: float) -> dict[str, Any]:
    """CPU-seconds per million steps with and without checkpoints, in turns."""
    modes = {"none": ["--durability", "none"], "interval": ["--durability", "interval"]}
    costs: dict[str, list[float]] = {mode: [] for mode in modes}
    x = np.random.default_rng(0).standard_normal((sessions, FEATURES), np.float32)
    async with (
        cluster(models, _made(folder / "none"), *modes["none"]) as without,
        cluster(models, _made(folder / "interval"), *modes["interval"]) as saving,
        statestream.aio.connect(without.addresses[0]) as one,
        statestream.aio.connect(saving.addresses[0]) as other,
    ):
        ids = [f"s{number}" for number in range(sessions)]
        pools = {"none": await one.sessions(MODEL, ids=ids), "interval": await other.sessions(MODEL, ids=ids)}
        pids = {"none": without.replicas[0].process.pid, "interval": saving.replicas[0].process.pid}
        for pool in pools.values():
            await pool.step(x)
            await pool.flush()
        for _ in range(rounds):
            for mode in modes:
                costs[mode].append(await _round(pools[mode], pids[mode], x, seconds))
        for pool in pools.values():
            await pool.delete()
    found = {mode: round(statistics.median(values), 3) for mode, values in costs.items()}
    ratios = [b / a for a, b in zip(costs["none"], costs["interval"], strict=True)]
    return {
        "sessions": sessions,
        "dirty_sessions_a_second": sessions,
        "rounds": rounds,
        "cpu_seconds_per_million_steps": found,
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


async def _round(pool: statestream.aio.Pool, pid: int, x: np.ndarray, seconds: float) -> float:
    """Steps every session without pause for some seconds, of which each has one save in it."""
    before, steps, until = cpu_seconds(pid), 0, time.monotonic() + seconds
    while time.monotonic() < until:
        await pool.step(x)
        steps += len(pool)
    found = (cpu_seconds(pid) - before) / steps * 1e6
    await pool.flush()  # so that the other's turn is not disturbed
    return found


async def resume(models: Path, folder: Path, sessions: int, store: str) -> dict[str, Any]:
    """Seconds from the ready line of the new process until every session has stepped again."""
    x = np.random.default_rng(0).standard_normal((sessions, FEATURES), np.float32)
    async with (
        cluster(models, _made(folder / "resume"), store=store) as made,
        statestream.aio.connect(made.addresses[0], retry_timeout=300, replay_buffer_bytes=256 << 20) as client,
    ):
        began = time.monotonic()
        pool = await client.sessions(MODEL, ids=[f"station-{number:06d}" for number in range(sessions)])
        opened = time.monotonic()
        await pool.step(x)
        stepped = time.monotonic()
        await pool.flush()
        flushed = time.monotonic()
        stored = await _bytes(made, sessions)
        replica = made.replicas[0]
        await replica.kill()
        killed = time.monotonic()
        again = asyncio.ensure_future(pool.step(x))
        await replica.start()
        ready, before = time.monotonic(), cpu_seconds(replica.process.pid)
        await again
        done = time.monotonic()
        used = cpu_seconds(replica.process.pid) - before
        assert (pool.positions == 2).all()
        await pool.delete()
    return {
        "sessions": sessions,
        "store": store,
        "first_open_seconds": round(opened - began, 2),
        "step_of_all_seconds": round(stepped - opened, 3),
        "flush_of_all_seconds": round(flushed - stepped, 2),
        "server_start_seconds": round(ready - killed, 2),
        "resume_seconds": round(done - ready, 2),
        "resume_server_cpu_seconds": round(used, 2),
        "bytes_per_session": stored,
    }


async def _bytes(made: Cluster, sessions: int) -> int:
    """What the store takes for each session."""
    if isinstance(made.store, Path):
        files = [Path(f"{made.store}{suffix}") for suffix in ("", "-wal")]
        return sum(file.stat().st_size for file in files if file.exists()) // sessions
    info = await asyncio.to_thread(made.redis.client.info, "memory")
    return int(info["used_memory_dataset"]) // sessions


async def sizes(models: Path, folder: Path, sessions: int) -> dict[str, Any]:
    """Bytes per session in each store, after a step each and acknowledged replies, and those of the state alone."""
    found: dict[str, Any] = {"sessions": sessions, "state_bytes": 2 * 16 * 4}
    x = np.random.default_rng(0).standard_normal((sessions, FEATURES), np.float32)
    for store in ("sqlite", "redis"):
        async with cluster(models, _made(folder / f"bytes-{store}"), store=store) as made:
            async with statestream.aio.connect(made.addresses[0]) as client:
                pool = await client.sessions(MODEL, ids=[f"station-{number:06d}" for number in range(sessions)])
                await pool.step(x)
                await pool.step(x)
                await pool.close()
            # A server that left has folded its log into the file.
            await made.replicas[0].drain()
            found[store] = await _bytes(made, sessions)
    return found


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def main() -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cpu", "resume", "bytes"])
    parser.add_argument("--sessions", type=int, help="default 10,000, for resume 100,000")
    parser.add_argument("--rounds", type=int, default=8, help="of cpu")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a round of cpu")
    parser.add_argument("--store", choices=["sqlite", "redis"], default="sqlite", help="of resume")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = write_model(folder / "models")
        if options.what == "cpu":
            found = asyncio.run(cpu(models, folder, options.sessions or 10_000, options.rounds, options.seconds))
        elif options.what == "resume":
            found = asyncio.run(resume(models, folder, options.sessions or 100_000, options.store))
        else:
            found = asyncio.run(sizes(models, folder, options.sessions or 10_000))
    report(
        f"chaos-{options.what}" + (f"-{options.store}" if options.what == "resume" else ""),
        found | {"cpus": os.cpu_count()},
    )


if __name__ == "__main__":
    main()
