"""Running a recipe: data, module, training, metrics, files. What it leaves on disk is decided here.

MODELS_DIR/<name>/<version>/model.onnx        the next free version
MODELS_DIR/<name>-<part>/<version>/…          where a recipe wrote into a folder <part> of its own
RUNS/<name>/<number>/metrics.json loss.png picture.png
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

from statestream_export.errors import RecipeError
from statestream_export.exporter import Export, quantized
from statestream_export.loss import LIMIT
from statestream_export.recipe import Recipe, Value
from statestream_export.running import GraphModule
from statestream_export.training import Curve, Run, reproducible
from statestream_export.waiting import waiting


@dataclass(frozen=True, slots=True)
class Spread:
    """Figures over several seeds, of which none was picked: the model is that of the first.

    Attributes:
        seeds: The seeds, in order.
        reached: With how many of them the target was reached.
        figures: By name: mean, (sample) deviation, and every seed's figure.
    """

    seeds: tuple[int, ...]
    reached: int
    figures: Mapping[str, Figures]

    @classmethod
    def of(cls, recipe: Recipe[Any], runs: Mapping[int, Mapping[str, Value]]) -> Spread:
        """From the metrics of every seed; those alone that are numbers with a fraction."""
        several = list(runs.values())
        names = [name for name, value in several[0].items() if isinstance(value, float)]
        figures = {name: Figures.of([float(metrics[name]) for metrics in several]) for name in names}  # type: ignore[arg-type]
        return cls(tuple(runs), sum(recipe.card.target.reached(metrics) for metrics in several), figures)


@dataclass(frozen=True, slots=True)
class Figures:
    """One figure over several seeds."""

    mean: float
    deviation: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Figures:
        """Two values at least."""
        return cls(statistics.fmean(values), statistics.stdev(values), tuple(values))


@dataclass(frozen=True, slots=True)
class Result:
    """What a recipe left.

    Attributes:
        model: The folder of the new version.
        folder: The run folder.
        metrics: The figures.
        reached: Whether the target was reached.
        curve: What happened in training.
        exports: The files that passed the gate; their paths lie in `model`.
        before: The figures before quantisation, `metrics` being those of the quantised file; None without.
        spread: The figures over several seeds, `metrics` being those of the first; None for one seed.
    """

    model: Path
    folder: Path
    metrics: Mapping[str, Value]
    reached: bool
    curve: Curve
    exports: tuple[Export, ...]
    before: Mapping[str, Value] | None = None
    spread: Spread | None = None


def execute(
    recipe: Recipe[Any],
    out: Path,
    runs: Path,
    *,
    quick: bool = False,
    seed: int = 0,
    seeds: int = 1,
    console: Console | None = None,
    folder: Path | None = None,
    look: bool = False,
    fetch: bool = False,
    weights: Path | None = None,
    quantize: Literal["int8"] | None = None,
    max_loss: float = LIMIT,
) -> Result:
    """Trains a recipe and puts the model where a server finds it. The same seed gives the same figures.

    Data is taken from `folder`; else, where `look` says so, from the usual places of this machine; else fetched,
    where `fetch` says so too and a network is there; else it is what is built in.
    `weights` is the checkpoint that a recipe starts from, where it takes one. With `quantize` the file is written
    quantised, and the figures are taken again from it; `max_loss` is that of `quantized`.

    With `seeds` above 1 the recipe is trained that often, from `seed` on, and the figures of all are reported; the
    model and the pictures are those of the first. Ctrl-C in a later one leaves that one and the next out.

    Ctrl-C during training goes on with the best weights so far; later it leaves nothing behind.

    Raises:
        ExportError: The model did not pass the gate; neither folder was written.
        RecipeError: Data or weights are missing, not what they should be, or nothing that the recipe takes; or the
            recipe is none that can be quantised, or a folder cannot be written. Neither folder was written.
    """
    _check_place(out, "--out")
    _check_place(runs, "--runs")
    run = Run(quick, seed, console or Console(stderr=True), folder, look, fetch, weights)
    started = time.perf_counter()
    with reproducible(seed):
        with waiting(run.console, "preparing data and module"):
            data = recipe.data(run)
            _check_wanted(recipe.card.name, run)
            module = recipe.module(data)
            _returned(recipe, "module", module, nn.Module, "an nn.Module")
        curve = recipe.train(module, data, run)
        _returned(recipe, "train", curve, Curve, "the Curve that run.fit returns: return run.fit(…)")
        module.eval()
        with torch.no_grad(), waiting(run.console, "taking the figures"):
            metrics = _figures(recipe, module, data)
            picture = recipe.picture(module, data)
            _returned(recipe, "picture", picture, Figure, "a matplotlib Figure")
        trained = time.perf_counter() - started
        with (
            waiting(run.console, "writing the model and comparing it with torch"),
            _NewFolder(out / recipe.card.name) as place,
        ):
            written, before = recipe.export(module, data, place.path), None
            _returned(recipe, "export", written, Sequence, "a list of what export returned: [export(…)]")
            if quantize is not None:
                before = metrics
                written, metrics = _quantised(recipe, written, data, max_loss)
            places = {place.path / part.name: _keep_part(part, out, recipe.card.name) for part in _parts(place.path)}
            model = places[place.path] = place.keep()
    exports = tuple(replace(export, path=places[export.path.parent] / export.path.name) for export in written)
    reached = recipe.card.target.reached(metrics)
    spread = _spread(recipe, run, seeds, metrics if before is None else before)
    report = _report(recipe, run, curve, metrics, reached, exports, trained)
    if spread is not None:
        report["seeds"] = asdict(spread)
    if before is not None:
        report["quantized"] = {"metrics_before": dict(before), "loss": _loss(exports[0])}
    with _NewFolder(runs / recipe.card.name) as place:
        (place.path / "metrics.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
        _loss_picture(recipe.card.name, curve).savefig(place.path / "loss.png", dpi=120)
        picture.savefig(place.path / "picture.png", dpi=120)
        folder = place.keep()
    return Result(model, folder, metrics, reached, curve, exports, before, spread)


def _figures(recipe: Recipe[Any], module: Any, data: Any) -> Mapping[str, Value]:
    """A recipe's metrics as Python's own numbers, which a report takes; those of torch and NumPy will do.

    Raises:
        RecipeError: They are no dict, or without the figure that is to be reached.
    """
    found = recipe.metrics(module, data)
    target = recipe.card.target.metric
    _returned(recipe, "metrics", found, Mapping, f"figures by name, {target!r} among them")
    if target not in found:
        raise RecipeError(
            f"recipe {recipe.card.name!r}: metrics returned {', '.join(map(repr, found)) or 'nothing'}; expected"
            f" {target!r}, the figure of its target, among them"
        )
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in found.items()}


def _returned(recipe: Recipe[Any], method: str, value: object, kind: type, expected: str) -> None:
    """Checks what a method of somebody's recipe returned while it is known whose it is, before anything is written."""
    if not isinstance(value, kind):
        raise RecipeError(
            f"recipe {recipe.card.name!r}: {method} returned {'None' if value is None else type(value).__name__};"
            f" expected {expected}"
        )


