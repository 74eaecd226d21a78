"""A million resident sessions: what each costs in memory, and whether steps are as fast as among a thousand."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import Progress

import statestream
from benchmarks import processes
from benchmarks.cases import FEATURES
from benchmarks.processes import Process
from benchmarks.table import Row, Target

ALLOWED_BYTES = 1536
"""What a session may cost; its state has 1024 bytes."""
MILLION = 1_000_000
"""From so many on the bytes are a session's; of fewer, what a server needs once counts too."""
FEW = 1000
"""How many are stepped at a time, and how many there are in the server that it is compared with."""


@dataclass
class Crowd:
    """A server whose sessions are all in memory, and the pool that has them.

    Attributes:
        empty: Bytes of the server before they were opened.
        full: Bytes of the server with all of them.
    """

    process: Process
    pool: statestream.Pool
    empty: int
    full: int
    order: np.ndarray
    next: int = field(default=0)

    def draw(self) -> np.ndarray:
        """The next `FEW` sessions in a random order of all, drawn beforehand because drawing takes time."""
        if self.next + FEW > len(self.order):
            self.next = 0
        self.next += FEW
        return self.order[self.next - FEW : self.next]

    def bytes_each(self) -> float:
        return (self.full - self.empty) / len(self.order)

    def bytes_each_now(self) -> float:
        return (self.process.rss() - self.empty) / len(self.order)


def rows(models: Path, folder: Path, count: int, rounds: int, seconds: float) -> list[Row]:
    """Opens `count` sessions in a server of its own, measures, and gives the rows with their measurements."""
    with ExitStack() as stack:
        many = stack.enter_context(_crowd(models, folder / "many", count))
        few = stack.enter_context(_crowd(models, folder / "few", FEW))
        memory = Row(
            f"{count:,} resident sessions: bytes of each beyond the empty server, against {ALLOWED_BYTES}",
            Target(1, least=False) if count >= MILLION else None,
            many.bytes_each,
            lambda: float(ALLOWED_BYTES),
            "bytes",
        )
        memory.measure()
        speed = Row(
            f"pool of {FEW:,} among {count:,} resident, against {FEW:,} resident",
            Target(0.7),
            lambda: _steps_per_second(many, seconds, renew=False),
            lambda: _steps_per_second(few, seconds, renew=False),
            "steps/s",
        )
        roaming = Row(
            f"the same, but another {FEW:,} with every frame: every step makes a session that must be saved",
            None,
            lambda: _steps_per_second(many, seconds, renew=True),
            lambda: _steps_per_second(few, seconds, renew=True),
            "steps/s",
        )
        for _ in range(rounds):
            speed.measure()
            roaming.measure()
            # What the last measurement left to save is not the next one's cost.
            many.pool.flush()
        many.pool.step(np.ones((count, FEATURES), np.float32))
        many.pool.flush()
        stepped = Row(
            f"{count:,} resident sessions that have all stepped, the last reply of each still kept",
            None,
            many.bytes_each_now,
            lambda: float(ALLOWED_BYTES),
            "bytes",
        )
        stepped.measure()
    return [memory, stepped, speed, roaming]


@contextmanager
def _crowd(models: Path, folder: Path, count: int) -> Iterator[Crowd]:
    folder.mkdir(parents=True)
    with (
        processes.statestream(models, folder, "--max-sessions", str(count + 64)) as process,
        statestream.connect(process.address) as client,
    ):
        # What a server loads with its first sessions is not the cost of the others.
        with client.sessions("lstm", 64) as some:
            some.step(np.ones((64, FEATURES), np.float32))
            some.flush()
        empty = process.rss()
        with _progress(process, count), client.sessions("lstm", count) as pool:
            pool.flush()
            order = np.random.default_rng(0).permutation(count)
            yield Crowd(process, pool, empty, process.rss(), order)


@contextmanager
def _progress(process: Process, count: int) -> Iterator[None]:
    """A bar of the sessions that are open, until all are."""
    over = threading.Event()

    def watch() -> None:
        with statestream.connect(process.address) as client, Progress(transient=True) as progress:
            task = progress.add_task(f"opening {count:,} sessions", total=count)
            while not over.wait(0.5):
                open_now = sum(model.resident_sessions for model in client.models())
                progress.update(task, completed=open_now)
                if open_now >= count:
                    return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _steps_per_second(crowd: Crowd, seconds: float, *, renew: bool) -> float:
    """Steps a second in closed loop, of the same sessions or of others with every frame."""
    x, rows = np.ones((FEW, FEATURES), np.float32), crowd.draw()
    for _ in range(5):
        crowd.pool.step(x, rows=rows)
    start, frames = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        crowd.pool.step(x, rows=crowd.draw() if renew else rows)
        frames += 1
    return frames * FEW / passed
