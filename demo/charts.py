"""The demo's chart, in the terminal and as a PNG."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import plotext

Numbers = npt.NDArray[np.float32]
Years = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Story:
    """What the chart shows.

    Attributes:
        years: The held-out years [T].
        numbers: Their numbers of sunspots [T].
        predicted: What the session answered a year earlier [T].
        future: The years of the forecast [H].
        forecast: The forecast [H].
        killed: The year at which the server was killed.
    """

    years: Years
    numbers: Numbers
    predicted: Numbers
    future: Years
    forecast: Numbers
    killed: int

    @property
    def top(self) -> float:
        """The highest number."""
        return float(max(self.numbers.max(), self.predicted.max(), self.forecast.max()))

    @property
    def bottom(self) -> float:
        """The lowest number, or 0."""
        return float(min(0.0, self.predicted.min(), self.forecast.min()))


def show(story: Story) -> None:
    """Prints the chart, as wide as the terminal, 100 columns at most."""
    size = shutil.get_terminal_size((100, 40))
    figure = plotext.figure
    figure.clear()
    figure.theme("simple" if sys.stdout.isatty() else "colorless")
    figure.canvas("default")
    figure.plot_size(min(size.columns, 100), max(16, min(size.lines - 4, 24)))
    for x, y, label, marker in (
        (story.years, story.predicted, "one year ahead", "braille"),
        (story.future, story.forecast, f"{len(story.future)} years ahead", "hd"),
        (story.years, story.numbers, "sunspots, held out", "dot"),
    ):
        signal = figure.signal(x.tolist(), y.tolist(), marker=marker)
        signal.label(label)
        if marker != "dot":
            signal.lines()
        figure.draw(signal)
    figure.line(story.killed, "vertical", label="SIGKILL")
    first, last = int(story.years[0]), int(story.future[-1])
    figure.ruler("x").lim(first, last)
    figure.ruler("x").ticks(list(range(first, last + 1, 10)))
    # Room above the highest point, so that the legend hides nothing.
    figure.ruler("y").lim(story.bottom, story.top * 1.5)
    figure.title("sunspots: a session that outlives its server")
    figure.show(colorless=not sys.stdout.isatty())


def save(story: Story, path: Path) -> None:
    """Writes the chart as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(story.years, story.numbers, "k.", label="sunspots, held out")
    axes.plot(story.years, story.predicted, label="one year ahead, streamed")
    axes.plot(story.future, story.forecast, "--", label=f"{len(story.future)} years ahead, from a fork")
    axes.axvline(story.killed, color="tab:red", linestyle=":", label="the server is killed and started again")
    axes.set(title="sunspots: a session that outlives its server", xlabel="year", ylabel="sunspots")
    axes.set_ylim(story.bottom - 5, story.top * 1.35)
    axes.legend(ncols=2, loc="upper center")
    figure.savefig(path, dpi=120)
