"""The table: which measurements make which ratio, what each must reach, and how it is written down."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import cases, raw
from benchmarks.cases import Bench


@dataclass
class Row:
    """One line of the table.

    Attributes:
        name: What is measured.
        target: What must be reached, in words.
        reached: Whether a ratio reaches it.
        ours: One measurement of ours.
        other: One of what it is compared with.
        unit: Of both.
    """

    name: str
    target: str
    reached: Callable[[float], bool]
    ours: Callable[[], float]
    other: Callable[[], float]
    unit: str
    pairs: list[tuple[float, float]] = field(default_factory=list)

    def measure(self) -> None:
        """Measures both, one after the other."""
        self.pairs.append((self.ours(), self.other()))

    @property
    def ratio(self) -> float:
        """The median of the ratios, pair by pair."""
        return statistics.median(ours / other for ours, other in self.pairs)


@dataclass(frozen=True)
class Result:
    """What a row came to: medians of the measurements, and of the ratios."""

    name: str
    ours: float
    other: float
    unit: str
    ratio: float
    target: str
    reached: bool


def rows(bench: Bench, seconds: float) -> list[Row]:
    """Every comparison."""
    lstm, wide, features = bench.model("lstm"), bench.model("lstm-wide"), cases.FEATURES

    def least(bound: float) -> Callable[[float], bool]:
        return lambda ratio: ratio >= bound

    return [
        Row(
            "pool, 1,024 sessions × 1 step, against raw ONNX Runtime",
            "≥ 0.7",
            least(0.7),
            lambda: cases.pool(bench, "lstm", 1024, 1, seconds),
            lambda: raw.steps_per_second(lstm, 1024, 1, features, seconds),
            "steps/s",
        ),
        Row(
            "pool, 256 sessions × 16 steps, against raw ONNX Runtime",
            "≥ 0.8",
            least(0.8),
            lambda: cases.pool(bench, "lstm", 256, 16, seconds),
            lambda: raw.steps_per_second(lstm, 256, 16, features, seconds),
            "steps/s",
        ),
        Row(
            "1,024 tasks awaiting single steps, against the echo with 256 streams",
            "≥ 6",
            least(6),
            lambda: cases.awaits(bench, 1024, seconds),
            lambda: cases.echo_rate(bench, seconds),
            "steps/s, messages/s",
        ),
        Row(
            "one session, median round trip, against the echo's",
            "≤ 1.6",
            lambda ratio: ratio <= 1.6,
            lambda: cases.round_trip(bench, seconds) * 1e6,
            lambda: cases.echo_round_trip(bench, seconds) * 1e6,
            "µs",
        ),
        Row(
            "256 sessions with a stream each, against the echo with 256 streams",
            "≥ 0.7",
            least(0.7),
            lambda: cases.streams(bench, 256, seconds),
            lambda: cases.echo_rate(bench, seconds),
            "steps/s, messages/s",
        ),
        Row(
            "pool of 256, against the first attempt with 256 streams",
            "≥ 40",
            least(40),
            lambda: cases.pool(bench, "lstm", 256, 1, seconds),
            lambda: cases.naive_rate(bench, seconds),
            "steps/s",
        ),
        Row(
            "256 tasks awaiting single steps, against the first attempt with 256 streams",
            "≥ 20",
            least(20),
            lambda: cases.awaits(bench, 256, seconds),
            lambda: cases.naive_rate(bench, seconds),
            "steps/s",
        ),
        Row(
            "p99 of single steps at half load beside full chunks, against without",
            "≤ 2, or + 2 ms",
            lambda ratio: ratio <= 2,
            lambda: cases.percentile_beside(bench, 2000, 2 * seconds, chunks=True) * 1e3,
            lambda: cases.percentile_beside(bench, 2000, 2 * seconds, chunks=False) * 1e3,
            "ms",
        ),
        Row(
            "sessions opened in bulk, against 50,000 a second",
            "≥ 1",
            least(1),
            lambda: cases.open_and_close(bench, 20_000)[0],
            lambda: 50_000.0,
            "sessions/s",
        ),
        Row(
            "sessions closed in bulk, against 50,000 a second",
            "≥ 1",
            least(1),
            lambda: cases.open_and_close(bench, 20_000)[1],
            lambda: 50_000.0,
            "sessions/s",
        ),
        Row(
            "LSTM 8→2×256→1, pool of 256, against raw ONNX Runtime",
            "≥ 0.8",
            least(0.8),
            lambda: cases.pool(bench, "lstm-wide", 256, 1, seconds),
            lambda: raw.steps_per_second(wide, 256, 1, features, seconds),
            "steps/s",
        ),
        Row(
            "convnet through predict, batches of 64, against raw ONNX Runtime",
            "≥ 0.8",
            least(0.8),
            lambda: cases.predict(bench, 64, seconds),
            lambda: cases.predict_raw(bench, 64, seconds),
            "images/s",
        ),
    ]


def results(measured: list[Row]) -> list[Result]:
    """Medians."""
    return [
        Result(
            row.name,
            statistics.median(ours for ours, _ in row.pairs),
            statistics.median(other for _, other in row.pairs),
            row.unit,
            row.ratio,
            row.target,
            row.reached(row.ratio),
        )
        for row in measured
        if row.pairs
    ]


def machine() -> str:
    """What ran it, in one line."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"{len(os.sched_getaffinity(0))} cores, {model}, Python {platform.python_version()}, {platform.system()}"


def markdown(found: list[Result]) -> str:
    """The table as Markdown."""
    lines = [
        "| what | ours | compared with | unit | ratio | must reach | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in found:
        mark = "reached" if each.reached else "**missed**"
        figures = f"{each.ours:,.4g} | {each.other:,.4g} | {each.unit} | {each.ratio:.2f} | {each.target}"
        lines.append(f"| {each.name} | {figures} | {mark} |")
    return "\n".join(lines)


def write(found: list[Result], path: Path) -> None:
    """The figures as JSON, so that docs and pictures come from one run."""
    path.write_text(json.dumps({"machine": machine(), "results": [asdict(each) for each in found]}, indent=1) + "\n")
