"""`python -m tests.attacks`: every attack with the times that it costs: the longest turn, and the victim's steps."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.attacks.arena import Arena, Report, arena
from tests.attacks.attacks import ATTACKS, Attack
from tests.attacks.floods import floods
from tests.attacks.test_floods import send
from tests.support import models

_QUIET_SECONDS = 2.0
LONGEST_TURN = 0.1
"""Seconds; models are loaded before."""
SLOWER = 3.0
"""How many times its quiet p99 the victim's may be."""


@dataclass(frozen=True)
class Outcome:
    """What one attack did."""

    name: str
    quiet: Report
    under: Report
    longest: float
    peak: int
    error: str

    @property
    def ratio(self) -> float:
        return self.under.percentile(0.99) / self.quiet.percentile(0.99)


async def flood_all(found: Arena) -> None:
    """The largest message of every field of every request."""
    for flood in floods():
        await send(found, flood)


_MEASURED = [*ATTACKS, Attack(flood_all)]


def measure(models_dir: Path, name: str) -> Outcome:
    """One attack on a new server."""
    return asyncio.run(_measure(models_dir, next(attack for attack in _MEASURED if attack.name == name)))


def _stand_back() -> None:
    """Has this process, which attacks, run when server and victim do not: other machines attack, not a server's own."""
    for thread in Path("/proc/self/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)


async def _measure(models_dir: Path, attack: Attack) -> Outcome:
    async with arena(models_dir, *attack.options) as found:
        await found.victim.report()
        await asyncio.sleep(_QUIET_SECONDS)
        quiet = await found.victim.report()
        before = await found.lag()
        _stand_back()
        error = ""
        try:
            await attack.run(found)
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"[:200]
        under = await found.victim.report()
        after = await found.lag()
        longest = after if after > before else 0.0  # Not longer than one of the start.
        try:
            await found.check()
        except AssertionError as caught:
            error = error or str(caught)[:200]
        return Outcome(attack.name, quiet, under, longest, found.memory()[1], error)


@click.command()
@click.option("--only", default="", help="Attacks whose name contains this.")
def main(only: str) -> None:
    """Attacks a server in every way that is known, one after the other, and says what it cost the others."""
    chosen = [one.name for one in _MEASURED if only in one.name]
    table = Table("attack", "longest turn", "victim p50, ms", "victim p99, ms", "p99, ratio", "peak, MiB", "verdict")
    failed = 0
    # Each in a process of its own: one that stood back stays there.
    spawned = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as progress, spawned as processes:
        models_dir = models.write(Path(folder), "counter", "loop", "lstm", "scores", "pair", "tokens")
        for name in progress.track(chosen, description="attacks"):
            found = processes.submit(measure, models_dir, name).result()
            wrong = [found.error] if found.error else []
            wrong += [f"a turn of {found.longest * 1e3:.0f} ms"] if found.longest > LONGEST_TURN else []
            wrong += [f"the victim's p99 is {found.ratio:.1f} ×"] if found.ratio > SLOWER else []
            failed += bool(wrong)
            table.add_row(
                found.name,
                f"{found.longest * 1e3:.0f} ms",
                *(
                    f"{found.quiet.percentile(share) * 1e3:.1f} → {found.under.percentile(share) * 1e3:.1f}"
                    for share in (0.5, 0.99)
                ),
                f"{found.ratio:.1f}",
                str(found.peak >> 20),
                "; ".join(wrong) or "held",
            )
    Console(width=160).print(table)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
