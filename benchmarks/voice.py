"""Streams a core: Silero VAD for many calls behind a server, beside the package's own loop over one, bit-compared.

A stream is 32 ms of sound every 32 ms; how many fit on a core is 32 ms over the processor time of a frame. The file
and the loop are those of the package silero-vad; without it the rows are left out. `python -m benchmarks.voice` prints
them; with --docs it writes its section of docs/benchmarks.md.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
import numpy as np
from rich.progress import track

import statestream
from benchmarks import figures, page, processes, quantized, raw, table
from benchmarks.cases import AHEAD
from benchmarks.processes import Process
from benchmarks.table import Row, Target
from tests.support import others, voice

NAME: Final = "Silero VAD"
CALLS: Final = 256
SIZES: Final = (1, 4, 16, 64, 256, 1024)
"""Calls at once, of the curve."""
PUBLISHED: Final = 113e-6
"""Seconds of one thread for a frame, unbatched, as its authors say."""
MISSING: Final = f"{NAME} is left out: the package silero-vad is not installed"
_FILE: Final = "silero_vad.onnx"
_COMPARED: Final = 16
"""Calls of which each frame is compared with the package's."""


class DiffersError(Exception):
    """The server answered otherwise than the package."""


def installed() -> bool:
    """Whether there is something to measure."""
    return others.found("silero_vad", f"data/{_FILE}") is not None


def make(models: Path) -> None:
    """Writes the package's file and what it is told."""
    models.mkdir(parents=True)
    shutil.copy(voice.source(_FILE), models / "vad.onnx")
    (models / "vad.toml").write_text(voice.told(voice.RATE))


