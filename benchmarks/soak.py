"""A server under mixed load for long: outputs stay right, memory stays flat, nothing is left at the end.

`python -m benchmarks.soak --minutes 30`; with --docs it goes into docs/benchmarks.md.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import uvloop
from prometheus_client.parser import text_string_to_metric_families
from rich.progress import Progress

from benchmarks import figures, models, page, processes
from benchmarks.load import Load
from benchmarks.processes import Process

HELD: Final[Mapping[str, str]] = {
    "statestream_sessions": "sessions",
    "statestream_rows": "rows",
    "statestream_kept_replies": "kept replies",
    "statestream_handles": "handles",
    "statestream_queued_chunks": "queued chunks",
    "statestream_streams": "streams",
}
"""What the server holds, by the metric that counts it."""
WARM_UP: Final = 0.3
"""The part of the time in which memory may grow: buffers find their size, allocators their arenas."""
_LOOKS_A_SECOND = 4
_RSS_SLACK: Final = 8 << 20
_CACHES: Final = 32 << 20
"""What sqlite keeps of its pages. It fills in the first minute, which a short soak cannot wait for."""
_CACHES_FILL_SECONDS: Final = 60.0
_COUNT_SLACK = 500
_EMPTY_SECONDS = 10.0


class SoakError(Exception):
    """What the soak found; one line with the figures."""


@dataclass
class Record:
    """What was seen over time.

    Attributes:
        seconds: When, since the start.
        rss: Bytes of the server.
        counts: What it held, by name.
    """

    seconds: list[float] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)
    counts: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in HELD.values()})

    def settled(self, values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Times and values after the warm-up."""
        first = int(len(self.seconds) * WARM_UP)
        return np.asarray(self.seconds[first:]), np.asarray(values[first:], np.float64)

    def slack(self) -> int:
        """Bytes by which memory may grow after the warm-up."""
        return _RSS_SLACK + (_CACHES if self.seconds[-1] * WARM_UP < _CACHES_FILL_SECONDS else 0)


def growth(seconds: np.ndarray, values: np.ndarray) -> float:
    """How much a straight line through the values rises from the first to the last moment."""
    slope = np.polyfit(seconds - seconds[0], values, 1)[0]
    return float(slope * (seconds[-1] - seconds[0]))


def check(record: Record, load: Load) -> None:
    """Judges a soak.

    Raises:
        SoakError: Memory or what is held grew after the warm-up, or an output was wrong.
    """
    if not load.compared or load.different:
        raise SoakError(f"{load.different:,} of {load.compared:,} outputs differ from ONNX Runtime alone")
    for name, values in record.counts.items():
        seconds, settled = record.settled(values)
        rise = growth(seconds, settled)
        if rise > _COUNT_SLACK + 0.5 * settled.mean():
            raise SoakError(
                f"{name} grew by {rise:,.0f} in {seconds[-1] - seconds[0]:.0f} s after the warm-up,"
                f" from {settled[0]:,.0f} to {settled[-1]:,.0f}"
            )
    seconds, settled = record.settled(record.rss)
    rise = growth(seconds, settled)
    if rise > record.slack():
        raise SoakError(
            f"the server's memory grew by {rise / 2**20:.1f} MiB in {seconds[-1] - seconds[0]:.0f} s after the"
            f" warm-up (at most {record.slack() / 2**20:.0f}), to {settled[-1] / 2**20:.0f} MiB"
        )


def run(folder: Path, seconds: float, *, leak: bool = False) -> dict[str, Any]:
    """Soaks a server; what was found.

    Args:
        folder: An empty folder for models and store.
        seconds: How long the load runs.
        leak: The load leaves sessions open, so that the soak must fail.

    Raises:
        SoakError: See `check`; or something was still held at the end.
    """
    models.make(folder / "models")
    port = processes.free_port()
    with processes.statestream(folder / "models", folder, "--http-port", str(port)) as server:
        began = time.monotonic()
        load = Load(server.address, folder / "models", began + seconds, leak=leak)
        record = Record()

        async def main() -> None:
            watching = asyncio.create_task(_watch(server, port, record, began, seconds))
            await load.run()
            await watching

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
        check(record, load)
        _wait_until_empty(port)
    seconds_settled, rss = record.settled(record.rss)
    an_hour = 3600 / (seconds_settled[-1] - seconds_settled[0])
    every = max(1, len(record.seconds) // 400)
    return {
        "seconds": [round(second, 1) for second in record.seconds[::every]],
        "rss": record.rss[::every],
        "counts": {name: values[::every] for name, values in record.counts.items()},
        "warm_up_seconds": round(float(seconds_settled[0]), 1),
        "rss_start": int(rss[0]),
        "rss_end": int(rss[-1]),
        "slope_bytes_an_hour": round(growth(seconds_settled, rss) * an_hour),
        "bound_bytes_an_hour": round(record.slack() * an_hour),
        "done": dict(load.done),
        "compared": load.compared,
        "different": load.different,
    }


async def _watch(server: Process, port: int, record: Record, began: float, seconds: float) -> None:
    with Progress(transient=True) as progress:
        task = progress.add_task("soaking", total=seconds)
        while (now := time.monotonic() - began) < seconds:
            counts = await asyncio.to_thread(_counts, port)
            record.seconds.append(now)
            record.rss.append(server.rss())
            for name, values in record.counts.items():
                values.append(counts[name])
            progress.update(task, completed=now)
            await asyncio.sleep(1 / _LOOKS_A_SECOND)


def _counts(port: int) -> dict[str, int]:
    """What the server holds now."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found = dict.fromkeys(HELD.values(), 0)
    for family in text_string_to_metric_families(text):
        if family.name in HELD:
            found[HELD[family.name]] += int(sum(sample.value for sample in family.samples))
    return found


def _wait_until_empty(port: int) -> None:
    end = time.monotonic() + _EMPTY_SECONDS
    while any((held := _counts(port)).values()):
        if time.monotonic() > end:
            left = ", ".join(f"{count:,} {name}" for name, count in held.items() if count)
            raise SoakError(f"{_EMPTY_SECONDS:g} s after everything was closed the server still holds {left}")
        time.sleep(0.1)


@click.command()
@click.option("--minutes", default=10.0, show_default=True, help="How long the load runs.")
@click.option("--docs", is_flag=True, help="Writes the section of docs/benchmarks.md, its picture and figures.")
def main(minutes: float, docs: bool) -> None:
    """Keeps a server under mixed load, and fails where outputs are wrong or anything grows."""
    with tempfile.TemporaryDirectory() as name:
        try:
            found = run(Path(name), 60 * minutes)
        except SoakError as error:
            raise click.ClickException(str(error)) from error
    click.echo(page.soak(found))
    if docs:
        figures.update({"soak": found})
        page.write()


if __name__ == "__main__":
    main()
