"""Trains, exports, serves and streams; kills the server half-way, starts it again, and goes on where it was.

    make demo                     or: .venv/bin/python demo/demo.py
    make demo ARGS=--quick        a few epochs only: everything but the forecast's quality

A 2-layer LSTM learns the yearly numbers of sunspots up to 1939. A named session is told 1940 to 2008 year by
year and answers with its forecast of the next. Half-way the server process gets SIGKILL from another thread;
the loop that calls `session.step` neither knows nor does anything about it. The demo exits with 1 where a step
was lost or repeated, or an answer is not what it should be.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

import numpy as np
from rich.console import Console

import charts
import figures
import statestream
from charts import Numbers, Story
from server_process import ServerError, ServerProcess
from statestream_export.recipes.sunspots import SEASON, TEST_FROM, Forecaster, Series, recipe
from statestream_export.training import Run, reproducible

HORIZON = 24
POOL = 1_000
LEFT_BY_RUNS = ("models", "sessions.db", "sessions.db-wal", "sessions.db-shm", "server.log", "demo.png")

console = Console(stderr=True, highlight=False)


class Crash:
    """Another hand: a thread that kills the server when told to, and starts it again.

    Attributes:
        restart_seconds: How long the server took to be there again.
    """

    def __init__(self, server: ServerProcess) -> None:
        """Nothing happens before `now` is called."""
        self.restart_seconds = 0.0
        self.failure: ServerError | None = None
        self._server = server
        self._told = threading.Event()
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="crash")

    def __enter__(self) -> Crash:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abandoned = not self._told.is_set()
        self._told.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def now(self) -> None:
        """Lets it happen; returns at once."""
        self._told.set()

    def _run(self) -> None:
        self._told.wait()
        if self._abandoned:
            return
        self._server.kill()
        try:
            self.restart_seconds = self._server.start()
        except ServerError as error:
            self.failure = error


@dataclass(frozen=True)
class Streamed:
    """What the client's loop saw.

    Attributes:
        answers: One answer for every year of the series [T].
        seconds: How long each of the held-out steps took.
        forecast: The forecast from the end [HORIZON].
        servers: The names of the server processes before and after.
        restart_seconds: How long the second start took.
        pool_rate: Steps a second of `POOL` sessions that step together.
    """

    answers: Numbers
    seconds: Numbers
    forecast: Numbers
    position: int
    position_after: int
    servers: tuple[str, str]
    restart_seconds: float
    pool_rate: float


def train(quick: bool) -> tuple[Forecaster, Series]:
    """Trains the recipe on the first part of the series, with a progress bar."""
    run = Run(quick, 0, console)
    with reproducible(0):
        data = recipe.data(run)
        module = recipe.module(data)
        curve = recipe.train(module, data, run)
    if curve.interrupted:
        raise KeyboardInterrupt
    return module, data


def export(module: Forecaster, data: Series, models: Path) -> Path:
    """Writes models/sunspots/1/model.onnx; torch and ONNX Runtime must agree on it first."""
    folder = models / recipe.card.name / "1"
    folder.mkdir(parents=True)
    return recipe.export(module, data, folder)[0].path


def stream(server: ServerProcess, data: Series, rounds: int) -> Streamed:
    """Steps a session through the series, with a crash in the middle of the held-out part."""
    first = data.at(TEST_FROM)
    past, held_out = data.numbers[:first], data.numbers[first:]
    answers, seconds = [], []
    with statestream.connect(server.address) as client, client.session(recipe.card.name, id="sunspots") as session:
        before = client.info().server_id
        answers.append(session.step(past[:, None])[:, 0])
        with Crash(server) as crash:
            for number in with_crash(held_out, crash):
                began = time.perf_counter()
                answers.append(session.step(number[None]))
                seconds.append(time.perf_counter() - began)
        position = position_on_server(client, session.id)
        forecast = np.concatenate(list(session.forecast(HORIZON)))
        after = client.info().server_id
        position_after = position_on_server(client, session.id)
        pool_rate = measure_pool(client, rounds)
    return Streamed(
        np.concatenate(answers),
        np.asarray(seconds, np.float32),
        forecast,
        position,
        position_after,
        (before, after),
        crash.restart_seconds,
        pool_rate,
    )


def position_on_server(client: statestream.Client, session: str) -> int:
    """Where a session stands, as the server tells it and not the client's own count."""
    return next(found.position for found in client.list_sessions(recipe.card.name) if found.id == session)


def with_crash(numbers: Numbers, crash: Crash) -> Iterator[Numbers]:
    """The numbers one by one; half-way the crash is let loose, while the next ones follow at once."""
    for place, number in enumerate(numbers):
        if place == len(numbers) // 2:
            crash.now()
        yield number


def measure_pool(client: statestream.Client, rounds: int) -> float:
    """Steps a second of many sessions that step together."""
    x = np.full((POOL, 1), 50, np.float32)
    with client.sessions(recipe.card.name, POOL) as pool:
        pool.step(x)
        began = time.perf_counter()
        for _ in range(rounds):
            pool.step(x)
        return rounds * POOL / (time.perf_counter() - began)


