"""The subcommands `train`, `recipes` and `data` of `statestream`; torch is imported only when one of them runs."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_TABLE_WIDTH = 120
"""Cells below which recipes are told in lines, as a table would cut words."""


class _Share(click.FloatRange):
    """A finite number, 0 or more; the base class lets NaN through, which no comparison refuses."""

    def __init__(self) -> None:
        super().__init__(min=0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is not a finite number", param, ctx)
        return found


def _named(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The recipes that ship, for a shell to choose from."""
    from statestream_export.recipes import NAMES

    return [name for name in NAMES if name.startswith(incomplete)]


@click.command()
@click.argument("recipe", shell_complete=_named)
@click.option(
    "--out",
    "out",
    metavar="MODELS_DIR",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The models folder; the model becomes the next version in MODELS_DIR/<name>/.",
)
@click.option(
    "--runs",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where metrics.json and the pictures go, one folder a run.",
)
@click.option("--quick", is_flag=True, help="A few epochs only, to see that it works; figures are not reached.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same figures.")
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Train with so many seeds, from --seed on, for mean and deviation; the model is that of the first.",
)
@click.option(
    "--data",
    "folder",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder with the files of the recipe's data set; without it `statestream data` says what is found.",
)
@click.option("--built-in", is_flag=True, help="Look nowhere and fetch nothing: train on the data that ships.")
@click.option(
    "--weights",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A checkpoint with torchvision's names, for the networks that take one.",
)
@click.option(
    "--quantize",
    type=click.Choice(["int8"]),
    help="Write the model quantised; the figures, and whether the target is reached, are the quantised file's.",
)
@click.option(
    "--max-loss",
    type=_Share(),
    default=0.05,
    show_default=True,
    help="The largest loss that quantisation may have: an output's mean deviation as a share of its spread.",
)
def train(
    recipe: str,
    out: Path,
    runs: Path,
    quick: bool,
    seed: int,
    seeds: int,
    folder: Path | None,
    built_in: bool,
    weights: Path | None,
    quantize: Literal["int8"] | None,
    max_loss: float,
) -> None:
    """Train RECIPE (a name, or ./my_recipe.py) and export it into MODELS_DIR.

    Recipes with a published data set read it from --data, or from where a package has put it (`statestream data`
    lists those), or fetch it where there is a network (--quick does not); without any of these a line says which
    built-in data is used instead.

    Ctrl-C ends the training and keeps the best weights so far. Exits with 1 where the recipe's figure
    was not reached (the model is written all the same), except after --quick or Ctrl-C.
    """
    from rich.console import Console
    from rich.table import Table

    from statestream_export.errors import ExportError, RecipeError
    from statestream_export.waiting import waiting

    console = Console(stderr=True)
    try:
        with waiting(console, "loading torch and the recipe"):
            from statestream_export.recipes import load
            from statestream_export.runs import execute

            found = load(recipe)
        result = execute(
            found,
            out,
            runs,
            quick=quick,
            seed=seed,
            seeds=seeds,
            console=console,
            folder=folder,
            look=not built_in,
            fetch=not built_in,
            weights=weights,
            quantize=quantize,
            max_loss=max_loss,
        )
    except (ExportError, RecipeError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        if error.filename is None:
            raise
        raise click.ClickException(
            f"{error.filename} cannot be read or written: {error.strerror}; --out, --runs and --data say what is"
        ) from error
    table = Table(title=f"{found.card.name}: {found.card.task}", show_header=False, title_justify="left")
    for name, value in result.metrics.items():
        before = _shown((result.before or result.metrics)[name])
        shown = _shown(value)
        table.add_row(name, shown if before == shown else f"{shown} quantised, {before} before")
    if result.spread is not None:
        spread = result.spread
        for name, figure in spread.figures.items():
            table.add_row(f"{name}, {len(spread.seeds)} seeds", f"{figure.mean:.4g} ± {figure.deviation:.2g}")
        table.add_row("seeds", f"{spread.reached} of {len(spread.seeds)} reached the target")
    for item in result.exports:
        worst = item.gate.largest
        table.add_row(
            f"{item.path.parents[1].name}/{item.path.name}",
            f"{worst.difference:.2g} from torch at most ({worst.output}, {worst.way})",
        )
        if item.gate.loss is not None:
            loss, off = item.gate.loss, item.gate.loss.worst
            table.add_row(
                "int8",
                ", ".join(f"{name} ×{count}" for name, count in sorted(loss.layers.items()))
                + f"; {off.output} is {off.mean:.2g} off on average, {off.share:.2%} of its spread;"
                f" {loss.bytes_before:,} → {loss.bytes_after:,} bytes",
            )
    table.add_row("target", f"{found.card.target}: {'reached' if result.reached else 'not reached'}")
    table.add_row("model", str(result.model))
    table.add_row("run", str(result.folder))
    _print(table)
    if not (result.reached or quick or result.curve.interrupted):
        raise click.exceptions.Exit(1)


def _print(table: Table) -> None:
    """Prints a table. Without a terminal there is no width to keep to, unless COLUMNS tells one."""
    _console().print(table)


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=240)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--markdown", is_flag=True, help="Write the list as Markdown, with the figures that runs reached.")
@click.option(
    "--runs",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where --markdown finds the runs.",
)
def recipes(as_json: bool, markdown: bool, runs: Path) -> None:
    """List the recipes: task, data, cell, kind, mode and the figure each must reach."""
    from rich.console import Console
    from rich.table import Table

    if as_json and markdown:
        raise click.UsageError("--json and --markdown came; expected one of them")
    from statestream_export.errors import RecipeError
    from statestream_export.recipes import NAMES, load
    from statestream_export.waiting import waiting

    if markdown:
        from statestream_export import listing

        try:
            click.echo(listing.markdown(listing.read(runs)), nl=False)
        except RecipeError as error:
            raise click.ClickException(str(error)) from error
        return
    with waiting(Console(stderr=True), "loading torch and the recipes"):
        cards = [load(name).card for name in NAMES]
    if as_json:
        rows = [
            {
                "recipe": card.name,
                "task": card.task,
                "data": card.data,
                "cell": card.cell,
                "kind": card.kind,
                "mode": card.mode,
                "target": str(card.target),
            }
            for card in cards
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    if _console().width < _TABLE_WIDTH:
        for card in cards:
            click.echo(f"{card.name}: {card.task}")
            click.echo(
                f"  data: {card.data}; cell: {card.cell}; kind: {' '.join(filter(None, (card.kind, card.mode)))}"
            )
            click.echo(f"  must reach: {card.target}")
        return
    table = Table(title="Recipes", title_justify="left")
    for column in ("recipe", "task", "data", "cell", "kind", "mode", "must reach"):
        table.add_column(column, no_wrap=column == "recipe", overflow="fold")
    for card in cards:
        table.add_row(card.name, card.task, card.data, card.cell, card.kind, card.mode, str(card.target))
    _print(table)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def data(as_json: bool) -> None:
    """List the published data sets of recipes: where each was found, its checksums, and how to get it."""
    from rich.console import Console

    from statestream_export import catalogue

    entries = catalogue.entries()
    if as_json:
        click.echo(json.dumps(entries, indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False)
    for entry in entries:
        console.print(f"[bold]{entry['data']}[/bold], for {', '.join(entry['recipes'])}", soft_wrap=True)
        for line in catalogue.lines(entry):
            console.print(f"  {line}", soft_wrap=True, markup=False)
