"""One attack, measured: the longest turn of the server's loop, the victim's steps before and under it, memory."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from tests.attacks.arena import Arena, Report, arena
from tests.attacks.attacks import ATTACKS, Attack
from tests.attacks.floods import floods
from tests.attacks.test_floods import send

_QUIET_SECONDS = 2.0


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


MEASURED = [*ATTACKS, Attack(flood_all)]
"""Every attack, and all floods as one."""


def measure(models_dir: Path, name: str) -> Outcome:
    """One attack on a new server."""
    return asyncio.run(_measure(models_dir, next(attack for attack in MEASURED if attack.name == name)))


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
