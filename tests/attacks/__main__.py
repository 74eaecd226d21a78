"""`python -m tests.attacks`: every attack with the times that it costs: the longest turn, and the victim's steps."""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.attacks.measured import MEASURED, measure
from tests.support import models

LONGEST_TURN = 0.1
"""Seconds; models are loaded before."""
SLOWER = 3.0
"""How many times its quiet p99 the victim's may be."""


@click.command()
@click.option("--only", default="", help="Attacks whose name contains this.")
def main(only: str) -> None:
    """Attacks a server in every way that is known, one after the other, and says what it cost the others."""
    chosen = [one.name for one in MEASURED if only in one.name]
    table = Table("attack", "longest turn", "victim p50, ms", "victim p99, ms", "p99, ratio", "peak, MiB", "verdict")
    failed = 0
    # Each in a process of its own: one that stood back stays there.
    spawned = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as progress, spawned as processes:
        models_dir = models.write(Path(folder), "counter", "loop", "lstm", "scores", "pair", "tokens")
        for name in progress.track(chosen, description="attacks"):
            found = processes.submit(measure, models_dir, name).result()
            wrong = [found.error] if found.error else []
            wrong += [f"a turn of {found.longest * 1e3:.0f} ms"] if found.longest > LONGEST_TURN else []
            wrong += [f"the victim's p99 is {found.ratio:.1f} ×"] if found.ratio > SLOWER else []
            failed += bool(wrong)
            table.add_row(
                found.name,
                f"{found.longest * 1e3:.0f} ms",
                *(
                    f"{found.quiet.percentile(share) * 1e3:.1f} → {found.under.percentile(share) * 1e3:.1f}"
                    for share in (0.5, 0.99)
                ),
                f"{found.ratio:.1f}",
                str(found.peak >> 20),
                "; ".join(wrong) or "held",
            )
    Console(width=160).print(table)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
