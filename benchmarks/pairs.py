"""`python -m benchmarks.pairs OTHER`: this checkout against another one, in processor seconds and interleaved pairs.

Both are served and called by the same Python with their own sources in front; each measurement has a new server and a
new client, and the two checkouts take turns. The ratio of a pair is ours divided by the other's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import models

_ROOT = Path(__file__).parents[1]
LOADS = {"lone": 5000, "tasks": 300_000, "pool": 3_000_000, "chunks": 2_500_000, "opens": 60_000, "predict": 1500}
"""What each load does in one measurement, some seconds' worth."""


def environment(checkout: Path) -> dict[str, str]:
    """This environment with a checkout's sources in front of what is installed."""
    sources = [checkout / part / "src" for part in ("client", "server", "export")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*sources, checkout])), "PYTHONUNBUFFERED": "1"}


def measure(checkout: Path, folder: Path, load: str, amount: int, durability: str) -> dict[str, float]:
    """One load on a new server of a checkout."""
    with ExitStack() as stack:
        store = stack.enter_context(tempfile.TemporaryDirectory(dir=folder))
        command = [sys.executable, "-m", "statestream.cli", "serve", str(folder / "models"), "--host", "127.0.0.1"]
        command += ["--port", "0", "--no-http", "--log-level", "error", "--durability", durability]
        command += ["--store", f"sqlite:{store}/sessions.db"]
        server = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(checkout), cwd=store)
        )
        stack.callback(server.terminate)
        assert server.stdout is not None
        ready = re.search(r"ready: gRPC on (\S+)", server.stdout.readline())
        if ready is None:
            raise click.ClickException(f"the server of {checkout} did not start; its own message is above")
        caller = [sys.executable, str(_ROOT / "benchmarks" / "caller.py"), load, ready[1], str(server.pid), str(amount)]
        # Only the other checkout's client knows its wire.
        done = subprocess.run(
            caller, stdout=subprocess.PIPE, text=True, env=environment(checkout), cwd=store, check=True
        )
        figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return figures


@click.command()
@click.argument("other", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--pairs", default=7, show_default=True, help="Pairs of every load; medians count.")
@click.option("--load", "loads", multiple=True, type=click.Choice([*LOADS]), help="Only these loads.")
@click.option("--durability", default="interval", show_default=True, type=click.Choice(["none", "interval", "sync"]))
def main(other: Path, pairs: int, loads: tuple[str, ...], durability: str) -> None:
    """Processor seconds of this checkout against those of the checkout OTHER."""
    chosen = {load: amount for load, amount in LOADS.items() if not loads or load in loads}
    table = Table("load", "server, µs each", "server, ratio", "client, µs each", "client, ratio", "time, ratio")
    with tempfile.TemporaryDirectory() as name, Progress(transient=True) as progress:
        folder = Path(name)
        models.make(folder / "models")
        bar = progress.add_task("pairs", total=2 * pairs * len(chosen))
        for load, amount in chosen.items():
            found: dict[Path, list[dict[str, float]]] = {_ROOT: [], other.resolve(): []}
            for turn in range(pairs):
                # Who begins changes, so that a machine that becomes slower favours nobody.
                for checkout in [*found] if turn % 2 else [*found][::-1]:
                    found[checkout].append(measure(checkout, folder, load, amount, durability))
                    progress.advance(bar)
            table.add_row(load, *_columns(*found.values()))
    Console(width=140).print(table)


def _columns(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> list[str]:
    columns = []
    for side in ("server", "client", "seconds"):
        if side != "seconds":
            each = (median(one[side] / one["done"] * 1e6 for one in some) for some in (ours, theirs))
            columns.append(" / ".join(f"{value:.3g}" for value in each))
        ratios = [(a[side] / a["done"]) / (b[side] / b["done"]) for a, b in zip(ours, theirs, strict=True)]
        columns.append(f"{median(ratios):.3f} ({min(ratios):.2f}–{max(ratios):.2f})")
    return columns


if __name__ == "__main__":
    main()
