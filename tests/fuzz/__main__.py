"""`python -m tests.fuzz --minutes 10`: random input of every kind, then what the servers hold is counted.

Each target gets a turn of a few seconds, by turns on both edges, with the next seed. A finding is printed with the
smallest example that hypothesis found of it, and the run goes on; the exit status is 1 if there was any, or a server
holds more at the end than it held after the first round.
"""

from __future__ import annotations

import secrets
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click
from hypothesis import HealthCheck, Phase, seed, settings

from tests.fuzz import files, wires

TURN: Final = 2.0
"""Seconds of one target's turn."""
FEW: Final = 10
"""Examples between two looks at the clock."""
GROWN: Final = 96 << 20
"""Bytes by which a server may have grown since the first round: allocators and caches fill for some time."""


LIMITS: Final = settings(
    max_examples=FEW,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
    print_blob=False,
)


class Run:
    """Turns of targets, and what they found."""

    def __init__(self, first: int) -> None:
        self.seed, self.done = first, Counter[str]()
        self.found: dict[str, str] = {}

    def turn(self, name: str, target: Callable[[], Any], until: float) -> None:
        """Runs a target until then."""
        while time.monotonic() < until and name not in self.found:
            self.seed += 1
            counted = self.done[name]
            try:
                seed(self.seed)(target)()
                self.done[name] = counted + FEW
            except Exception:
                self.found[name] = traceback.format_exc(limit=-4)
                print(f"\n{name}, seed {self.seed}:\n{self.found[name]}", flush=True)

    def told(self) -> None:
        """Says what was done."""
        for name, count in sorted(self.done.items()):
            print(f"{name:40} {count:8,} examples", flush=True)


def settled(server: wires.Fuzzed) -> wires.Held:
    """What a server holds when its callers have left: the least of some looks, a second apart."""
    with server.connected():
        server.restored()
        stored = server.emptied()
    looks = []
    for _ in range(5):
        time.sleep(1)
        looks.append(server.held(stored))
    return min(looks, key=lambda held: (held.tasks, held.files))


@click.command()
@click.option("--minutes", default=10.0, show_default=True, help="How long in all.")
@click.option("--seed", "first", type=int, help="The first seed; another one each time unless told.")
@click.option("--edge", "edges", multiple=True, default=("h2", "grpcio"), show_default=True)
@click.option("--only", default="", help="Only targets whose name contains this.")
def main(minutes: float, first: int | None, edges: tuple[str, ...], only: str) -> None:
    """Sends random input of every kind to real servers."""
    first = secrets.randbelow(1 << 30) if first is None else first
    print(f"--seed {first}", flush=True)
    run, end, before = Run(first), time.monotonic() + 60 * minutes, dict[str, wires.Held]()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        servers = wires.servers(Path(name), edges, stack)
        read = {name: LIMITS(target) for name, target in files.TARGETS.items()}
        said = {one: {name: LIMITS(target) for name, target in wires.targets(one).items()} for one in servers}
        while time.monotonic() < end:
            for target, what in read.items():
                if only in target:
                    run.turn(target, what, min(end, time.monotonic() + TURN / 2))
            for server in servers:
                with server.connected():
                    for target, what in said[server].items():
                        if only in target:
                            server.restored()
                            run.turn(f"{target}, {server.edge}", what, min(end, time.monotonic() + TURN))
                if server.edge not in before:
                    before[server.edge] = settled(server)
        for server in servers:
            _judge(run, server, before[server.edge])
    run.told()
    for fault in run.found:
        print(f"FAULT: {fault}")
    sys.exit(bool(run.found))


def _judge(run: Run, server: wires.Fuzzed, before: wires.Held) -> None:
    """Whether a server lives, said nothing of faults, and holds no more than it did."""
    after, wrong = settled(server), []
    print(f"{server.edge}: {before}\n{' ' * len(server.edge)}  {after}", flush=True)
    if after.tasks > before.tasks + 2:
        wrong.append(f"{after.tasks - before.tasks} tasks more than at the begin")
    if after.files > before.files + 4:
        wrong.append(f"{after.files - before.files} sockets and files more than at the begin")
    if after.rss > before.rss + GROWN:
        wrong.append(f"{(after.rss - before.rss) >> 20} MiB more than after the first round")
    if after.rows or after.stored:
        wrong.append(f"{after.rows} sessions in memory and {after.stored} in the store after all were deleted")
    # grpcio says at ERROR what callers sent that is no UTF-8, and that it ended its server over it.
    theirs = (" grpc._cython.", "ERROR asyncio: Task exception was never retrieved") if server.edge == "grpcio" else ()
    said = [one for one in server.process.lines if " ERROR " in one and not any(name in one for name in theirs)]
    if said:
        wrong.append(f"the log has {len(said)} errors: {server.process.output[-6000:]}")
    if status := server.process.stop():
        wrong.append(f"it ended with {status}")
    if wrong:
        run.found[f"what {server.edge} holds"] = "; ".join(wrong)
        print("; ".join(wrong), flush=True)


if __name__ == "__main__":
    main()
