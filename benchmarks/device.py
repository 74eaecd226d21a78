"""`python -m benchmarks.device`: rows on the device against rows through the host, and the device's own ceiling.

In one process and without gRPC: what is compared is where the rows lie. On the CPU the two are the same memory; the
table then only shows what the path for devices costs there.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np
import onnxruntime
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import models
from statestream_server.arrays import Array
from statestream_server.models.files import modelfile
from statestream_server.models.files.modelfile import ModelFile
from statestream_server.models.graphs.runtime import Device, Graph, providers_for
from statestream_server.models.memory.device_rows import DeviceRows
from statestream_server.models.memory.fused_rows import FusedRows
from statestream_server.models.memory.numpy_rows import NumpyRows
from statestream_server.models.memory.policies import BucketedRows
from statestream_server.models.rows import FIRST_ROW, Rows

SHAPES = ((1, 1), (64, 1), (256, 1), (1024, 1), (4096, 1), (256, 16), (1024, 16))
FEATURES = 8
PATHS = ("rows on the device", "rows through the host", "raw, all on the device", "rows on the CPU")


class Raw:
    """The model's own graph with inputs, states and outputs in the device's memory: nothing travels, nobody gathers."""

    def __init__(self, graph: Graph, file: ModelFile, device: Device) -> None:
        self._graph, self._signature, self._device = graph, file.signature, device

    def runner(self, count: int, steps: int) -> Callable[[], None]:
        def place(array: Array) -> onnxruntime.OrtValue:
            return onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device.kind, self._device.number)

        states = [[size if size >= 0 else count for size in state.shape] for state in self._signature.states]
        zeros = [np.zeros(shape, np.float32) for shape in states]
        turns = [[place(value) for value in zeros], [place(value.copy()) for value in zeros]]
        x = np.random.default_rng(0).standard_normal((count, steps, FEATURES)).astype(np.float32)
        y = place(np.zeros((count, steps, 1), np.float32))
        bindings = []
        for now, following in (turns, turns[::-1]):
            binding = self._graph.session.io_binding()
            binding.bind_ortvalue_input(self._signature.inputs[0].name, place(x))
            binding.bind_ortvalue_output(self._signature.outputs[0].name, y)
            for state, before, after in zip(self._signature.states, now, following, strict=True):
                binding.bind_ortvalue_input(state.input, before)
                binding.bind_ortvalue_output(state.output, after)
            bindings.append(binding)

        def run() -> None:
            for binding in bindings:
                self._graph.session.run_with_iobinding(binding)

        return run


def stepper(rows: Rows, count: int, steps: int, resident: int) -> Callable[[], None]:
    """Two steps of rows at random places."""
    rng = np.random.default_rng(1)
    chosen = rng.permutation(np.arange(FIRST_ROW, resident))[:count]
    x = rng.standard_normal((count, steps, FEATURES)).astype(np.float32)

    def run() -> None:
        for _ in range(2):
            rows.step(chosen, chosen, [x])

    return run


def runs_per_second(run: Callable[[], None], seconds: float) -> float:
    """Single runs a second; what is measured runs two."""
    done, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        run()
        done += 2
    return done / passed


def paths(file: ModelFile, device: Device, resident: int) -> tuple[dict[str, Rows], Raw]:
    """The model's rows where they can lie, each with `resident` rows at their start."""
    graph, cpu = Graph(file.path, device), providers_for("cpu")
    on_device: Rows = DeviceRows(file.whole(), file.signature, device, check_inputs=True)
    through: Rows = NumpyRows(graph, file.signature, check_inputs=True)
    if device.apart:
        on_device, through = BucketedRows(on_device), BucketedRows(through)
    on_host = FusedRows(file.whole(), file.signature, cpu, check_inputs=True)
    found = dict(zip((PATHS[0], PATHS[1], PATHS[3]), (on_device, through, on_host), strict=True))
    for rows in found.values():
        rows.grow(resident)
        rows.reset(np.arange(resident))
    return found, Raw(graph, file, device)


def measure(
    file: ModelFile, device: Device, shapes: Sequence[tuple[int, int]], resident: int, rounds: int, seconds: float
) -> dict[tuple[int, int], dict[str, float]]:
    """Steps a second by shape and path: medians of interleaved rounds, each path warmed for its shape first."""
    memories, raw = paths(file, device, resident)
    found = {}
    for count, steps in track(shapes, "measuring"):
        runs = {name: stepper(rows, count, steps, resident) for name, rows in memories.items()}
        runs[PATHS[2]] = raw.runner(count, steps)
        for run in runs.values():
            run()
        rates = [{name: runs_per_second(run, seconds) for name, run in runs.items()} for _ in range(rounds)]
        found[count, steps] = {name: statistics.median(rate[name] for rate in rates) * count * steps for name in runs}
    return found


def copying(file: ModelFile, device: Device, resident: int) -> list[tuple[str, float]]:
    """Seconds of what moves rows without a step."""
    rows = DeviceRows(file.whole(), file.signature, device, check_inputs=False)
    rows.grow(resident)
    every = np.arange(FIRST_ROW, min(resident, FIRST_ROW + 10_000))

    def seconds(action: Callable[[], object]) -> float:
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    seconds(lambda: rows.reset(every))
    return [
        (f"reset of {len(every):,} rows", seconds(lambda: rows.reset(every))),
        (f"read of {len(every):,} rows, as a checkpoint does", seconds(lambda: rows.read(every))),
        (f"growing from {resident:,} rows to twice as many", seconds(lambda: rows.grow(2 * resident))),
    ]


@click.command()
@click.option("--device", "name", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--model", type=click.Choice(["lstm", "lstm-wide"]), default="lstm", show_default=True)
@click.option("--resident", default=100_000, show_default=True, help="Rows in memory.")
@click.option("--rounds", default=5, show_default=True, help="Every path is measured so often; medians count.")
@click.option("--seconds", default=0.5, show_default=True, help="How long each measurement takes.")
def main(name: str, model: str, resident: int, rounds: int, seconds: float) -> None:
    """Measures rows on a device against rows through the host, and how far both are from the bare graph."""
    device = providers_for(name)
    if not device.apart:
        click.echo(f"This is the CPU{f', as {device.note}' if device.note else ''}: its figures say nothing of a GPU.")
    with tempfile.TemporaryDirectory() as folder:
        models.make(Path(folder))
        file = modelfile.read(Path(folder) / model / "1" / "model.onnx")
        shapes = [shape for shape in SHAPES if shape[0] < resident]
        found = measure(file, device, shapes, resident, rounds, seconds)
        moves = copying(file, device, resident)
    where = (
        f"{device.name}: {device.hardware}" if device.apart else f"cpu: {platform.processor() or platform.machine()}"
    )
    table = Table(title=f"{model}, {resident:,} rows, onnxruntime {onnxruntime.__version__}\n{where}")
    for column in ("rows × steps", *(f"{path}, steps/s" for path in PATHS), "device / host", "device / raw"):
        table.add_column(column, justify="right")
    for (count, steps), rates in found.items():
        ours = rates[PATHS[0]]
        table.add_row(
            f"{count:,} × {steps}",
            *(f"{rates[path]:,.0f}" for path in PATHS),
            f"{ours / rates[PATHS[1]]:.2f}",
            f"{ours / rates[PATHS[2]]:.2f}",
        )
    console = Console(width=150)
    console.print(table)
    for what, taken in moves:
        console.print(f"{what}: {taken * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
