"""The table: which measurements make which ratio, and what each must reach."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks import cases, raw
from benchmarks.cases import Bench
from benchmarks.curves import HALF_LOAD


@dataclass(frozen=True)
class Target:
    """What a ratio must reach.

    Attributes:
        bound: The ratio.
        least: Whether it must be at least that; at most otherwise.
        slack: A difference, in the row's unit, that counts as reached whatever the ratio.
    """

    bound: float
    least: bool = True
    slack: float = 0.0

    def share(self, ratio: float) -> float:
        """How far it is reached: 1 just, 2 twice as well."""
        return ratio / self.bound if self.least else self.bound / ratio

    def words(self, unit: str) -> str:
        slack = f", or + {self.slack:g} {unit}" if self.slack else ""
        return f"{'≥' if self.least else '≤'} {self.bound:g}{slack}"


@dataclass
class Row:
    """One line of the table.

    Attributes:
        name: What is measured.
        target: What must be reached; None where the figure only informs.
        ours: One measurement of ours.
        other: One of what it is compared with.
        unit: Of both.
        pairs: What was measured.
    """

    name: str
    target: Target | None
    ours: Callable[[], float]
    other: Callable[[], float]
    unit: str
    pairs: list[tuple[float, float]] = field(default_factory=list)

    def measure(self) -> None:
        """Measures both, one after the other."""
        self.pairs.append((self.ours(), self.other()))


@dataclass(frozen=True)
class Result:
    """What a row came to: medians of the measurements, and of the ratios of the pairs with their range."""

    name: str
    ours: float
    other: float
    unit: str
    ratio: float
    lowest: float
    highest: float
    rounds: int
    target: str
    share: float | None
    reached: bool | None


def rows(bench: Bench, seconds: float) -> list[Row]:
    """Every comparison."""
    lstm, wide, features = bench.model("lstm"), bench.model("lstm-wide"), cases.FEATURES

    return [
        Row(
            f"pool, 1,024 sessions × 1 step, {cases.AHEAD} frames under way, against raw ONNX Runtime",
            Target(0.7),
            lambda: cases.pool(bench, "lstm", 1024, 1, seconds, ahead=cases.AHEAD),
            lambda: raw.steps_per_second(lstm, 1024, 1, features, seconds),
            "steps/s",
        ),
        Row(
            "the same pool, but each frame waits for the answer before it",
            None,
            lambda: cases.pool(bench, "lstm", 1024, 1, seconds),
            lambda: raw.steps_per_second(lstm, 1024, 1, features, seconds),
            "steps/s",
        ),
        Row(
            "pool, 256 sessions × 16 steps, against raw ONNX Runtime",
            Target(0.8),
            lambda: cases.pool(bench, "lstm", 256, 16, seconds),
            lambda: raw.steps_per_second(lstm, 256, 16, features, seconds),
            "steps/s",
        ),
        Row(
            "1,024 tasks awaiting single steps, against the echo with 256 streams",
            Target(6),
            lambda: cases.awaits(bench, 1024, seconds),
            lambda: cases.echo_rate(bench, seconds),
            "steps/s, messages/s",
        ),
        Row(
            "one session, median round trip, against the echo's",
            Target(1.6, least=False),
            lambda: _median(cases.round_trips(bench, seconds)) * 1e6,
            lambda: _median(cases.echo_round_trips(bench, seconds)) * 1e6,
            "µs",
        ),
        Row(
            "256 sessions with a stream each, against the echo with 256 streams",
            Target(0.7),
            lambda: cases.streams(bench, 256, seconds)[0],
            lambda: cases.echo_rate(bench, seconds),
            "steps/s, messages/s",
        ),
        Row(
            "pool of 256, against the first attempt with 256 streams",
            Target(40),
            lambda: cases.pool(bench, "lstm", 256, 1, seconds),
            lambda: cases.naive_rate(bench, seconds),
            "steps/s",
        ),
        Row(
            "256 tasks awaiting single steps, against the first attempt with 256 streams",
            Target(20),
            lambda: cases.awaits(bench, 256, seconds),
            lambda: cases.naive_rate(bench, seconds),
            "steps/s",
        ),
        Row(
            "p99 of single steps at half load beside full chunks, against without",
            Target(2, least=False, slack=2.0),
            lambda: _percentile(cases.trips_beside(bench, HALF_LOAD, 2 * seconds, chunks=True)) * 1e3,
            lambda: _percentile(cases.trips_beside(bench, HALF_LOAD, 2 * seconds, chunks=False)) * 1e3,
            "ms",
        ),
        Row(
            "sessions opened in bulk, against 50,000 a second",
            Target(1),
            lambda: cases.open_and_close(bench, 20_000)[0],
            lambda: 50_000.0,
            "sessions/s",
        ),
        Row(
            "sessions closed in bulk, against 50,000 a second",
            Target(1),
            lambda: cases.open_and_close(bench, 20_000)[1],
            lambda: 50_000.0,
            "sessions/s",
        ),
        Row(
            "LSTM 8→2×256→1, pool of 256, against raw ONNX Runtime",
            Target(0.8),
            lambda: cases.pool(bench, "lstm-wide", 256, 1, seconds),
            lambda: raw.steps_per_second(wide, 256, 1, features, seconds),
            "steps/s",
        ),
        Row(
            "convnet through predict, batches of 64, against raw ONNX Runtime",
            Target(0.8),
            lambda: cases.predict(bench, cases.images(64), seconds),
            lambda: cases.predict_raw(bench, cases.images(64), seconds),
            "images/s",
        ),
    ]


def _median(trips: np.ndarray) -> float:
    return float(np.median(trips))


def _percentile(trips: np.ndarray) -> float:
    return float(np.quantile(trips, 0.99))


def results(measured: Sequence[Row]) -> list[Result]:
    """Medians and ranges of the rows that were measured."""
    return [_result(row) for row in measured if row.pairs]


def _result(row: Row) -> Result:
    ratios = [ours / other for ours, other in row.pairs]
    ratio, target = statistics.median(ratios), row.target
    share, reached = None, None
    if target is not None:
        share = target.share(ratio)
        more = statistics.median(ours - other for ours, other in row.pairs)
        reached = share >= 1 or (target.slack > 0 and more <= target.slack)
    return Result(
        row.name,
        statistics.median(ours for ours, _ in row.pairs),
        statistics.median(other for _, other in row.pairs),
        row.unit,
        ratio,
        min(ratios),
        max(ratios),
        len(ratios),
        target.words(row.unit) if target else "",
        share,
        reached,
    )