def report(model: Path, module: Forecaster, data: Series, seen: Streamed) -> list[str]:
    """Prints the figures.

    Returns:
        The promises that were broken, in words.
    """
    first, total = data.at(TEST_FROM), len(data.numbers)
    truth = data.numbers[first:]
    one_ahead = figures.errors_of(seen.answers[first - 1 : -1], truth)
    last_value = figures.errors_of(data.numbers[first - 1 : -1], truth)
    seasonal = figures.errors_of(data.numbers[first - SEASON : -SEASON], truth)
    expected, expected_forecast = figures.run_in_process(model, data.numbers, first, HORIZON)
    in_torch = figures.run_in_torch(module, data.numbers)
    pause = float(seen.seconds.max())
    median = float(np.median(seen.seconds))
    rate = (len(seen.seconds) - 1) / (float(seen.seconds.sum()) - pause)
    lost, repeated = max(0, total - seen.position), max(0, seen.position - total)
    same = int((seen.answers == expected).sum())
    gap = float(np.abs(seen.answers - in_torch).max())

    lines = [
        (
            "held out",
            f"{data.years[first]}–{data.years[-1]}, {len(truth)} years, one year ahead; RMSE / MAE in sunspots",
        ),
        ("  model", f"{one_ahead}"),
        ("  last value", f"{last_value}"),
        ("  seasonal", f"{seasonal} (the value {SEASON} years before)"),
        (
            "one session",
            f"{rate:,.0f} steps/s, {median * 1e3:.1f} ms a step (median); on disk before the answer leaves",
        ),
        ("a pool", f"{seen.pool_rate:,.0f} steps/s, {POOL:,} sessions a call, likewise on disk"),
        ("crash", f"{pause:.2f} s of pause in one step; the server's start took {seen.restart_seconds:.2f} s of it"),
        ("  steps", f"lost {lost}, repeated {repeated}"),
        ("  answers", f"{same} of {total} bit-identical to a run without server and crash"),
        ("forecast", f"{HORIZON} years from a fork; the session stayed at position {seen.position_after}"),
        ("against torch", f"{gap:.1e} sunspots at most; allowed {figures.allowed(in_torch).min():.1e}"),
        ("measured on", figures.hardware()),
    ]
    for name, text in lines:
        print(f"{name:<14} {text}")

    promises = {
        f"{lost} steps were lost and {repeated} repeated": not lost and not repeated,
        "the answers differ from those of a run without server and crash": _close(seen.answers, expected),
        "the forecast differs from that of a run without server": _close(seen.forecast, expected_forecast),
        "the answers differ from torch's": _close(seen.answers, in_torch),
        "the forecast moved the session": seen.position_after == seen.position,
        "the server was never killed": seen.servers[0] != seen.servers[1],
    }
    return [text for text, kept in promises.items() if not kept]


def _close(came: Numbers, expected: Numbers) -> bool:
    return came.shape == expected.shape and bool((np.abs(came - expected) <= figures.allowed(expected)).all())


def story(data: Series, seen: Streamed) -> Story:
    """What the chart shows."""
    first = data.at(TEST_FROM)
    years = data.years[first:]
    future = np.arange(years[-1] + 1, years[-1] + 1 + HORIZON)
    killed = int(years[int(seen.seconds.argmax())])
    return Story(years, data.numbers[first:], seen.answers[first - 1 : -1], future, seen.forecast, killed)


def run(folder: Path, quick: bool) -> int:
    """The whole of it; returns the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in LEFT_BY_RUNS:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    console.print("training on 1700–1939")
    module, data = train(quick)
    model = export(module, data, folder / "models")
    console.print(f"exported {model}")
    with ServerProcess(folder / "models", folder / "sessions.db", folder / "server.log") as server:
        console.print(f"serving at {server.address}; streaming {TEST_FROM}–{data.years[-1]}, with a SIGKILL half-way")
        seen = stream(server, data, rounds=3 if quick else 20)
    told = story(data, seen)
    charts.show(told)
    charts.save(told, folder / "demo.png")
    print()
    broken = report(model, module, data, seen)
    print(f"{'chart':<14} {folder / 'demo.png'}")
    for text in broken:
        print(f"BROKEN         {text}; the server's log is {folder / 'server.log'}")
    return 1 if broken else 0


def main() -> int:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few epochs only; the forecast is poor then")
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="where everything goes (.demo)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _leave)
    try:
        return run(arguments.folder, arguments.quick)
    except KeyboardInterrupt:
        console.print("interrupted; the server is stopped")
        return 130
    except (ServerError, statestream.StatestreamError) as error:
        console.print(f"the demo failed: {error}", markup=False)
        return 1


def _leave(number: int, _frame: FrameType | None) -> None:
    """Ends like Ctrl-C, so that the server is stopped."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
