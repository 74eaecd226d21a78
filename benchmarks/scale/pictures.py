"""The pictures of docs/scale.md, drawn from the figures alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot

from benchmarks.pictures import COLOURS, save
from benchmarks.scale.ask import COMPARED, compared, costs_of, setting_of

_NAMES = {
    "replica_seconds": "CPU of replicas",
    "redis_seconds": "CPU of Redis",
    "steady_p50": "lateness p50",
    "steady_p99": "lateness p99",
    "pause_p50": "pause p50",
    "pause_max": "pause, longest",
}


def draw(known: dict[str, Any], folder: Path) -> None:
    """Draws all of them."""
    _prediction(known, folder / "scale-prediction.png")
    _sizes(known["asked"]["figures"], folder / "scale-sizes.png")
    _pauses(known["asked"]["figures"], folder / "scale-pauses.png")


def _prediction(known: dict[str, Any], file: Path) -> None:
    """Simulated over measured, with the range of the measured runs."""
    costs, runs = costs_of(known["costs"]["figures"]), known["runs"]["figures"]
    figure, axes = pyplot.subplots(figsize=(9, 3.6), layout="constrained")
    for number, run in enumerate(runs):
        found = compared(costs, setting_of(run["setting"]))
        for place, name in enumerate(COMPARED):
            one, at = run["measured"][name], place + 0.25 * (number - (len(runs) - 1) / 2)
            ends = [[one["median"] / one["median"] - one["least"] / one["median"]], [one["most"] / one["median"] - 1]]
            label = f"{run['setting']['replicas']} replicas" if place == 0 else None
            height = found[name] / one["median"] - 1
            axes.bar(at, height, bottom=1, width=0.22, color=COLOURS[number + 1], alpha=0.85, label=label)
            axes.errorbar(at, 1, yerr=ends, color="#333333", linewidth=1, capsize=3)
    axes.axhline(1, color="#333333", linewidth=0.8)
    axes.set_xticks(range(len(COMPARED)), [_NAMES[name] for name in COMPARED])
    axes.set(yscale="log", ylabel="multiple of the measured median")
    axes.set_title("Bars: simulated; lines: least and most of the measured runs")
    axes.set_yticks([0.1, 0.3, 1, 3, 10, 100], ["0.1", "0.3", "1", "3", "10", "100"])
    axes.legend()
    save(figure, file)


def _sizes(asked: list[dict[str, Any]], file: Path) -> None:
    """Replicas and shards over the number of sessions."""
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for number, interval in enumerate(sorted({one["save_interval"] for one in asked})):
        rows = [one for one in asked if one["save_interval"] == interval]
        at = [one["sessions"] for one in rows]
        for what, line in (("replicas", "o-"), ("shards", "s--")):
            label = f"{what}, saved every {interval:g} s"
            axes.plot(at, [one[what] for one in rows], line, color=COLOURS[number + 1], label=label)
    axes.set(xscale="log", yscale="log", xlabel="sessions, each with a step a second", ylabel="processors")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, file)


def _pauses(asked: list[dict[str, Any]], file: Path) -> None:
    """How late the sessions of what was lost are, median to the latest."""
    figure, axes = pyplot.subplots(figsize=(9, 3.8), layout="constrained")
    for place, one in enumerate(asked):
        for number, (name, found) in enumerate(one["lost"].items()):
            at = place + 0.25 * (number - 1)
            label = {"one": "one replica", "five": "five replicas", "zone": "a zone of three"}[name]
            low, high = found["pause_p50"], found["pause_max"]
            colour = COLOURS[number + 1]
            axes.bar(
                at, high - low, bottom=low, width=0.2, color=colour, alpha=0.8, label=label if place == 0 else None
            )
            axes.plot([at - 0.1, at + 0.1], [found["pause_p99"]] * 2, color="#333333", linewidth=1)
    names = [f"{one['sessions']:.0e}".replace("e+0", "e") + f"\n{one['save_interval']:g} s" for one in asked]
    axes.set_xticks(range(len(asked)), names)
    axes.set(yscale="log", ylabel="seconds late, p50 to the latest", xlabel="sessions, and seconds between saves")
    axes.set_title("Pause of sessions whose replica is lost (line: p99)")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(loc="center right")
    save(figure, file)
