"""A lone step by its stages: how long each takes of the round trip of one session that has the server to itself.

`python -m benchmarks.lone` measures and prints it; with --docs it goes into docs/benchmarks.md.
"""

from __future__ import annotations

import json
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

import statestream
from benchmarks import figures, models, page, processes
from benchmarks.cases import FEATURES, run
from benchmarks.edge import OURS, edge_options, lone_echo
from benchmarks.figures import rounded
from benchmarks.marked import READ, RUN, RUNTIME, WRITE

STAGES: Final = (
    "client: the step becomes a frame and leaves; the server wakes",
    "server: reads the frame, checks its bytes",
    "server: position, acknowledgement, bounds; nothing else waits",
    "server: rows and inputs in",
    "server: ONNX Runtime",
    "server: checks, rows out; position and reply kept, the answer's bytes",
    "server: writes to the socket",
    "client: wakes, reads, the caller goes on",
)
PASSED: Final = (
    f"{READ}+", f"{READ}-", f"{RUN}+", f"{RUNTIME}+", f"{RUNTIME}-", f"{WRITE}+", f"{WRITE}-"
)  # fmt: skip
"""What every step passes, in order."""
_WARM: Final = 300
"""Steps that do not count."""


def measure(folder: Path, seconds: float) -> dict[str, Any]:
    """Microseconds of every stage: the median, and what a quarter is below and above."""
    made, marks = folder / "models", folder / "marks.json"
    models.make(made)
    with processes.marked(made, folder, marks, *edge_options(OURS)) as server:
        trips = run(_trips(server.address, seconds))
    with processes.echo() as bare:
        floor = lone_echo(bare, seconds).value
    found = stages(json.loads(marks.read_text()), trips[_WARM:])
    return {
        "stages": {name: [rounded(value) for value in values] for name, values in zip(STAGES, found, strict=True)},
        "whole": rounded(float(np.median([end - begin for begin, end in trips[_WARM:]])) / 1e3),
        "echo": rounded(floor),
        "steps": len(trips) - _WARM,
    }


async def _trips(address: str, seconds: float) -> list[tuple[int, int]]:
    """When each step began and ended, in ns of the machine's clock."""
    x, trips, clock = np.ones(FEATURES, np.float32), list[tuple[int, int]](), time.perf_counter_ns
    async with statestream.aio.connect(address) as client, client.session("lstm") as session:
        until = clock() + int(seconds * 1e9)
        while (begin := clock()) < until or len(trips) <= 2 * _WARM:
            await session.step(x)
            trips.append((begin, clock()))
    return trips


def stages(marks: Sequence[tuple[int, str]], trips: Sequence[tuple[int, int]]) -> list[list[float]]:
    """The stages of steps that passed every mark in order, each as median, lower and upper quartile in µs.

    Args:
        marks: Times in ns with the names of what began (+) or ended (-) then, in order.
        trips: When each step began and ended, in ns.
    """
    times, parts = [at for at, _ in marks], list[list[float]]()
    for begin, end in trips:
        seen = list[int]()
        for at, name in marks[bisect_left(times, begin) : bisect_right(times, end)]:
            if len(seen) < len(PASSED) and name == PASSED[len(seen)]:
                seen.append(at)
        if len(seen) < len(PASSED):
            continue
        parts.append([(after - before) / 1e3 for before, after in pairwise([begin, *seen, end])])
    columns = np.quantile(np.asarray(parts), [0.5, 0.25, 0.75], axis=0)
    return [list(map(float, column)) for column in columns.T]


@click.command()
@click.option("--seconds", default=3.0, show_default=True, help="How long steps follow each other.")
@click.option("--docs", is_flag=True, help="Writes the section of docs/benchmarks.md and its figures.")
def main(seconds: float, docs: bool) -> None:
    """Shows where the round trip of a lone step goes."""
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), seconds)
    click.echo(page.lone(found))
    if docs:
        figures.update({"lone": found})
        page.write()


if __name__ == "__main__":
    main()
