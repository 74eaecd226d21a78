"""Curves: throughput over the number of sessions, and how long single steps take."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from rich.progress import track

from benchmarks import cases, raw
from benchmarks.cases import Bench
from benchmarks.figures import rounded

SIZES = (1, 4, 16, 64, 256, 1024, 4096)
QUANTILES = (0.01, 0.05, *np.arange(0.1, 0.9, 0.05).round(2).tolist(), 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
HALF_LOAD = 2000
"""Single steps a second of 64 sessions together, about half of what these two processes can do one by one."""


def throughput(bench: Bench, rounds: int, seconds: float) -> dict[str, Any]:
    """Steps a second over the number of sessions: medians, least and most of interleaved rounds."""
    lstm = bench.model("lstm")
    ways: Mapping[str, Callable[[int], float]] = {
        "raw ONNX Runtime, one thread": lambda n: raw.steps_per_second(lstm, n, 1, cases.FEATURES, seconds),
        f"pool of N sessions, {cases.AHEAD} frames under way": lambda n: cases.pool(
            bench, "lstm", n, 1, seconds, ahead=cases.AHEAD
        ),
        "pool of N sessions": lambda n: cases.pool(bench, "lstm", n, 1, seconds),
        "N tasks that await single steps": lambda n: cases.awaits(bench, n, seconds),
    }
    found: dict[str, list[list[float]]] = {name: [[] for _ in SIZES] for name in ways}
    for _ in track(range(rounds), "throughput by sessions"):
        for place, size in enumerate(SIZES):
            for name, way in ways.items():
                found[name][place].append(way(size))
    return {
        "sessions": list(SIZES),
        "rounds": rounds,
        "steps_per_second": {
            name: [[rounded(f(each)) for f in (statistics.median, min, max)] for each in by_size]
            for name, by_size in found.items()
        },
    }


def latency(bench: Bench, rounds: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of single round trips by quantile, all rounds together."""
    ways: Mapping[str, Callable[[], np.ndarray]] = {
        "bare echo, one stream": lambda: cases.echo_round_trips(bench, seconds),
        "first attempt, one stream": lambda: cases.naive_round_trips(bench, seconds),
        "one session alone, without our client": lambda: cases.streams(bench, 1, seconds)[1],
        "one session alone": lambda: cases.round_trips(bench, seconds),
        f"64 sessions, {HALF_LOAD:,} steps/s": lambda: cases.trips_beside(bench, HALF_LOAD, seconds, chunks=False),
        "the same beside full chunks": lambda: cases.trips_beside(bench, HALF_LOAD, seconds, chunks=True),
    }
    found: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    for _ in track(range(rounds), "latency"):
        for name, way in ways.items():
            found[name].append(way())
    return {
        "quantiles": list(QUANTILES),
        "rounds": rounds,
        "milliseconds": {
            name: [rounded(1e3 * q) for q in np.quantile(np.concatenate(trips), QUANTILES).tolist()]
            for name, trips in found.items()
        },
        "steps": {name: sum(len(one) for one in trips) for name, trips in found.items()},
    }
