"""Figures of a run: pauses around faults, throughput over time, and their files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from statestream_server.settings import Settings
from tests.chaos.faults import Mark, Scene
from tests.chaos.workload import Verdict, Workload

BIN_SECONDS = 0.25
WINDOW_SECONDS = 20.0
"""How long after a fault a gap may begin or last to be counted as its pause."""


def pauses(
    load: Workload, marks: list[Mark], index: int, window: float = WINDOW_SECONDS, *, elsewhere: bool = False
) -> np.ndarray:
    """Seconds: the longest gap between two answers around a fault, of each session that was served there.

    With `elsewhere` of each that was not: what the machine's load alone makes of it.
    """
    mark = marks[index]
    until = min([mark.at + window, *(later.at for later in marks[index + 1 :])])
    found = []
    for track in load.tracks:
        if elsewhere == (not mark.address or load.caller(track).where(mark.at) == mark.address):
            continue
        times = np.asarray([load.began, *track.times])
        # From the last answer before the fault to the first one after the window.
        first = max(0, int(np.searchsorted(times, mark.at)) - 1)
        last = int(np.searchsorted(times, until)) + 1
        gaps = np.diff(times[first:last])
        if len(gaps):
            found.append(float(gaps.max()))
    return np.asarray(found)


def throughput(load: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Seconds since the start, and steps a second, in bins."""
    times = np.concatenate([track.times for track in load.tracks if track.times]) - load.began
    steps = np.concatenate([[len(y) for y in track.outputs] for track in load.tracks if track.times])
    edges = np.arange(0, times.max() + BIN_SECONDS, BIN_SECONDS)
    sums, _ = np.histogram(times, edges, weights=steps)
    return edges[:-1], sums / BIN_SECONDS


def summary(scene: Scene, verdict: Verdict, kind: str = "") -> dict[str, Any]:
    """The figures of a run; pauses of the faults called `kind`, or of all."""
    load, marks = scene.load, scene.marks
    chosen = [index for index, mark in enumerate(marks) if mark.what == kind or not kind]
    each = [pauses(load, marks, index) for index in chosen]
    every = np.concatenate([*each, np.zeros(0)])
    others = np.concatenate([*(pauses(load, marks, index, elsewhere=True) for index in chosen), np.zeros(0)])
    quiet = [float(np.quantile(one, 0.99)) for one in each if len(one)]
    found = {
        "seed": load.seed,
        "sessions": len(load.tracks),
        "replicas": len(scene.cluster.replicas),
        "faults": len(chosen),
        "seconds": round(max(track.times[-1] for track in load.tracks if track.times) - load.began, 1),
        "outputs_checked": verdict.outputs,
        "lost": verdict.lost,
        "repeated": verdict.repeated,
        "moves": sum(len(track.versions) - 1 for track in load.tracks),
        "pause_p50_seconds": _quantile(every, 0.5),
        "pause_p99_seconds": _quantile(every, 0.99),
        "pause_max_seconds": _quantile(every, 1.0),
        "worst_fault_p99_seconds": round(max(quiet, default=0.0), 3),
    }
    if len(others):
        found |= {f"elsewhere_p{percent}_seconds": _quantile(others, percent / 100) for percent in (50, 99)}
    return found


def _quantile(seconds: np.ndarray, part: float) -> float:
    return round(float(np.quantile(seconds, part)), 3) if len(seconds) else 0.0


def named(name: str, edge: str) -> str:
    """The name of a run's figures on an edge; on the usual one they are the page's."""
    return name if edge in ("", Settings(()).edge) else f"{name}-{edge}"


def report(name: str, figures: dict[str, Any]) -> None:
    """Prints figures; adds them to chaos.json where STATESTREAM_CHAOS_FIGURES names a folder.

    The load average tells how busy the machine was besides: these runs use two processors fully by themselves.
    """
    figures = figures | {"cpus": os.cpu_count(), "load_average": round(os.getloadavg()[0], 1)}
    print(f"\n{name}: {json.dumps(figures)}")
    folder = os.environ.get("STATESTREAM_CHAOS_FIGURES")
    if folder:
        file = Path(folder) / "chaos.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(known | {name: figures}, indent=2, sort_keys=True) + "\n")


def picture(name: str, title: str, scene: Scene) -> None:
    """Draws throughput over time with the faults marked, where STATESTREAM_CHAOS_FIGURES names a folder."""
    folder = os.environ.get("STATESTREAM_CHAOS_FIGURES")
    if not folder:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    at, rate = throughput(scene.load)
    figure, axes = pyplot.subplots(figsize=(10, 3.2), layout="constrained")
    axes.fill_between(at, rate / 1000, step="post", color="#4c78a8", alpha=0.85, linewidth=0)
    for number, mark in enumerate(scene.marks):
        label = {"label": mark.what} if mark.what not in {one.what for one in scene.marks[:number]} else {}
        colour = {"kill": "#e45756", "drain": "#54a24b"}.get(mark.what, "#f58518")
        axes.axvline(mark.at - scene.load.began, color=colour, linewidth=0.9, **label)  # type: ignore[arg-type]
    axes.set(title=title, xlabel="seconds", ylabel="thousand steps a second", xlim=(0, at[-1]), ylim=(0, None))
    axes.legend(loc="upper right", framealpha=0.9)
    figure.savefig(Path(folder) / f"{name}.png", dpi=110)
    pyplot.close(figure)
