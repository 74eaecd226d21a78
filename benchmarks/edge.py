"""The edges side by side: one message a step, one predict a call, and what a connection costs.

`python -m benchmarks.edge` compares `serve --edge h2` with `--edge grpcio` and with a bare grpc.aio echo, one right
after the other, and says what a step costs in processor time of the server; with --docs it writes its section of
docs/benchmarks.md. Raw calls and streams come from closed_loop.cc, gRPC's C++ client, because a client in Python
would be what is measured; it is built with g++ and libgrpc++-dev, and rows that need it are left out where they are
missing.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeAlias

import click
import grpc
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import statestream
from benchmarks import cases, closed_loop, echo, figures, models, page, processes, raw
from benchmarks.cases import run
from benchmarks.closed_loop import WARM, Figure
from benchmarks.processes import Process
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc as stubs
from statestream.v1.tensor_pb2 import Tensor
from tests.support import http2

OURS: Final = "h2"
EDGES: Final = (OURS, "grpcio")
ECHO: Final = "bare echo"
VOLATILE: Final = "h2, `--durability none`"
"""What does not wait for the store, as servers whose sessions end with them."""
RAW: Final = "ONNX Runtime"
MISSING: Final = "raw streams and calls are left out: they need g++, pkg-config and libgrpc++-dev"
_CONNECTIONS: Final = 400
_FEW: Final = 50
"""Connections that a server has before others are weighed, so that what it needs once does not count."""

Side: TypeAlias = Callable[[], Figure]


@dataclass
class Row:
    """One line of the table.

    Attributes:
        reference: The side that ours is divided by; None where the figure itself is judged.
        must: What the ratio must be, and what is aimed at.
        most: Microseconds of the server that one may cost, the same way.
        least: Whether more is better.
    """

    name: str
    unit: str
    reference: str | None
    sides: dict[str, Side]
    must: tuple[float, float]
    most: tuple[float, float] | None = None
    least: bool = True
    found: list[dict[str, Figure]] = field(default_factory=list)

    def measure(self, turn: int) -> None:
        """Measures every side, one right after the other; who begins changes."""
        order = [*self.sides] if turn % 2 == 0 else [*self.sides][::-1]
        self.found.append({side: self.sides[side]() for side in order})

    def figures(self) -> dict[str, Any]:
        """Medians with the least and the most of the rounds."""
        shown: dict[str, Any] = {
            "name": self.name,
            "unit": self.unit,
            "reference": self.reference,
            "must": list(self.must),
            "most": list(self.most) if self.most else None,
            "least": self.least,
            "sides": {
                side: {
                    "value": _spread([one[side].value for one in self.found]),
                    "server_us": _spread([1e6 * cost for one in self.found if (cost := one[side].server) is not None]),
                }
                for side in self.sides
            },
        }
        if self.reference is None:
            shown["judged"] = shown["sides"].get(OURS, {}).get("value")
        elif {OURS, self.reference} <= self.sides.keys():
            shown["judged"] = _spread([one[OURS].value / one[self.reference].value for one in self.found])
        return shown


def _spread(values: Sequence[float]) -> list[float] | None:
    return [figures.rounded(each) for each in (median(values), min(values), max(values))] if values else None


# Python's clients.


def tasks(server: Process, count: int, seconds: float) -> Figure:
    """asyncio tasks that call `client.predict` with one image each."""

    async def main() -> Figure:
        x = cases.images(1)
        async with statestream.aio.connect(server.address) as client:
            return await _calls(server, lambda: client.predict("convnet", x), count, seconds)

    return run(main())  # type: ignore[no-any-return]


def stub_tasks(server: Process, count: int, seconds: float) -> Figure:
    """The same tasks over the generated stub, each a unary call: what `client.predict` was."""

    async def main() -> Figure:
        x = cases.images(1)
        image = Tensor(name="x", dtype="float32", shape=x.shape, data=x.tobytes())
        request = pb.PredictRequest(model="convnet", inputs=[image])
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = stubs.InferenceServiceStub(channel)
            return await _calls(server, lambda: stub.Predict(request), count, seconds)

    return run(main())  # type: ignore[no-any-return]


async def _calls(server: Process, call: Callable[[], Any], count: int, seconds: float) -> Figure:
    done, begins = 0, time.perf_counter() + WARM
    used = begun = 0.0

    async def one() -> None:
        nonlocal done, used, begun
        while (now := time.perf_counter()) < begins + seconds:
            if not begun and now >= begins:
                used, begun = server.busy_seconds(), now
            await call()
            done += bool(begun)

    await asyncio.gather(*(one() for _ in range(count)))
    passed = time.perf_counter() - begun
    return Figure(done / passed, (server.busy_seconds() - used) / done)


def lone(server: Process, models_folder: Path, seconds: float) -> Figure:
    """The median round trip of one session, in µs."""
    bench = cases.Bench(server, server, server, models_folder)
    used = server.busy_seconds()
    trips = cases.round_trips(bench, seconds)
    return Figure(float(np.median(trips)) * 1e6, (server.busy_seconds() - used) / len(trips))


def lone_echo(server: Process, seconds: float) -> Figure:
    """The median round trip of the bare echo, in µs."""
    used = server.busy_seconds()
    _, trips = run(echo.messages_per_second(server.port, 1, seconds, bytes(64)))
    return Figure(float(np.median(trips)) * 1e6, (server.busy_seconds() - used) / len(trips))


def batches(server: Process, models_folder: Path, model: str, x: np.ndarray, seconds: float) -> Figure:
    """Items a second of `client.predict` with batches of 64."""
    bench = cases.Bench(server, server, server, models_folder)
    used, start = server.busy_seconds(), time.perf_counter()
    rate = cases.predict(bench, x, seconds, model=model)
    return Figure(rate, (server.busy_seconds() - used) / (rate * (time.perf_counter() - start)))


def connection_bytes(models_folder: Path, folder: Path, edge: str) -> Figure:
    """KiB of a server for one idle connection with one stream."""
    with processes.statestream(models_folder, folder, *edge_options(edge)) as server:

        async def main() -> float:
            wires = []
            weights = list[int]()
            for count in (_FEW, _CONNECTIONS):
                for _ in range(count):
                    wires.append(await http2.Wire(server.address).open())
                    await wires[-1].greet()
                    await wires[-1].send(http2.call(1, http2.STREAM))
                for wire in wires:
                    await wire.alive()
                await asyncio.sleep(0.5)
                weights.append(server.rss())
            for wire in wires:
                await wire.close()
            return (weights[1] - weights[0]) / _CONNECTIONS / 1024

        return Figure(run(main()))


# The table.


def edge_options(edge: str) -> list[str]:
    """What a server is told for an edge."""
    return ["--edge", edge]


def rows(
    servers: dict[str, Process],
    volatile: Process | None,
    bare: Process,
    folder: Path,
    seconds: float,
    *,
    compiled: bool,
) -> list[Row]:
    """Every comparison; `volatile` is a server of our edge that saves nothing."""
    made = folder / "models"

    def each(load: Callable[..., Figure], *given: Any) -> dict[str, Side]:
        return {edge: lambda server=server: load(server, *given, seconds) for edge, server in servers.items()}  # type: ignore[misc]

    raw_rows = [
        Row(
            "256 raw streams, one step a message",
            "steps/s",
            "grpcio",
            each(closed_loop.streams, 256)
            | {ECHO: lambda: closed_loop.echoes(bare, 256, seconds, echo.METHOD, "echo", 64)},
            (3, 5),
            (32, 18),
        ),
        Row(
            "unary Step, 256 callers",
            "calls/s",
            "grpcio",
            each(closed_loop.steps, 256)
            | {ECHO: lambda: closed_loop.echoes(bare, 256, seconds, echo.UNARY, "unary", 128)},
            (4, 9),
            (130, 55),
        ),
        Row(
            "256 streams of the Open Inference Protocol, one step a message",
            "steps/s",
            None,
            each(closed_loop.oip_streams, 256)
            | ({VOLATILE: lambda: closed_loop.oip_streams(volatile, 256, seconds)} if volatile else {}),
            (30_000, 30_000),
        ),
        Row(
            "unary ModelInfer of the Open Inference Protocol, 256 callers",
            "calls/s",
            None,
            each(closed_loop.oip_steps, 256)
            | ({VOLATILE: lambda: closed_loop.oip_steps(volatile, 256, seconds)} if volatile else {}),
            (9_000, 17_600),
        ),
        Row(
            "unary Predict of a small CNN, 64 callers, batch 1",
            "calls/s",
            "grpcio",
            each(closed_loop.predictions, 64)
            | {ECHO: lambda: closed_loop.echoes(bare, 64, seconds, echo.UNARY, "unary", 3200)},
            (3.5, 6.5),
        ),
    ]
    mlp, images = np.random.default_rng(0).normal(size=(64, models.PIXELS)).astype(np.float32), cases.images(64)
    unary = "unary stub"
    return [
        *(raw_rows if compiled else []),
        Row(
            "`client.predict` from 64 asyncio tasks, against unary calls over grpcio's edge",
            "calls/s",
            unary,
            each(tasks, 64)
            | ({unary: lambda: stub_tasks(servers["grpcio"], 64, seconds)} if "grpcio" in servers else {}),
            (8, 15),
        ),
        Row(
            "one session, `session.step`, p50",
            "µs",
            ECHO,
            each(lambda server, s: lone(server, made, s)) | {ECHO: lambda: lone_echo(bare, seconds)},
            (1.8, 1.5),
            least=False,
        ),
        *(
            Row(
                f"`client.predict`, batches of 64, {what}",
                "items/s",
                RAW,
                each(lambda server, s, model=model, x=x: batches(server, made, model, x, s))
                | {
                    RAW: lambda model=model, x=x: Figure(
                        raw.calls_per_second(str(made / model / "1" / "model.onnx"), x, seconds)
                    )
                },
                (0.7, 0.85),
            )
            for what, model, x in (("MLP", "mlp", mlp), ("CNN", "convnet", images))
        ),
        Row(
            "memory of an idle connection with one stream",
            "KiB",
            None,
            {edge: lambda edge=edge: connection_bytes(made, folder / f"idle-{edge}", edge) for edge in servers},  # type: ignore[misc]
            (64, 20),
            least=False,
        ),
    ]


def measure(
    folder: Path, rounds: int, seconds: float, *, edges: Sequence[str] = EDGES, only: str = ""
) -> list[dict[str, Any]]:
    """Measures every row so often, on servers of their own."""
    compiled = closed_loop.built()
    with ExitStack() as stack:
        servers = {}
        for edge in edges:
            (folder / edge).mkdir()
            (folder / f"idle-{edge}").mkdir()
            servers[edge] = stack.enter_context(
                processes.statestream(folder / "models", folder / edge, *edge_options(edge))
            )
        volatile = None
        if OURS in edges:
            (folder / "volatile").mkdir()
            options = (*edge_options(OURS), "--durability", "none")
            volatile = stack.enter_context(processes.statestream(folder / "models", folder / "volatile", *options))
        bare = stack.enter_context(processes.echo())
        chosen = [row for row in rows(servers, volatile, bare, folder, seconds, compiled=compiled) if only in row.name]
        for turn, row in track([*itertools.product(range(rounds), chosen)], "measuring edges"):
            row.measure(turn)
    return [row.figures() for row in chosen]


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Every row is measured so often; medians count.")
@click.option("--seconds", default=1.0, show_default=True, help="How long each measurement takes.")
@click.option("--only", default="", help="Only rows whose name contains this.")
@click.option("--edge", "edges", multiple=True, default=EDGES, show_default=True, type=click.Choice(EDGES))
@click.option("--docs", is_flag=True, help="Writes the section of docs/benchmarks.md.")
def main(rounds: int, seconds: float, only: str, edges: tuple[str, ...], docs: bool) -> None:
    """Measures the edges of the server side by side, and the processor time that a step costs it."""
    if docs and (only or set(edges) != set(EDGES)):
        raise click.UsageError("--docs writes whole runs only; leave out --only and --edge")
    if not closed_loop.built():
        click.echo(MISSING)
    with tempfile.TemporaryDirectory() as name:
        models.make(Path(name) / "models")
        found = measure(Path(name), rounds, seconds, edges=edges, only=only)
    show(found)
    if docs:
        figures.update({"edge": found})
        page.write()


def show(found: list[dict[str, Any]]) -> None:
    """Prints the table."""
    shown = Table(*page.EDGE_COLUMNS, title=figures.machine())
    for line in page.edge_lines(found):
        shown.add_row(*line)
    console = Console()
    (console if console.is_terminal else Console(width=180)).print(shown)


if __name__ == "__main__":
    main()
