"""Chooses how `rows` is trained with clipped gradients and a falling rate; the images of the test are not looked at.

    python tools/choose_rows.py [FILE]

Trains with every way below, with a seed that no recorded run has, on nine tenths of what trains, and writes how the
kept weights do on the last tenth to FILE (docs/recipes/rows/choice.json). The way with the smallest loss there is the
recipe's. MNIST is looked for in the usual places (`statestream data`). Some fifteen minutes on one processor.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console

from statestream_export.recipes.rows import Way, fitted, recipe
from statestream_export.training import Run, reproducible

FILE = Path(__file__).resolve().parents[1] / "docs" / "recipes" / "rows" / "choice.json"
SEED = 100
WAYS = [(1e-3, 64), (2e-3, 64), (2e-3, 128), (3e-3, 128), (4e-3, 256)]
"""Rates at the start, with batches."""


def choose(file: Path, run: Run) -> None:
    """Trains once with each way; the file holds those that are done."""
    done = list[dict[str, float | int]]()
    for rate, batch in WAYS:
        with reproducible(run.seed):
            data = recipe.data(run)
            reader = recipe.module(data).reader
            trained = fitted(reader, data, run, Way("", rate, batch, 40, clip=1.0, falls=True))
        if trained.curve.interrupted:
            return
        best = trained.curve.best
        done.append(
            {
                "rate": rate,
                "batch": batch,
                "epochs": len(trained.curve.losses),
                "kept_epoch": best + 1,
                "held_back_loss": trained.curve.scores[best],
                "held_back_accuracy": trained.accuracies[best],
            }
        )
        text = json.dumps({"data": data.source, "seed": run.seed, "ways": done}, indent=2) + "\n"
        file.write_text(text, encoding="utf-8")
        run.console.print(text.rstrip()[-260:])


if __name__ == "__main__":
    choose(Path(sys.argv[1]) if len(sys.argv) > 1 else FILE, Run(False, SEED, Console(stderr=True), look=True))
