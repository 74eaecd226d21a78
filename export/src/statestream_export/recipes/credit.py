"""Credit: logistic regression on a table of numbers, against scikit-learn's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream_export import Export, export
from statestream_export.datasets import tables
from statestream_export.pictures import bars
from statestream_export.recipe import Card, Target
from statestream_export.training import Curve, Run


class LogisticRegression(nn.Module):
    """Log-probabilities of two classes: x [B, columns] float32, raw → scores [B, 2]."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.linear = nn.Linear(len(mean), 2)

    def forward(self, x: Tensor) -> Tensor:
        """The z-score is inside."""
        return nn.functional.log_softmax(self.linear((x - self.mean) / self.deviation), dim=-1)


@dataclass(frozen=True)
class Rows:
    """Numbers float32 [N, columns] and classes int64 [N], to learn from and held out."""

    table: tables.Numbers
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


class Credit:
    """Adam .05 on all rows at once, 300 epochs, the same penalty on weights as scikit-learn's."""

    card = Card(
        "credit",
        task="good or bad credit from 24 numbers",
        data="German credit, 900/100; else scikit-learn breast cancer, 469/100",
        cell="Linear 24→2",
        kind="predict",
        mode="",
        target=Target("behind_scikit_learn", "<=", 0.02),
    )

    def data(self, run: Run) -> Rows:
        """The table and its split, the same for every seed."""
        table = tables.credit(run.source)
        x, y = torch.from_numpy(table.values.astype(np.float32)), torch.from_numpy(table.labels)
        cut = len(x) - table.held_out
        return Rows(table, x[:cut], y[:cut], x[cut:], y[cut:])

    def module(self, data: Rows) -> LogisticRegression:
        """Random weights from the run's seed; mean and deviation from what trains."""
        deviation = data.x.std(0, unbiased=False)
        return LogisticRegression(data.x.mean(0), torch.where(deviation > 0, deviation, 1.0))

    def train(self, module: LogisticRegression, data: Rows, run: Run) -> Curve:
        """Cross-entropy, and half the squared weights between the two classes, as scikit-learn has them."""
        optimizer = torch.optim.Adam(module.parameters(), lr=0.05)

        def epoch() -> float:
            penalty = (module.linear.weight[1] - module.linear.weight[0]).square().sum() / (2 * len(data.x))
            loss = nn.functional.nll_loss(module(data.x), data.y) + penalty
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            return float(loss.item())

        return run.fit(module, epoch, epochs=300)

    def metrics(self, module: LogisticRegression, data: Rows) -> dict[str, float | int | str]:
        """Accuracy on the rows held out, scikit-learn's on the same ones, and that of the larger class."""
        from sklearn.linear_model import LogisticRegression as Reference

        scaled, test = ((part - module.mean) / module.deviation for part in (data.x, data.test_x))
        reference = Reference(max_iter=1000).fit(scaled.numpy(), data.y.numpy())
        wanted = data.test_y.numpy()
        ours = float((module(data.test_x).argmax(-1).numpy() == wanted).mean())
        theirs = float((reference.predict(test.numpy()) == wanted).mean())
        return {
            "test_accuracy": ours,
            "test_accuracy_scikit_learn": theirs,
            "behind_scikit_learn": theirs - ours,
            "larger_class": float(np.bincount(wanted).max() / len(wanted)),
            "test_rows": len(wanted),
            "data": data.table.source,
        }

    def picture(self, module: LogisticRegression, data: Rows) -> Figure:
        """What speaks for the second class, one deviation more of each column."""
        weights = module.linear.weight
        title = f"credit: what speaks for “{data.table.classes[1]}”"
        return bars(title, dict(zip(data.table.columns, (weights[1] - weights[0]).tolist(), strict=True)))

    def export(self, module: LogisticRegression, data: Rows, folder: Path) -> list[Export]:
        """One file without memory; columns and classes are named in the signature."""
        return [
            export(
                module,
                {"x": data.x},
                outputs=["scores"],
                path=folder / "model.onnx",
                columns={"x": data.table.columns},
                classes={"scores": data.table.classes},
                description=f"Logistic regression on {data.table.source}: log-probabilities of two classes.",
            )
        ]


recipe = Credit()
