"""Where the time goes: the server's loop thread by phase, and processor time a step on both sides.

`python -m benchmarks.profile` measures and prints it; with --docs it goes into docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from benchmarks import cases, figures, models, page, processes
from benchmarks.cases import Bench
from benchmarks.figures import rounded
from benchmarks.processes import Process
from benchmarks.sampled import PHASES, REST

IDLE: Final = "waiting"
_SETTLE_SECONDS = 0.5
"""How long a load runs before it is looked at."""
_DEADLINE = 10.0


def measure(models_folder: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """Runs every case against a server with a sampler."""
    samples = folder / "samples.json"
    with processes.sampled(models_folder, folder / "sampled", samples) as server:
        bench = Bench(server, server, server, models_folder)
        loads: dict[str, Callable[[float], float]] = {
            f"pool, 1,024 × 1, {cases.AHEAD} under way": lambda s: cases.pool(
                bench, "lstm", 1024, 1, s, ahead=cases.AHEAD
            ),
            "pool, 1,024 × 1": lambda s: cases.pool(bench, "lstm", 1024, 1, s),
            "pool, 256 × 16": lambda s: cases.pool(bench, "lstm", 256, 16, s),
            "1,024 tasks": lambda s: cases.awaits(bench, 1024, s),
            "256 streams": lambda s: cases.streams(bench, 256, s)[0],
            "one session": lambda s: 1 / float(cases.round_trips(bench, s).mean()),
        }
        return {
            "phases": [*PHASES, IDLE],
            "seconds": seconds,
            "cases": {name: _case(server, samples, load, seconds) for name, load in loads.items()},
        }


def _case(server: Process, samples: Path, load: Callable[[float], float], seconds: float) -> dict[str, Any]:
    """Runs a load and looks at its middle."""
    samples.unlink(missing_ok=True)
    found: dict[str, float] = {}

    def look() -> None:
        time.sleep(_SETTLE_SECONDS)
        os.kill(server.pid, signal.SIGUSR1)
        began, loop, whole, mine = time.perf_counter(), server.loop_cpu_seconds(), server.cpu_seconds(), _own()
        time.sleep(seconds - 2 * _SETTLE_SECONDS)
        found["loop"] = server.loop_cpu_seconds() - loop
        found["others"] = server.cpu_seconds() - whole - found["loop"]
        found["client"] = _own() - mine
        found["wall"] = time.perf_counter() - began
        os.kill(server.pid, signal.SIGUSR2)

    looker = threading.Thread(target=look)
    looker.start()
    rate = load(seconds)
    looker.join()
    return shares(found, _samples(samples), rate)


def shares(found: dict[str, float], sampled: dict[str, float], rate: float) -> dict[str, Any]:
    """Shares of the loop thread's time. The event loop's part has its waiting in it, which is no processor time."""
    whole = sum(sampled.values())
    idle = min(max(0.0, 1 - found["loop"] / found["wall"]) * whole, sampled[REST])
    seconds = {**sampled, REST: sampled[REST] - idle, IDLE: idle}
    steps = rate * found["wall"]
    return {
        "shares": {phase: rounded(part / whole) for phase, part in seconds.items()},
        "steps_per_second": rounded(rate),
        "loop_us": rounded(1e6 * found["loop"] / steps),
        "others_us": rounded(1e6 * found["others"] / steps),
        "client_us": rounded(1e6 * found["client"] / steps),
        "wall_us": rounded(1e6 / rate),
    }


def _samples(file: Path) -> dict[str, float]:
    end = time.monotonic() + _DEADLINE
    while not file.exists():
        if time.monotonic() > end:
            raise RuntimeError(f"the server wrote no samples to {file} within {_DEADLINE:g} s")
        time.sleep(0.01)
    found: dict[str, float] = json.loads(file.read_text())
    return found


def _own() -> float:
    """Processor time of this process, all threads."""
    return time.process_time()


@click.command()
@click.option("--seconds", default=3.0, show_default=True, help="How long each case runs.")
@click.option("--docs", is_flag=True, help="Writes the section of docs/benchmarks.md, its picture and figures.")
def main(seconds: float, docs: bool) -> None:
    """Shows where the time of a step goes."""
    with tempfile.TemporaryDirectory() as name:
        models.make(Path(name) / "models")
        found = measure(Path(name) / "models", Path(name), seconds)
    click.echo(page.profile(found))
    if docs:
        figures.update({"profile": found})
        page.write()


if __name__ == "__main__":
    main()