def _spread(recipe: Recipe[Any], run: Run, count: int, first: Mapping[str, Value]) -> Spread | None:
    found = {run.seed: first}
    for seed in range(run.seed + 1, run.seed + count):
        run.console.print(f"seed {seed}, up to {run.seed + count - 1}")
        with reproducible(seed):
            again = replace(run, seed=seed)
            data = recipe.data(again)
            module = recipe.module(data)
            curve = recipe.train(module, data, again)
            module.eval()
            if curve.interrupted:
                break
            with torch.no_grad():
                found[seed] = _figures(recipe, module, data)
    return Spread.of(recipe, found) if len(found) > 1 else None


def _quantised(
    recipe: Recipe[Any], written: Sequence[Export], data: Any, max_loss: float
) -> tuple[list[Export], Mapping[str, Value]]:
    """Quantises the one file that a recipe wrote, in its place, and takes the figures from it."""
    name = recipe.card.name
    if len(written) != 1 or written[0].path.name != "model.onnx":
        raise RecipeError(
            f"recipe {name!r} writes {len(written)} files; --quantize is for recipes that write model.onnx alone."
            " Leave it out, or quantise the file you want with statestream_export.quantized"
        )
    small = quantized(written[0], max_loss=max_loss)
    graph = GraphModule(onnx.load_model(small.path), small.interface)
    try:
        metrics = _figures(recipe, graph, data)
    except (AttributeError, TypeError) as error:
        raise _unmeasured(name, f"they look inside the module ({error})") from error
    if not graph.runs:
        raise _unmeasured(name, "they do not run the module")
    return [small], metrics


