"""The list of recipes as Markdown, with the figures that runs reached. What a run leaves is decided in runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from statestream_export.errors import RecipeError
from statestream_export.recipe import Card
from statestream_export.recipes import NAMES, load

FAMILIES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "tables": ("Lines and tables", ("cocktails", "linear", "credit", "income")),
    "series": (
        "Series",
        ("sunspots", "sine-mlp", "sine-rnn-window", "sine", "sin2cos", "deepar", "deepar-sales", "global-rnn"),
    ),
    "layers": ("Recurrent layers", ("srn-linear", "srn", "rnn-cells", "rnn", "lstm", "gru")),
    "words": (
        "Words",
        ("hello-cell", "hello", "hello-embedding", "antonyms", "antonyms-attention", "tagger", "sentiment"),
    ),
    "images": ("Images", ("digits-cnn", "lenet", "convnet", "fashion", "rows", "rows-lstm", "rows-gru")),
    "networks": ("Large networks", ("alexnet", "vgg16", "googlenet", "inception-v3", "resnet18", "transfer")),
}
"""The pages of docs/recipes: their file names, titles, and the recipes on them."""
_COLUMNS = ("recipe", "task", "data", "cell", "kind", "mode", "must reach", "reached", "from torch")
STANDS_IN: Final = "built_in"
"""In recorded metrics.json, beside what a run on the published data reports: the report of one on built-in data."""
_BESIDE = ("test_accuracy", "test_accuracy_as_in_the_notes", "frozen_accuracy", "fine_tuned_accuracy", "mse")
"""Metrics that are shown beside a target that compares."""

Report = Mapping[str, Any]
"""What metrics.json says of one run."""


def read(folder: Path) -> dict[str, Report]:
    """The reports by recipe: the last FOLDER/<name>/<number>/metrics.json, or FOLDER/<name>/metrics.json.

    Raises:
        RecipeError: There is no such folder, or a report is no JSON.
    """
    if not folder.is_dir():
        raise RecipeError(f"there is no folder {folder}; give the one that `statestream train --runs` wrote to")
    reports = dict[str, Report]()
    for name in NAMES:
        path = last_run(folder / name) / "metrics.json"
        if path.is_file():
            try:
                reports[name] = json.loads(path.read_text("utf-8"))
            except ValueError as error:
                raise RecipeError(f"{path} is no JSON ({error}); run the recipe again") from error
    return reports


def last_run(folder: Path) -> Path:
    """The subfolder with the highest number; the folder itself where none has one."""
    numbers = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return folder / str(max(numbers)) if numbers else folder


def markdown(reports: Mapping[str, Report]) -> str:
    """The list of all recipes, one table a family, with what the reports, by recipe, say they reached."""
    parts = [
        "# Recipes",
        "",
        "Every model trains with one command and is served like any other:",
        "",
        "```sh",
        "statestream train NAME --out models/",
        "```",
        "",
        "The tables are written by `statestream recipes --markdown` from the metrics of recorded runs, which lie with",
        "their pictures in [recipes](recipes). The last column is the largest difference between ONNX Runtime and",
        "torch that the export's gate saw, for the size of the outputs; more than about 1e-05 is refused. A recipe of",
        "[your own](own-recipe.md) trains in the same way. `statestream data` lists the published data sets, where",
        "they were found and how to get them; the figure on what is built in follows, where that was run too.",
        "Over several seeds mean ± deviation are given; the model, and the first figure, are those of seed 0.",
    ]
    for page, (title, names) in FAMILIES.items():
        parts += ["", f"## [{title}](recipes/{page}.md)", "", _row(_COLUMNS), _row(["---"] * len(_COLUMNS))]
        for name in names:
            card = load(name).card
            reached, apart = ("not run", "–") if name not in reports else _reached(card, reports[name])
            if stands_in := reports.get(name, {}).get(STANDS_IN):
                reached += f"; {_reached(card, stands_in)[0]}"
            link = f"[{name}](recipes/{page}.md#{name})"
            mode = card.mode or "–"
            parts.append(
                _row([link, card.task, card.data, card.cell, card.kind, mode, str(card.target), reached, apart])
            )
    return "\n".join(parts) + "\n"


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _reached(card: Card, report: Report) -> tuple[str, str]:
    """The figure, with what belongs to it, and how far the files are from torch for the size of their outputs."""
    metrics, target = report["metrics"], card.target.metric
    value = metrics[target]
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    several = report.get("seeds")
    over = f", over {len(several['seeds'])} seeds " if several else ""

    def spread(key: str) -> str:
        figure = several["figures"].get(key) if several else None
        return f"{over}{figure['mean']:.4g} ± {figure['deviation']:.2g}" if figure else ""

    notes = [f"{key} {metrics[key]:.4g}{spread(key)}" for key in _BESIDE if key in metrics and key != target]
    if not notes and several:
        notes = [spread(target).removeprefix(", ")]
    notes += [str(metrics[key]) for key in ("data", "trunk") if key in metrics]
    notes += ["quick run"] if report["training"]["quick"] else []
    notes += [] if report["target_reached"] else ["not reached"]
    cases = [file["largest_difference"] for file in report["files"].values()]
    apart = max(case["difference"] / (case["scale"] or 1.0) for case in cases)
    return f"{shown} ({', '.join(notes)})" if notes else shown, f"{apart:.1g}"
