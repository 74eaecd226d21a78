"""Forecasts: many paths in one call beside raw ONNX Runtime, and what live steps wait for meanwhile.

`python -m benchmarks.forecasts` prints the table; with --docs it writes its section of docs/benchmarks.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch
from rich.progress import track

import statestream
from benchmarks import cases, figures, models, page, processes, quantized, raw, table
from benchmarks.curves import HALF_LOAD
from benchmarks.processes import Process
from benchmarks.table import Row, Target
from statestream_export import State, export, gaussian

SERIES, H, PATHS, PAST, HIDDEN = 1000, 24, 100, 24, 64
ASKED: Final[dict[str, Any]] = {"h": H, "quantiles": [0.1, 0.5, 0.9], "num_samples": PATHS, "seed": 1}


class Sales(torch.nn.Module):
    """LSTM 1 → 2 × 64 → a Gaussian, after DeepAR."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = torch.nn.LSTM(1, HIDDEN, 2, batch_first=True)
        self.head = torch.nn.Linear(HIDDEN, 2)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, (h, c) = self.cells(x, (h, c))
        loc, scale = self.head(y).split(1, -1)
        return loc, torch.nn.functional.softplus(scale) + 0.1, h, c


def make(folder: Path) -> None:
    """Writes lstm, as the other benchmarks have it, and sales."""
    models.make(folder)
    torch.manual_seed(0)
    zeros = torch.zeros(2, 1, HIDDEN)
    export(
        Sales(),
        {"x": torch.zeros(2, 3, 1)},
        states={"h": State(zeros, batch_axis=1), "c": State(zeros, batch_axis=1)},
        outputs=["loc", "scale"],
        time_axis=1,
        head={"sold": gaussian("loc", "scale")},
        feedback={"sold": "x"},
        path=folder / "sales" / "1",
    )


def past() -> np.ndarray:
    """The histories, [SERIES, PAST, 1]."""
    return np.random.default_rng(0).standard_normal((SERIES, PAST, 1)).astype(np.float32)


def paths(server: Process) -> float:
    """Steps of paths a second in one call; those of the histories are not counted."""
    with statestream.connect(server.address) as client:
        start = time.perf_counter()
        client.forecast("sales", past(), **ASKED)
        return SERIES * PATHS * H / (time.perf_counter() - start)


def alone(folder: Path, rows: int, seconds: float) -> float:
    """Steps a second of raw ONNX Runtime with so many rows a run."""
    graph = raw.open_graph(str(folder / "sales" / "1" / "model.onnx"))
    x, states = np.zeros((rows, 1, 1), np.float32), raw.start_states(graph, rows)
    runs, start = 0, 0.0
    while not runs or (passed := time.perf_counter() - start) < seconds:
        _, _, *new = graph.run(None, {"x": x, **states})
        states = dict(zip(states, new, strict=True))
        if not start:  # The first run is not measured.
            start = time.perf_counter()
        runs += 1
    return (runs - 1) * rows / passed


def trips(server: Process, seconds: float, *, beside: bool) -> float:
    """p99 of single steps at half load in milliseconds, while such forecasts run one after the other, or none."""

    async def main() -> list[float]:
        x, found = np.ones(cases.FEATURES, np.float32), list[float]()
        async with statestream.aio.connect(server.address) as client, statestream.aio.connect(server.address) as other:
            sessions = await asyncio.gather(*(client.session("lstm").__aenter__() for _ in range(64)))
            began = asyncio.Event()

            async def forecast() -> None:
                while True:
                    async for _ in other.forecast_steps("sales", past(), **ASKED):
                        began.set()

            task = asyncio.create_task(forecast()) if beside else None
            if task is not None:
                await began.wait()
            end = time.perf_counter() + seconds

            async def one(session: Any, number: int) -> None:
                due = time.perf_counter() + number / HALF_LOAD
                while due < end:
                    await asyncio.sleep(max(0.0, due - time.perf_counter()))
                    start = time.perf_counter()
                    await session.step(x)
                    found.append(time.perf_counter() - start)
                    due += len(sessions) / HALF_LOAD

            await asyncio.gather(*(one(session, number) for number, session in enumerate(sessions)))
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await asyncio.gather(*(session.delete() for session in sessions))
        return found

    return float(np.quantile(cases.run(main()), 0.99)) * 1e3


def rows(server: Process, folder: Path, seconds: float) -> list[Row]:
    """Every comparison."""
    what = f"forecast in one call, {SERIES:,} series × {H} steps × {PATHS} paths, against raw ONNX Runtime"
    return [
        Row(
            f"{what} with as many rows a run",
            Target(0.6),
            lambda: paths(server),
            lambda: alone(folder, SERIES * PATHS, seconds),
            "steps/s",
        ),
        Row(
            f"{what} with 1,024 rows a run, where it is fastest",
            Target(0.6),
            lambda: paths(server),
            lambda: alone(folder, 1024, seconds),
            "steps/s",
        ),
        Row(
            "p99 of single steps at half load beside such forecasts, against without",
            Target(2, least=False, slack=2.0),
            lambda: trips(server, 3 * seconds, beside=True),
            lambda: trips(server, 3 * seconds, beside=False),
            "ms",
        ),
    ]


def measure(folder: Path, rounds: int, seconds: float) -> list[table.Result]:
    """Serves the models in a new folder and measures every row."""
    make(folder / "models")
    with processes.statestream(folder / "models", folder) as server:
        measured = rows(server, folder / "models", seconds)
        for _ in track(range(rounds), "measuring forecasts"):
            for row in measured:
                row.measure()
    return table.results(measured)


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Every pair is measured so often; medians count.")
@click.option("--seconds", default=1.0, show_default=True, help="How long each measurement takes.")
@click.option("--docs", is_flag=True, help="Writes the section of docs/benchmarks.md.")
def main(rounds: int, seconds: float, docs: bool) -> None:
    """Measures forecasts against raw ONNX Runtime, and live steps beside them."""
    with tempfile.TemporaryDirectory() as name:
        found = quantized.plain(measure(Path(name), rounds, seconds))
    click.echo(page.ratios(found))
    if docs:
        figures.update({"forecasts": found})
        page.write()


if __name__ == "__main__":
    main()
