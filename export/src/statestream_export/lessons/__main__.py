"""`python -m statestream_export.lessons`: makes the pictures and figures of docs/lessons anew."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import click
from rich.console import Console

from statestream_export import lessons
from statestream_export.training import Run, reproducible


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", type=click.Choice(lessons.NAMES))
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("lessons"),
    show_default=True,
    help="Where NAME.png and NAME.json go.",
)
@click.option(
    "--quick", is_flag=True, help="Trains a little only, to see that it works; the figures mean nothing then."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same figures.")
def main(names: tuple[str, ...], out: Path, quick: bool, seed: int) -> None:
    """Train, measure and draw what the lessons show: all, or those named. Ctrl-C ends it and leaves nothing half."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(
            f"{out} cannot be made ({error}); give a folder that can be written: --out DIR"
        ) from None
    console = Console(stderr=True)
    for name in dict.fromkeys(names or lessons.NAMES):
        console.print(f"[bold]{name}[/bold]")
        with reproducible(seed):
            shown = lessons.load(name).show(Run(quick, seed, console))
        keep(shown, name, out)
        click.echo(out / f"{name}.png")


def keep(shown: lessons.Shown, name: str, out: Path) -> None:
    """Writes both files under other names and then moves them to their own, so that neither is ever there in part."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".new-") as place:
        figures, picture = Path(place) / f"{name}.json", Path(place) / f"{name}.png"
        figures.write_text(json.dumps(shown.figures, indent=2, ensure_ascii=False) + "\n", "utf-8")
        shown.picture.savefig(picture, dpi=90)
        for file in (figures, picture):
            os.replace(file, out / file.name)


if __name__ == "__main__":
    main(prog_name="python -m statestream_export.lessons")
