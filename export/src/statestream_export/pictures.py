"""Pictures that recipes share: lines over a common axis, and tables of numbers. No recipe lives here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure


def lines(title: str, curves: Mapping[str, tuple[np.ndarray, str]], *, xlabel: str, ylabel: str) -> Figure:
    """One line for every curve.

    Args:
        title: Above the picture.
        curves: By label: the values [N] or points [N, 2], and matplotlib's format ("k.-").
        xlabel: What the horizontal axis is.
        ylabel: What the vertical axis is.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for label, (values, style) in curves.items():
        points = np.asarray(values)
        if points.ndim == 2:
            axes.plot(points[:, 0], points[:, 1], style, label=label)
        else:
            axes.plot(points, style, label=label)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.legend()
    return figure


def table(title: str, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """A matrix [rows, columns] as colours, with its numbers."""
    figure = Figure(figsize=(1.2 * len(columns) + 4, 0.6 * len(rows) + 2), layout="constrained")
    axes = figure.subplots()
    axes.imshow(values, cmap="viridis", aspect="auto")
    figure.suptitle(title)
    axes.set(xticks=range(len(columns)), yticks=range(len(rows)))
    axes.set_xticklabels(columns)
    axes.set_yticklabels(rows)
    middle = (float(values.max()) + float(values.min())) / 2
    for row, column in np.ndindex(*values.shape):
        number = float(values[row, column])
        axes.text(column, row, f"{number:.3g}", ha="center", va="center", color="white" if number < middle else "black")
    return figure