def compare(server: Process, calls: voice.Samples) -> None:
    """Streams all calls at once and compares some with the package's wrapper, bit by bit.

    Raises:
        DiffersError: They are not the same.
    """
    with statestream.connect(server.address) as client, client.sessions("vad", len(calls)) as pool:
        found = np.stack([scores[:, 0] for scores in pool.stream(calls.swapaxes(0, 1), ahead=AHEAD)], axis=1)
    for call in range(0, len(calls), len(calls) // _COMPARED):
        if not np.array_equal(found[call], voice.wrapped(_FILE, calls[call])):
            raise DiffersError(f"call {call} of {len(calls)} hears other scores than the package's wrapper")


def served(server: Process, calls: voice.Samples, seconds: float, *, both: bool) -> float:
    """Streams that a core carries: by the server's processor time, or by that of client and server together."""
    frames = calls.swapaxes(0, 1).copy()
    with statestream.connect(server.address) as client, client.sessions("vad", len(calls)) as pool:
        for _ in range(AHEAD):
            pool.step(frames[0])
        began, own, count = server.cpu_seconds(), time.process_time(), 0
        start = time.perf_counter()

        def feed() -> Iterator[voice.Samples]:
            for frame in itertools.cycle(frames):
                # The system counts in hundredths of a second: a short window goes on until there is one.
                if time.perf_counter() - start > seconds and server.cpu_seconds() > began:
                    return
                yield frame

        for _ in pool.stream(feed(), ahead=AHEAD):
            count += len(calls)
        used = server.cpu_seconds() - began + (time.process_time() - own if both else 0)
    return _streams(used / count)


def package(call: voice.Samples, seconds: float) -> float:
    """Streams that a core carries in the package's own loop over one call."""
    import torch

    wrapper, frames = voice.wrapper_of(voice.source(_FILE)), [torch.from_numpy(frame) for frame in call]
    return _streams(_each(seconds, [partial(wrapper, frame, voice.RATE) for frame in frames]))


def alone(count: int, seconds: float) -> float:
    """The same of ONNX Runtime with one thread and so many calls a run, around which nothing is kept."""
    graph = raw.open_graph(str(voice.source(_FILE)))
    frames, context = voice.calls(count), np.zeros((count, voice.sizes(voice.RATE)[1]), np.float32)
    state: dict[str, Any] = {"state": np.zeros((2, count, 128), np.float32), "sr": np.asarray(voice.RATE)}
    inputs = [np.concatenate([context, frames[:, step]], axis=1) for step in range(frames.shape[1])]
    return _streams(_each(seconds, [partial(graph.run, None, {"input": x, **state}) for x in inputs]) / count)


def _each(seconds: float, runs: list[Callable[[], object]]) -> float:
    """Seconds of this thread's processor time for one of some runs, which go round and round."""
    for run in runs[:10]:
        run()
    start, began, count = time.perf_counter(), time.thread_time(), 0
    while time.perf_counter() - start < seconds:
        runs[count % len(runs)]()
        count += 1
    return (time.thread_time() - began) / count


def _streams(each: float) -> float:
    return voice.FRAME / voice.RATE / each


def rows(server: Process, calls: voice.Samples, seconds: float) -> list[Row]:
    """Every comparison."""

    def loop() -> float:
        return package(calls[0], seconds)

    what, unit = f"{NAME}, {CALLS} calls at once", "streams a core"
    return [
        Row(
            f"{what}: the server, against the package's own loop over one",
            Target(2),
            lambda: served(server, calls, seconds, both=False),
            loop,
            unit,
        ),
        Row(
            f"{what}: server and client together, against that loop",
            Target(1.5),
            lambda: served(server, calls, seconds, both=True),
            loop,
            unit,
        ),
        Row(
            f"{what}: the server, against the published {PUBLISHED * 1e6:.0f} µs a frame",
            None,
            lambda: served(server, calls, seconds, both=False),
            lambda: _streams(PUBLISHED),
            unit,
        ),
        Row(
            f"{NAME} in ONNX Runtime alone, {CALLS} calls a run, against one",
            None,
            lambda: alone(CALLS, seconds),
            lambda: alone(1, seconds),
            unit,
        ),
    ]


def curve(server: Process, rounds: int, seconds: float) -> dict[str, Any]:
    """Streams a core by how many calls there are at once: the median, least and most of some rounds."""
    sides: dict[str, Callable[[int], float]] = {
        "ONNX Runtime alone, so many calls a run": lambda count: alone(count, seconds),
        "the server": lambda count: served(server, voice.calls(count), seconds, both=False),
        "server and client together": lambda count: served(server, voice.calls(count), seconds, both=True),
        "the package's own loop, call by call": lambda count: package(voice.calls(1)[0], seconds),
    }
    found: dict[str, list[list[float]]] = {name: [] for name in sides}
    for count in SIZES:
        took = [[side(count) for side in sides.values()] for _ in range(rounds)]
        for name, values in zip(sides, zip(*took, strict=True), strict=True):
            found[name].append([figures.rounded(each) for each in (median(values), min(values), max(values))])
    return {"calls": list(SIZES), "streams": found}


def measure(folder: Path, rounds: int, seconds: float) -> tuple[list[table.Result], dict[str, Any]]:
    """Serves the file in a new folder on one thread, compares its answers, measures every row and the curve.

    Raises:
        DiffersError: The server answers otherwise than the package.
    """
    make(folder / "models")
    calls = voice.calls(CALLS)
    with processes.statestream(folder / "models", folder, "--threads", "1") as server:
        compare(server, calls)
        measured = rows(server, calls, seconds)
        for _ in track(range(rounds), f"measuring {NAME}"):
            for row in measured:
                row.measure()
        found = table.results(measured)
        return found, {"rows": quantized.plain(found), **curve(server, min(rounds, 3), seconds / 2)}


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Every pair is measured so often; medians count.")
@click.option("--seconds", default=1.0, show_default=True, help="How long each measurement takes.")
@click.option("--docs", is_flag=True, help="Writes the section of docs/benchmarks.md.")
def main(rounds: int, seconds: float, docs: bool) -> None:
    """Measures Silero VAD behind a server against its package's own loop."""
    if not installed():
        raise click.ClickException(MISSING)
    with tempfile.TemporaryDirectory() as name:
        _, found = measure(Path(name), rounds, seconds)
    click.echo(page.voice(found))
    if docs:
        figures.update({"voice": found})
        page.write()


if __name__ == "__main__":
    main()
