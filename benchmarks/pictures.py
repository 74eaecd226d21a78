"""The pictures of docs/benchmarks.md, drawn from the figures alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

COLOURS = ("#54585f", "#4c78a8", "#f58518", "#e45756", "#54a24b", "#b279a2", "#9d755d")
_REACHED, _MISSED = "#54a24b", "#e45756"


def draw(figures: dict[str, Any], folder: Path) -> None:
    """Draws every section that was measured and has a picture."""
    for name, picture in PICTURES.items():
        section = figures.get(name)
        if section is not None:
            picture(section["figures"], folder / f"bench-{name}.png")


def _ratios(results: list[dict[str, Any]], file: Path) -> None:
    """How far every target is reached, with the range of the rounds."""
    rows = [row for row in results if row["share"] is not None][::-1]
    figure, axes = pyplot.subplots(figsize=(11, 0.36 * len(rows) + 1.0), layout="constrained")
    for place, row in enumerate(rows):
        ends = [row["share"] * row[end] / row["ratio"] for end in ("lowest", "highest")]
        if row["target"].startswith("≤"):
            ends = [row["share"] * row["ratio"] / row[end] for end in ("highest", "lowest")]
        spread = [[row["share"] - ends[0]], [ends[1] - row["share"]]]
        colour = _REACHED if row["reached"] else _MISSED
        axes.barh(place, row["share"], color=colour, alpha=0.85, height=0.7)
        axes.errorbar(row["share"], place, xerr=spread, color="#333333", linewidth=1, capsize=2)
    axes.axvline(1, color="#333333", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    axes.set(xlabel="multiple of the target; lines: least and most")
    axes.set_xlim(0, max(1.5, axes.get_xlim()[1]))
    axes.margins(y=0.01)
    save(figure, file)


def _throughput(found: dict[str, Any], file: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    for (name, medians), colour in zip(found["steps_per_second"].items(), COLOURS, strict=False):
        middle, low, high = zip(*medians, strict=True)
        axes.plot(found["sessions"], middle, marker="o", color=colour, label=name)
        axes.fill_between(found["sessions"], low, high, color=colour, alpha=0.18, linewidth=0)
    _logarithmic(axes, found["sessions"])
    axes.set(xlabel="sessions N (a batch of N)", ylabel="steps a second", title="LSTM 8 → 2×64 → 1, single steps")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.legend()
    save(figure, file)


def _logarithmic(axes: Axes, sizes: list[int]) -> None:
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)


def _latency(found: dict[str, Any], file: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    # The upper end is what matters, so the axis is that of 1 / (1 - quantile).
    at = [1 / (1 - quantile) for quantile in found["quantiles"]]
    for (name, values), colour in zip(found["milliseconds"].items(), COLOURS, strict=False):
        axes.plot(at, values, color=colour, label=name)
    ticks = [0.5, 0.9, 0.99, 0.999]
    axes.set(xscale="log", yscale="log", xlabel="percentile", ylabel="ms of a single step", title="Round trips")
    axes.set_xticks([1 / (1 - tick) for tick in ticks], [f"p{100 * tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, file)


def _profile(found: dict[str, Any], file: Path) -> None:
    """Where the server's loop thread spends its time, one bar a case."""
    names = list(found["cases"])[::-1]
    figure, axes = pyplot.subplots(figsize=(10, 0.55 * len(names) + 1.5), layout="constrained")
    left = [0.0] * len(names)
    for phase, colour in zip(found["phases"], (*COLOURS[:-1], "#dddddd"), strict=True):
        widths = [100 * found["cases"][name]["shares"][phase] for name in names]
        axes.barh(names, widths, left=left, label=phase, color=colour, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set(xlabel="% of the loop thread's time", xlim=(0, 100))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=3, fontsize=8, frameon=False)
    save(figure, file)


def _soak(found: dict[str, Any], file: Path) -> None:
    """Memory over time, and what is held."""
    figure, (memory, counts) = pyplot.subplots(2, 1, figsize=(10, 5), sharex=True, layout="constrained")
    minutes = [second / 60 for second in found["seconds"]]
    memory.plot(minutes, [value / 2**20 for value in found["rss"]], color=COLOURS[1])
    memory.axvspan(0, found["warm_up_seconds"] / 60, color="#dddddd", label="warm-up")
    memory.set(ylabel="RSS of the server, MiB", ylim=(0, None), title="Mixed load without pause")
    memory.legend(loc="lower right")
    for (name, values), colour in zip(found["counts"].items(), COLOURS[1:], strict=False):
        counts.plot(minutes, values, color=colour, label=name, linewidth=1)
    counts.set(xlabel="minutes", ylabel="held by the server", yscale="symlog", xlim=(0, minutes[-1]))
    counts.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=6, fontsize=8, frameon=False)
    save(figure, file)


def _voice(found: dict[str, Any], file: Path) -> None:
    """Streams a core by the number of calls at once."""
    figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    for (name, medians), colour in zip(found["streams"].items(), COLOURS, strict=False):
        middle, low, high = zip(*medians, strict=True)
        axes.plot(found["calls"], middle, marker="o", color=colour, label=name)
        axes.fill_between(found["calls"], low, high, color=colour, alpha=0.18, linewidth=0)
    axes.axhline(found["rows"][2]["other"], color="#333333", linestyle=":", label="published: 113 µs a frame")
    axes.set(xlabel="calls at once", ylabel="streams a core", title="Silero VAD, 32 ms a frame", ylim=(0, None))
    axes.set(xscale="log")
    axes.set_xticks(found["calls"], [f"{size:,}" for size in found["calls"]])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, file)


def save(figure: Any, file: Path) -> None:
    """Writes a picture and lets go of it."""
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


PICTURES: Final[Mapping[str, Callable[[Any, Path], None]]] = {
    "ratios": _ratios,
    "throughput": _throughput,
    "latency": _latency,
    "profile": _profile,
    "soak": _soak,
    "voice": _voice,
}
"""What draws which section of the figures."""
