"""Quantised models beside their float ones: alone in ONNX Runtime, behind the server, and as files.

`python -m benchmarks.quantized` prints the table; with --docs it writes its section of docs/benchmarks.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from onnxruntime.quantization import quantize_dynamic
from rich.progress import track

from benchmarks import cases, figures, models, page, processes, raw, table
from benchmarks.cases import Bench
from benchmarks.table import Row
from statestream_export import Export, export, quantized
from statestream_export.recipes.architectures import keep_variance
from statestream_export.recipes.resnet18 import ResNet18

RESNET = (8, 3, 64, 64)
"""Photos of a batch."""
LSTMS = {"lstm": "LSTM 8→2×64→1", "lstm-wide": "LSTM 8→2×256→1"}
_WEIGHTS_ARE_RANDOM = 1.0
"""The loss that is let through: random weights hardly answer to their inputs, and 8 bits are coarse beside that."""


def make(made: Mapping[str, Export], folder: Path) -> None:
    """Writes lstm-int8, lstm-wide-int8, convnet-int8, and resnet18 with resnet18-int8 beside the float models."""
    torch.manual_seed(1)
    network, photos = ResNet18(), torch.rand(RESNET)
    keep_variance(network)
    large = export(network, {"x": photos}, path=folder / "resnet18" / "1" / "model.onnx")
    quantized(large, path=folder / "resnet18-int8" / "1" / "model.onnx", max_loss=_WEIGHTS_ARE_RANDOM)
    examples = {"lstm": (64, 32, 8), "lstm-wide": (64, 32, 8), "convnet": (64, 1, 28, 28)}
    for name, shape in examples.items():
        path = folder / f"{name}-int8" / "1" / "model.onnx"
        quantized(made[name], path=path, calibration=torch.randn(shape), max_loss=_WEIGHTS_ARE_RANDOM)


def _make_dynamic(folder: Path) -> None:
    """Writes lstm-dynamic and lstm-wide-dynamic, which a server would not call batch-invariant, for comparison."""
    for name in LSTMS:
        path = folder / f"{name}-dynamic" / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        quantize_dynamic(folder / name / "1" / "model.onnx", path)


def rows(bench: Bench, seconds: float) -> list[Row]:
    """What int8 gains; nothing must be reached."""
    found = []
    for name, label in LSTMS.items():
        found += [_raw(bench, name, label, batch, steps, seconds) for batch, steps in ((1, 1), (256, 1), (256, 16))]
        found.append(_dynamic(bench, name, label, seconds))
        found.append(_pool(bench, name, label, 256, seconds))
        found.append(_file(bench, name, label))
    for name, shape in (("convnet", (64, 1, 28, 28)), ("resnet18", RESNET)):
        found += [
            _network(bench, name, shape, seconds),
            _predict(bench, name, shape, seconds),
            _file(bench, name, name),
        ]
    return found


def _raw(bench: Bench, name: str, label: str, batch: int, steps: int, seconds: float) -> Row:
    def rate(model: str) -> float:
        return raw.steps_per_second(bench.model(model), batch, steps, cases.FEATURES, seconds)

    what = f"{label} int8 in ONNX Runtime alone, batch {batch} × {steps} step{'s' * (steps > 1)}, against float"
    return Row(what, None, lambda: rate(f"{name}-int8"), lambda: rate(name), "steps/s")


def _dynamic(bench: Bench, name: str, label: str, seconds: float) -> Row:
    def rate(model: str) -> float:
        return raw.steps_per_second(bench.model(model), 256, 1, cases.FEATURES, seconds)

    what = f"for comparison: {label}, ONNX Runtime's dynamic quantisation (rows depend on each other), batch 256 × 1"
    return Row(what, None, lambda: rate(f"{name}-dynamic"), lambda: rate(name), "steps/s")


def _pool(bench: Bench, name: str, label: str, count: int, seconds: float) -> Row:
    return Row(
        f"{label} int8, pool of {count}, against float in ONNX Runtime alone",
        None,
        lambda: cases.pool(bench, f"{name}-int8", count, 1, seconds),
        lambda: raw.steps_per_second(bench.model(name), count, 1, cases.FEATURES, seconds),
        "steps/s",
    )


def _network(bench: Bench, name: str, shape: tuple[int, ...], seconds: float) -> Row:
    x = torch.randn(shape).numpy()
    return Row(
        f"{name} int8 in ONNX Runtime alone, batch {shape[0]}, against float",
        None,
        lambda: raw.calls_per_second(bench.model(f"{name}-int8"), x, seconds),
        lambda: raw.calls_per_second(bench.model(name), x, seconds),
        "images/s",
    )


def _predict(bench: Bench, name: str, shape: tuple[int, ...], seconds: float) -> Row:
    x = torch.randn(shape).numpy()
    return Row(
        f"{name} int8 through predict, batches of {shape[0]}, against float in ONNX Runtime alone",
        None,
        lambda: cases.predict(bench, x, seconds, model=f"{name}-int8"),
        lambda: raw.calls_per_second(bench.model(name), x, seconds),
        "images/s",
    )


def _file(bench: Bench, name: str, label: str) -> Row:
    def size(model: str) -> float:
        return float(Path(bench.model(model)).stat().st_size)

    return Row(
        f"{label} int8, the file, against float", None, lambda: size(f"{name}-int8"), lambda: size(name), "bytes"
    )


def measure(made: Mapping[str, Export], folder: Path, rounds: int, seconds: float) -> list[table.Result]:
    """Serves the models in a folder, quantised ones added, and measures every row."""
    make(made, folder / "models")
    with ExitStack() as stack:
        ours = stack.enter_context(processes.statestream(folder / "models", folder))
        bench = Bench(ours, ours, ours, folder / "models")
        _make_dynamic(folder / "models")  # once the server has looked: it is not to be served
        measured = rows(bench, seconds)
        for _ in track(range(rounds), "measuring int8"):
            for row in measured:
                row.measure()
    return table.results(measured)


def plain(found: list[table.Result]) -> list[dict[str, Any]]:
    """Results as JSON has them."""
    return [{k: figures.rounded(v) if isinstance(v, float) else v for k, v in asdict(each).items()} for each in found]


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Every pair is measured so often; medians count.")
@click.option("--seconds", default=1.0, show_default=True, help="How long each measurement takes.")
@click.option("--docs", is_flag=True, help="Writes the section of docs/benchmarks.md.")
def main(rounds: int, seconds: float, docs: bool) -> None:
    """Measures quantised models against their float ones."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = {"int8": plain(measure(models.make(folder / "models"), folder, rounds, seconds))}
    click.echo(page.ratios(known["int8"]))
    if docs:
        figures.update(known)
        page.write()


if __name__ == "__main__":
    main()
