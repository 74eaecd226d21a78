"""Charts of the command: bars in tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.bar import Bar
from rich.table import Table

from statestream.command.bench import Found, histogram
from statestream.views import Statistics

_WIDTH = 44
_REASONS = {
    "all": "nothing else waited for the model",
    "busy": "the rest waited behind an earlier chunk of its session",
    "slices": "the rest had another slice length, shape or class",
    "time": "cut: more would have taken too long",
    "most": "cut: the most rows of a batch",
    "serial": "the model runs its rows one by one",
}


def measurement(found: Found) -> Iterator[Table]:
    """Throughput by batch, and how single calls spread."""
    what = "sessions" if found.unit == "steps" else "batch"
    rows = [(f"{rate.batch:,}", rate.a_second) for rate in found.rates]
    yield _bars(f"{found.model} version {found.version}: throughput", what, f"{found.unit}/s", rows)
    shown = ", ".join(f"{name} {value:.3g}" for name, value in found.percentiles().items())
    counts = [(f"{1e3 * low:.3g}", count) for low, count in histogram(found.trips)]
    yield _bars(f"single calls, ms: {shown}", "from ms", "calls", counts)


def statistics(found: Statistics) -> Iterator[Table]:
    """What an engine did."""
    table = Table(show_header=False)
    for name, value in (
        ("batches", f"{found.batches:,}, {found.threaded_batches:,} of them on the thread"),
        ("rows a batch", f"{found.rows / max(1, found.batches):,.1f}"),
        ("steps", f"{found.steps:,}"),
        ("failed chunks", f"{found.failed_chunks:,}"),
        ("seconds in models", f"{found.model_seconds:,.1f}"),
        ("queued chunks", f"{found.queued_chunks:,}"),
    ):
        table.add_row(name, value)
    for name, (batches, seconds) in found.classes.items():
        table.add_row(f"class {name}", f"{batches:,} batches, {seconds:,.1f} s")
    yield table
    why = [(_REASONS.get(name, name), count) for name, count in found.reasons.items()]
    yield _bars("why batches were not larger", "", "batches", sorted(why, key=lambda one: -one[1]))
    yield _bars("rows of batches", "up to", "batches", _within([f"{1 << i:,}" for i in range(64)], found.sizes))
    yield _bars("the oldest work waited", "below", "batches", _within([_time(i) for i in range(64)], found.waits))


def _within(names: Sequence[str], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Names and counts from the first to the last that is not zero."""
    some = [place for place, count in enumerate(counts) if count]
    return [(names[place], counts[place]) for place in range(some[0], some[-1] + 1)] if some else []


def _time(exponent: int) -> str:
    micro = 1 << exponent
    return f"{micro} µs" if micro < 1000 else f"{micro / 1e3:.3g} ms" if micro < 1e6 else f"{micro / 1e6:.3g} s"


def _bars(title: str, name: str, unit: str, rows: Sequence[tuple[str, float]]) -> Table:
    table = Table(title=title, title_justify="left")
    # Names fold and bars shrink where the terminal is narrow; a number is never cut.
    shown = [f"{value:,.0f}" for _, value in rows]
    table.add_column(name, justify="right", overflow="fold", min_width=6)
    table.add_column(unit, justify="right", no_wrap=True, min_width=max(map(len, [unit, *shown])))
    table.add_column("", max_width=_WIDTH)
    top = max((value for _, value in rows), default=1) or 1
    for (label, value), number in zip(rows, shown, strict=True):
        table.add_row(label, number, Bar(top, 0, value))
    return table
