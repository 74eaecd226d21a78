"""How many schedules ever ran: docs/simulation.json, and the lines of docs/reliability.md that say so.

`python -m tests.simulation.totals` writes the lines anew; a run with `--record` adds itself to both.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

_DOCS = Path(__file__).parents[2] / "docs"
PAGE, FIGURES = _DOCS / "reliability.md", _DOCS / "simulation.json"
_BEGIN, _END = "<!-- simulated -->\n", "<!-- end -->"


@dataclass(frozen=True, slots=True)
class Run:
    """One run.

    Attributes:
        first: Its first seed.
        schedules: How many ran, one for each seed from there on.
        steps: Steps that were answered in them.
        broken: Seeds in which a promise was broken, or the oracle was wrong.
    """

    first: int
    schedules: int
    steps: int
    broken: list[int]


def read() -> list[Run]:
    """All runs so far."""
    return [Run(**one) for one in json.loads(FIGURES.read_text())]


def add(run: Run) -> None:
    """Adds a run, and has the page say so."""
    lines = [json.dumps(asdict(one)) for one in (*read(), run)]
    FIGURES.write_text("[\n  " + ",\n  ".join(lines) + "\n]\n")
    PAGE.write_text(rendered(PAGE.read_text()))


def distinct(runs: list[Run]) -> int:
    """Seeds that ran, each counted once."""
    seen = end = 0
    for run in sorted(runs, key=lambda run: run.first):
        seen += max(0, run.first + run.schedules - max(end, run.first))
        end = max(end, run.first + run.schedules)
    return seen


def rendered(page: str) -> str:
    """The page with the figures of now."""
    runs = read()
    steps, broken = sum(run.steps for run in runs), sorted({seed for run in runs for seed in run.broken})
    found = f"{len(broken)}: {', '.join(map(str, broken))}" if broken else "none"
    lines = (
        "| schedules run | distinct seeds | steps answered and judged | seeds with a complaint, at the time |\n"
        "| ---: | ---: | ---: | --- |\n"
        f"| {sum(run.schedules for run in runs):,} | {distinct(runs):,} | {steps:,} | {found} |\n"
    )
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return before + _BEGIN + lines + _END + after


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
