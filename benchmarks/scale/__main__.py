"""`python -m benchmarks.scale`: measures here, compares with runs of two and three replicas, asks the simulation."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from benchmarks import figures, models
from benchmarks.scale import ask, measure, page, pictures


@click.command()
@click.argument("what", nargs=-1, type=click.Choice(["costs", "runs", "asked", "page"]))
@click.option("--rounds", default=3, show_default=True, help="Every cost and run is measured so often.")
def main(what: tuple[str, ...], rounds: int) -> None:
    """Writes docs/images/scale.json, the pictures and tables of docs/scale.md; all parts without WHAT, some minutes.

    The costs and runs are measured, all else follows from them.
    """
    parts = what or ("costs", "runs", "asked", "page")
    known = figures.load(page.FILE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"costs", "runs"} & set(parts):
            models.make(folder / "models")
        if "costs" in parts:
            found = measure.measured(folder / "models", folder, rounds, click.echo)
            figures.update({"costs": found}, page.FILE)
        if "runs" in parts:
            figures.update({"runs": _runs(folder, rounds)}, page.FILE)
    known = figures.load(page.FILE)
    if "asked" in parts:
        figures.update({"asked": ask.asked(known["costs"]["figures"], click.echo)}, page.FILE)
    pictures.draw(figures.load(page.FILE), page.FILE.parent)
    page.write()


def _runs(folder: Path, rounds: int) -> list[dict[str, Any]]:
    found = []
    for setting in ask.RUNS:
        each = []
        for number in range(rounds):
            click.echo(f"{setting.replicas} replicas, {setting.sessions:,} sessions, run {number + 1}")
            place = folder / f"run-{setting.replicas}-{number}"
            place.mkdir()
            each.append(asyncio.run(measure.run(folder / "models", place, setting)))
        spread = {name: measure.spread([one[name] for one in each]) for name in ask.COMPARED}
        found.append({"setting": asdict(setting), "measured": spread})
    return found


if __name__ == "__main__":
    main()
