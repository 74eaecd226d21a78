"""Pictures that recipes share: lines over a common axis, and tables of numbers. No recipe lives here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor


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


def scans(title: str, images: Tensor, read: Tensor, labels: Tensor, classes: Sequence[str]) -> Figure:
    """The first 24 images [N, H, W] with what was read [N]; those where that is not the label first, in red."""
    order = torch.argsort((read == labels).int(), stable=True)[:24]
    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.suptitle(title)
    for axes in (grid := figure.subplots(3, 8)).flat:
        axes.axis("off")
    for axes, at in zip(grid.flat, order.tolist(), strict=False):
        axes.imshow(images[at].numpy(), cmap="gray_r")
        said, real = classes[int(read[at])], classes[int(labels[at])]
        axes.set_title(said if said == real else f"{said}, is {real}", color="black" if said == real else "red")
    return figure


def bars(title: str, values: Mapping[str, float]) -> Figure:
    """One horizontal bar for every name, the first on top."""
    figure = Figure(figsize=(8, 0.25 * len(values) + 1.5), layout="constrained")
    axes = figure.subplots()
    axes.barh(list(values), list(values.values()))
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_title(title)
    return figure
