"""Runs schedules, one for each of some seeds, and tells those in which a promise was broken.

`--minutes` runs as many as fit, `--fresh` takes seeds that nobody had before, `--record` adds what ran to
docs/simulation.json and docs/reliability.md. Ctrl-C ends it, and what ran until then counts.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tests.simulation import totals
from tests.simulation.plan import draw
from tests.simulation.world import simulate


def main() -> int:
    """1 where a schedule broke a promise, as an exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, help="how many; 1000 where --minutes does not say it")
    parser.add_argument("--minutes", type=float, help="as many as run in so many minutes")
    parser.add_argument("--fresh", action="store_true", help="the first seed from the time of day")
    parser.add_argument("--record", action="store_true", help="add what ran to the totals")
    parser.add_argument("--log", action="store_true", help="tell everything that happens")
    asked = parser.parse_args()
    first = int(time.strftime("%y%m%d%H%M")) * 100_000 if asked.fresh else asked.first
    count = asked.seeds or (None if asked.minutes else 1000)
    print(f"from seed {first}", flush=True)
    began, ran, answered, broken = time.perf_counter(), 0, 0, list[int]()
    until = began + 60 * asked.minutes if asked.minutes else float("inf")
    try:
        for seed in _shown(first, count, until):
            outcome = simulate(draw(seed), log=asked.log)
            ran += 1
            answered += outcome.answered
            for line in outcome.log:
                print(line)
            for violation in outcome.violations:
                print(f"seed {seed}: {violation}", flush=True)
            if outcome.violations:
                broken.append(seed)
    except KeyboardInterrupt:
        print("stopped")
    took = time.perf_counter() - began
    print(f"{ran} schedules in {took:.1f} s, {answered} steps answered, a promise broken in {len(broken)}")
    if broken:
        print(f"one of them again: python -m tests.simulation --first {broken[0]} --seeds 1 --log")
    if asked.record and ran:
        totals.add(totals.Run(first, ran, answered, broken))
    return 1 if broken else 0


def _shown(first: int, count: int | None, until: float) -> Iterator[int]:
    """The seeds from `first` on, and how far it is: a bar on a terminal, else a line a minute."""
    seeds = itertools.takewhile(lambda _: time.perf_counter() < until, itertools.count(first))
    columns = TextColumn("seed {task.fields[seed]}"), BarColumn(), MofNCompleteColumn()
    console, told = Console(), time.perf_counter()
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
    with bar if console.is_terminal else contextlib.nullcontext():
        task = bar.add_task("", total=count, seed=first)
        for done, seed in enumerate(seeds):
            if done == count:
                return
            if console.is_terminal:
                bar.update(task, completed=done, seed=seed)
            elif time.perf_counter() > told + 60:
                told = time.perf_counter()
                print(f"{done} schedules, now seed {seed}", flush=True)
            yield seed


if __name__ == "__main__":
    sys.exit(main())
