"""`python -m benchmarks`: measures, prints the table; with --docs writes docs/benchmarks.md and its pictures."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import (
    curves,
    edge,
    figures,
    forecasts,
    models,
    page,
    processes,
    profile,
    quantized,
    resident,
    table,
    texts,
    voice,
)
from benchmarks.cases import Bench
from benchmarks.table import Result


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Every pair is measured so often; medians count.")
@click.option("--seconds", default=1.0, show_default=True, help="How long each measurement takes.")
@click.option(
    "--resident", "residents", default=resident.MILLION, show_default=True, help="Sessions in memory; 0 for none."
)
@click.option("--curves/--no-curves", "with_curves", default=True, help="Throughput by sessions, latency, profile.")
@click.option("--quick", is_flag=True, help="2 rounds of 0.3 s, 50,000 resident sessions, no curves: about a minute.")
@click.option("--only", help="Only rows whose name contains this; no resident sessions and no curves.")
@click.option("--docs", is_flag=True, help="Writes docs/benchmarks.md, its pictures and their figures.")
@click.option("--out", type=click.Path(path_type=Path), help="Writes the figures there, as JSON.")
def main(
    rounds: int,
    seconds: float,
    residents: int,
    with_curves: bool,
    quick: bool,
    only: str | None,
    docs: bool,
    out: Path | None,
) -> None:
    """Measures ours against raw ONNX Runtime, a bare echo and a first attempt, as ratios within one run."""
    if quick:
        rounds, seconds, residents, with_curves = 2, 0.3, min(residents, 50_000), False
    if only:
        residents, with_curves = 0, False
    if docs and (quick or only):
        raise click.UsageError("--docs writes whole runs only; leave out --quick and --only")
    known: dict[str, Any] = {}
    small = list[Result]()
    machine = figures.machine()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        made = models.make(folder / "models")
        texts.make(folder / "models")
        rows = _compare(folder, rounds, seconds, only, known if with_curves else None)
        if residents:
            rows += resident.rows(folder / "models", folder, residents, rounds, seconds)
        if with_curves:
            known["profile"] = profile.measure(folder / "models", folder, 3 * seconds)
            small = quantized.measure(made, folder, rounds, seconds)
            known["int8"] = quantized.plain(small)
        if voice.installed() and (not only or only in voice.NAME):
            spoken, known["voice"] = voice.measure(folder / "voice", rounds, seconds)
            small += spoken
        if not only or "forecast" in only:
            predicted = forecasts.measure(folder / "forecasts", rounds, seconds)
            small += predicted
            known["forecasts"] = quantized.plain(predicted)
        if not only:
            known["edge"] = edge.measure(folder, rounds, seconds)
            edge.show(known["edge"])
    found = table.results(rows)
    known["ratios"] = quantized.plain(found)
    _print([*found, *small], machine)
    if not voice.installed():
        click.echo(voice.MISSING)
    if out:
        figures.update(known, out)
    if docs:
        figures.update(known)
        page.write()


def _compare(folder: Path, rounds: int, seconds: float, only: str | None, known: dict[str, Any] | None) -> list[Any]:
    """The rows that one set of servers is enough for; the curves too where `known` takes them."""
    with ExitStack() as stack:
        bench = Bench(
            stack.enter_context(processes.statestream(folder / "models", folder)),
            stack.enter_context(processes.echo()),
            stack.enter_context(processes.naive(folder / "models" / "lstm" / "1" / "model.onnx")),
            folder / "models",
        )
        every = [*table.rows(bench, seconds), *texts.rows(bench.ours, bench.models, seconds)]
        rows = [row for row in every if not only or only in row.name]
        for _ in track(range(rounds), "measuring"):
            for row in rows:
                row.measure()
        if known is not None:
            known["throughput"] = curves.throughput(bench, 3, seconds / 2)
            known["latency"] = curves.latency(bench, 3, 2 * seconds)
    return rows


def _print(found: list[Result], machine: str) -> None:
    shown = Table(title=machine)
    for column in ("what", "ours", "compared with", "unit", "ratio", "must be"):
        shown.add_column(column, justify="left" if column in ("what", "unit") else "right")
    for each in found:
        style = {True: "green", False: "red", None: "dim"}[each.reached]
        ratio = f"[{style}]{each.ratio:.2f}[/] ({each.lowest:.2f}–{each.highest:.2f})"
        shown.add_row(each.name, figures.shown(each.ours), figures.shown(each.other), each.unit, ratio, each.target)
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(shown)


if __name__ == "__main__":
    main()
