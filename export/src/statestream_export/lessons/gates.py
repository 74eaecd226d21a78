"""Gates: what RNN, LSTM and GRU do inside while they keep a value in mind, computed from their weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream_export.lessons import Shown, finished
from statestream_export.training import Run

HIDDEN, STEPS, BATCH, LENGTH = 4, 1500, 64, 40
MARK = 0.15
"""How often a step is marked."""
GATES = {
    "RNN": ("state h",),
    "LSTM": ("input gate i", "forget gate f", "output gate o", "cell c"),
    "GRU": ("reset gate r", "update gate z", "candidate n", "state h"),
}
"""What is drawn of each layer."""

Layer = nn.RNN | nn.LSTM | nn.GRU


class Keeper(nn.Module):
    """x [B, T, 2] float32, a value and a mark → y [B, T], the last marked value."""

    def __init__(self, kind: type[Layer]) -> None:
        super().__init__()
        self.layer = kind(2, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        """From zeros."""
        said: Tensor = self.head(self.layer(x)[0])[..., 0]
        return said


def sequences(count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random values and marks [count, length, 2], the first marked; and the value at the last mark [count, length]."""
    values = torch.rand(count, length, generator=generator) * 2 - 1
    marks = torch.rand(count, length, generator=generator) < MARK
    marks[:, 0] = True
    last = torch.where(marks, torch.arange(length), 0).cummax(dim=1).values
    return torch.stack([values, marks.float()], dim=-1), values.gather(1, last)


def inside(layer: Layer, x: Tensor) -> dict[str, Tensor]:
    """What a layer computes at every step of x [T, F], by the formulas of docs/lessons/gates.md: [T, H] each.

    `state h` is what the layer says.
    """
    w, u, b, d = layer.all_weights[0]
    from_x = x @ w.T + b
    h = c = torch.zeros(layer.hidden_size)
    found = dict[str, list[Tensor]]()
    for row in from_x:
        from_h = u @ h + d
        if isinstance(layer, nn.LSTM):
            i, f, g, o = (row + from_h).chunk(4)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            c = f * c + i * g
            h = o * c.tanh()
            step = {"input gate i": i, "forget gate f": f, "output gate o": o, "cell c": c}
        elif isinstance(layer, nn.GRU):
            (xr, xz, xn), (hr, hz, hn) = row.chunk(3), from_h.chunk(3)
            r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
            n = (xn + r * hn).tanh()
            h = (1 - z) * n + z * h
            step = {"reset gate r": r, "update gate z": z, "candidate n": n}
        else:
            h, step = (row + from_h).tanh(), {}
        for name, value in (step | {"state h": h}).items():
            found.setdefault(name, []).append(value)
    return {name: torch.stack(values) for name, values in found.items()}


@dataclass(frozen=True, slots=True)
class Kept:
    """One trained layer: its error on new sequences, and what it does inside over one of them."""

    name: str
    error: float
    values: dict[str, Tensor]
    said: Tensor


def show(run: Run) -> Shown:
    """Trains the three on the same sequences and looks into them."""
    test = sequences(500, LENGTH, torch.Generator().manual_seed(1_000_000 + run.seed))
    x, wanted = test[0][0], test[1][0]
    kept = []
    for kind in (nn.RNN, nn.LSTM, nn.GRU):
        torch.manual_seed(run.seed)
        module = Keeper(kind)
        _train(module, run)
        with torch.no_grad():
            error = float(nn.functional.mse_loss(module(test[0]), test[1]))
            kept.append(Kept(kind.__name__, error, inside(module.layer, x), module(x[None])[0]))
    marks = x[:, 1] > 0.5
    figures: dict[str, object] = {"mean_squared_error": {one.name: one.error for one in kept}}
    figures["guessing"] = float(test[1].var())
    for one in kept:
        for name in GATES[one.name]:
            if "gate" in name:
                values = one.values[name]
                key = f"{one.name} {name}"
                figures[key] = {"marked": float(values[marks].mean()), "not_marked": float(values[~marks].mean())}
    return Shown(figures, _picture(x, wanted, kept))


def _train(module: Keeper, run: Run) -> None:
    generator = torch.Generator().manual_seed(run.seed)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)

    def epoch() -> float:
        losses = []
        for _ in range(STEPS // 30):
            x, wanted = sequences(BATCH, LENGTH, generator)
            loss = nn.functional.mse_loss(module(x), wanted)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.item()))
        return sum(losses) / len(losses)

    finished(run.fit(module, epoch, epochs=30))


def _picture(x: Tensor, wanted: Tensor, kept: list[Kept]) -> Figure:
    """A column for each layer: what it says, then its gates and its memory, a row for each unit."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    figure.suptitle(
        "Keep the last marked value (dotted lines: marks). Below, for each of four units: white 0, red 1, blue −1"
    )
    grid = figure.subplots(5, 3, sharex=True, squeeze=False)
    steps, marks = np.arange(len(x)), np.flatnonzero(x[:, 1].numpy() > 0.5)
    for column, one in enumerate(kept):
        top = grid[0][column]
        top.plot(steps, x[:, 0], ".", color="lightgrey", label="value given")
        top.step(steps, wanted, "k-", where="post", linewidth=1, label="to keep")
        top.plot(steps, one.said, color="tab:green", label="said")
        top.set(title=f"{one.name}: mean squared error {one.error:.2g}", ylim=(-1.2, 1.2))
        for mark in marks:
            top.axvline(mark, color="grey", linestyle=":", linewidth=0.8)
        for row in range(1, 5):
            axes = grid[row][column]
            names = GATES[one.name]
            if row > len(names):
                axes.axis("off")
                continue
            values = one.values[names[row - 1]].numpy().T
            axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
            axes.set(title=names[row - 1], yticks=[])
            for mark in marks:
                axes.axvline(mark - 0.5, color="black", linestyle=":", linewidth=0.8)
    grid[0][0].legend(loc="lower right", fontsize=7)
    for axes in grid[-1]:
        axes.set_xlabel("step")
    return figure