def _unmeasured(name: str, why: str) -> RecipeError:
    return RecipeError(
        f"the figures of recipe {name!r} cannot be taken from a quantised file: {why}. Leave --quantize out, or use"
        " statestream_export.quantized and judge its loss yourself"
    )


def _loss(made: Export) -> dict[str, object]:
    loss = made.gate.loss
    assert loss is not None
    return {**asdict(loss), "share": loss.worst.share}


def _check_place(folder: Path, option: str) -> None:
    """Tries to write where a folder is or would be, before the training and not behind it; leaves nothing there."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        os.rmdir(tempfile.mkdtemp(dir=there, prefix=".new-"))
    except OSError as error:
        raise RecipeError(
            f"{folder} cannot be written ({there}: {error.strerror}); name another folder with {option}"
        ) from error


def _check_wanted(name: str, run: Run) -> None:
    for what, given, option in (("source", run.folder, "--data"), ("weights", run.checkpoint, "--weights")):
        if given is not None and what not in run.asked:
            raise RecipeError(f"recipe {name!r} takes no {option}; {given} would not be read. Leave it out")


class _NewFolder:
    """A folder that appears under its number, the next free one, whole or not at all."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        parent.mkdir(parents=True, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(dir=parent, prefix=".new-"))
        self.path.chmod(0o755)

    def __enter__(self) -> _NewFolder:
        return self

    def keep(self) -> Path:
        """Gives the folder its number."""
        while True:
            taken = [int(path.name) for path in self._parent.iterdir() if path.name.isdigit()]
            target = self._parent / str(max(taken, default=0) + 1)
            try:
                os.rename(self.path, target)
            except OSError:
                if not target.exists():
                    raise
                continue
            return target

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _keep_part(part: Path, out: Path, name: str) -> Path:
    """Makes a folder inside a recipe's own into the next version of a model of its own."""
    with _NewFolder(out / f"{name}-{part.name}") as place:
        for file in part.iterdir():
            file.rename(place.path / file.name)
        part.rmdir()
        return place.keep()


def _report(
    recipe: Recipe[Any],
    run: Run,
    curve: Curve,
    metrics: Mapping[str, Value],
    reached: bool,
    exports: Sequence[Export],
    seconds: float,
) -> dict[str, object]:
    card = asdict(recipe.card)
    card["target"] = str(recipe.card.target)
    return {
        "recipe": card,
        "metrics": dict(metrics),
        "target_reached": reached,
        "training": {
            "epochs": len(curve.losses),
            "best_epoch": curve.best + 1,
            "last_loss": curve.losses[-1] if curve.losses else None,
            "interrupted": curve.interrupted,
            "quick": run.quick,
            "built_in": run.folder is None and not run.look,
            "seed": run.seed,
            "seconds": round(seconds, 1),
            "torch": torch.__version__,
        },
        "files": {
            _label(export.path, recipe.card.name): {
                "exporter": export.exporter,
                "operators": export.gate.operators,
                "largest_difference": asdict(export.gate.largest),
            }
            for export in exports
        },
    }


def _label(path: Path, name: str) -> str:
    """A file's name, with its model's where that is not the recipe's."""
    model = path.parents[1].name
    return path.name if model == name else f"{model}/{path.name}"


def _loss_picture(name: str, curve: Curve) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    epochs = range(1, len(curve.losses) + 1)
    axes.plot(epochs, curve.losses, label="training loss")
    axes.set(title=f"{name}: training", xlabel="epoch", ylabel="loss")
    if all(loss > 0 for loss in curve.losses) and curve.losses:
        axes.set_yscale("log")
    if curve.scores:
        twin = axes.twinx()
        twin.plot(epochs, curve.scores, color="tab:orange", label="validation")
        twin.set_ylabel("validation")
    if curve.best >= 0:
        axes.axvline(curve.best + 1, color="grey", linestyle=":", label="kept")
    figure.legend(loc="outside lower center", ncols=3)
    return figure
