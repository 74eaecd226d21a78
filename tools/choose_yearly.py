"""Chooses the sizes of `global-rnn` and `deepar`, and the head of this one; the years of the test are not looked at.

    python tools/choose_yearly.py [DIR]

Without the last six years of each series, which are the test's, the six years before them are held out in their place.
Every way below trains with seeds that no recorded run has; DIR (docs/recipes) gets <name>/choice.json with the mean
MASE of each. The way with the least is the recipe's. M1 yearly is looked for in the usual places (`statestream data`).
Some ten minutes on one processor.
"""

from __future__ import annotations

import inspect
import io
import itertools
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from statestream_export.recipes.deepar import DeepARRecipe
from statestream_export.recipes.global_rnn import GlobalRnnRecipe
from statestream_export.training import Run, reproducible

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "recipes"
SEEDS = (100, 101, 102)
SIZES = {"hidden": (16, 32, 64), "epochs": (60, 120, 240)}
RECIPES: Mapping[Any, Mapping[str, Sequence[Any]]] = {
    GlobalRnnRecipe: SIZES,
    DeepARRecipe: {"kind": ("student_t", "gaussian"), **SIZES},
}


def choose(folder: Path, console: Console) -> None:
    """Trains each way; a file is written once all of its recipe are done."""
    for recipe, grid in RECIPES.items():
        ways, done = list(itertools.product(*grid.values())), list[dict[str, Any]]()
        for values in track(ways, f"ways of {recipe.card.name}", console=console):
            way = dict(zip(grid, values, strict=True))
            done.append(way | tried(recipe(**way), console))
        text = json.dumps({"data": source(recipe(), console), "seeds": SEEDS, "ways": done}, indent=1) + "\n"
        target = folder / recipe.card.name
        target.mkdir(parents=True, exist_ok=True)
        (target / "choice.json").write_text(text, encoding="utf-8")
        best, own = min(done, key=lambda way: way["mase"]), inspect.signature(recipe).parameters
        told = {name: best[name] for name in grid}
        console.print(f"{recipe.card.name}: {best}; the recipe has { ({name: own[name].default for name in told}) }")


def source(recipe: Any, console: Console) -> str:
    """What the series are."""
    return str(recipe.data(Run(False, 0, console, look=True)).source)


def tried(recipe: Any, console: Console) -> dict[str, float]:
    """Means over the seeds, of the last years of what trains."""
    found = []
    for seed in SEEDS:
        # Many short trainings: one bar tells of all.
        run = Run(False, seed, Console(file=io.StringIO()), look=True)
        with reproducible(seed):
            whole = recipe.data(run)
            data = whole.cut(whole.horizon)
            module = recipe.module(data)
            if recipe.train(module, data, run).interrupted:
                raise KeyboardInterrupt
            found.append(recipe.metrics(module, data))
    names = ("mase", "weighted_quantile_loss", "coverage_80", "coverage_95")
    return {name: round(statistics.fmean(float(metrics[name]) for metrics in found), 4) for name in names}


if __name__ == "__main__":
    choose(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER, Console(stderr=True))
