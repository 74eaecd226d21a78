"""`python -m benchmarks`: measures, prints the table, and with --out writes it."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import models, processes, table
from benchmarks.cases import Bench


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Every pair is measured so often; medians count.")
@click.option("--seconds", default=1.0, show_default=True, help="How long each measurement takes.")
@click.option("--only", help="Only rows whose name contains this.")
@click.option("--out", type=click.Path(path_type=Path), help="Writes the figures there, as JSON.")
def main(rounds: int, seconds: float, only: str | None, out: Path | None) -> None:
    """Measures ours against raw ONNX Runtime, a bare echo and a first attempt, as ratios within one run."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models.make(folder / "models")
        lstm = folder / "models" / "lstm" / "1" / "model.onnx"
        bench = Bench(
            stack.enter_context(processes.statestream(folder / "models", folder)),
            stack.enter_context(processes.echo()),
            stack.enter_context(processes.naive(lstm)),
            folder / "models",
        )
        rows = [row for row in table.rows(bench, seconds) if not only or only in row.name]
        for _ in track(range(rounds), "measuring"):
            for row in rows:
                row.measure()
    found = table.results(rows)
    shown = Table(title=table.machine())
    for column in ("what", "ours", "compared with", "unit", "ratio", "must reach"):
        shown.add_column(column, justify="left" if column in ("what", "unit") else "right")
    for each in found:
        style = "green" if each.reached else "red"
        shown.add_row(
            each.name, f"{each.ours:,.4g}", f"{each.other:,.4g}", each.unit, f"[{style}]{each.ratio:.2f}", each.target
        )
    Console(width=150).print(shown)
    if out:
        table.write(found, out)


if __name__ == "__main__":
    main()
