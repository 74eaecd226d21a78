"""What more load than there is room for costs: goodput and waits at twice the peak, and a tenant beside a flood.

`python -m benchmarks.overload` gives the server one core and the generator another. The peak is what callers in closed
loop get; then calls come at twice that rate, whatever became of the ones before, and each that is not answered within a
second is lost. With --docs it writes its section of docs/benchmarks.md.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from benchmarks import figures, models, page, processes
from benchmarks.crowd import Crowd, Seen
from benchmarks.processes import Process
from statestream_server.access import tokens

CALLERS: Final = 128
"""Callers in closed loop, for the peak."""
SESSIONS: Final = 2048
"""Sessions of the tenant that floods, all there before: more than calls wait at a time."""
VICTIM: Final = 4
"""Callers in closed loop of the tenant beside the flood."""
PARTS: Final = 3
"""Parts that a measurement of the other tenant is divided into: alone and beside the flood by turns."""
BEFORE: Final = 0.5
"""Seconds that a flood lasts before anything beside it counts."""
NICE: Final = 10
"""How much the flood leaves of the callers' core to the other tenant's."""


def _measure(server: Process, flood: Crowd, victim: Crowd, seconds: float, rounds: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {}

    def note(**values: float) -> None:
        for name, value in values.items():
            found.setdefault(name, []).append(value)

    flood.sessions(SESSIONS)
    victim.sessions(VICTIM)
    flood.closed(CALLERS, 1.0)
    victim.closed(VICTIM, 0.5)
    for _ in range(rounds):
        used = server.busy_seconds()
        peak = flood.closed(CALLERS, seconds)
        rate, spent = len(peak.good) / seconds, server.busy_seconds() - used
        over = flood.open(2 * rate, seconds)
        note(
            peak=rate, peak_p99=peak.at(0.99), peak_busy=spent / seconds, goodput=len(over.good) / seconds,
            ratio=len(over.good) / len(peak.good), over_p50=over.at(0.5), over_p99=over.at(0.99),
            refused=over.refused / seconds, late=over.late / seconds, behind=1e3 * over.behind, busy=over.busy,
        )  # fmt: skip
        alone, beside = Seen(), Seen()
        for _ in range(PARTS):
            _add(alone, victim.closed(VICTIM, seconds / PARTS))
            flood.begin("open", 2 * rate, seconds / PARTS + 2 * BEFORE)
            time.sleep(BEFORE)
            _add(beside, victim.closed(VICTIM, seconds / PARTS))
            flood.end()
        note(
            alone_p50=alone.at(0.5), alone_p99=alone.at(0.99), beside_p50=beside.at(0.5), beside_p99=beside.at(0.99),
            beside_refused=beside.refused, times=beside.at(0.99) / alone.at(0.99),
        )  # fmt: skip
    return {
        name: [figures.rounded(float(f(values))) for f in (np.median, np.min, np.max)] for name, values in found.items()
    }


def _add(seen: Seen, more: Seen) -> None:
    seen.good += more.good
    seen.refused += more.refused
    seen.late += more.late


def measure(folder: Path, seconds: float, rounds: int, edge: str) -> dict[str, Any]:
    """Measures on a server of its own, which has the first core, while those who call have another."""
    models.make(folder / "models")
    file, secrets = folder / "tokens.toml", {}
    for tenant in ("flood", "victim"):
        secrets[tenant], _ = tokens.new(file, tenant, frozenset({tokens.STEP}), time.time() + 86_400)
    file.write_text("[limits]\ncalls = 100_000\nsessions = 100_000\n\n" + file.read_text())
    cores = sorted(os.sched_getaffinity(0))
    callers = cores[1 % len(cores)]
    os.sched_setaffinity(0, cores[:1])  # The server inherits it.
    try:
        with (
            processes.statestream(folder / "models", folder, "--edge", edge, "--tokens", str(file)) as server,
            Crowd(server, secrets["flood"], "a", callers, NICE) as flood,
            Crowd(server, secrets["victim"], "b", callers) as victim,
        ):
            os.sched_setaffinity(0, [callers])
            return _measure(server, flood, victim, seconds, rounds)
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
