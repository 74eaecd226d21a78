"""Income: embeddings of categories beside numbers, some of them missing, against gradient boosting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream.contract.signature import Text
from statestream_export import Export, export
from statestream_export.datasets import tables
from statestream_export.pictures import table as matrix
from statestream_export.recipe import Card, Target
from statestream_export.training import Curve, Run

HIDDEN = 64


class MixedMlp(nn.Module):
    """Log-probabilities from numbers [B, columns] float32, NaN where missing, and one int64 [B] a category."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor, sizes: list[int], classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        widths = [min(8, (size + 1) // 2) for size in sizes]
        self.embeddings = nn.ModuleList(nn.Embedding(size, width) for size, width in zip(sizes, widths, strict=True))
        self.layers = nn.Sequential(
            nn.Linear(2 * len(mean) + sum(widths), HIDDEN),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(HIDDEN, HIDDEN // 2),
            nn.ReLU(),
            nn.Linear(HIDDEN // 2, classes),
        )

    def forward(self, numbers: Tensor, *categories: Tensor) -> Tensor:
        """The z-score is inside; a missing number becomes the mean, and a flag says that it was missing."""
        missing = torch.isnan(numbers)
        scaled = torch.where(missing, 0.0, (numbers - self.mean) / self.deviation)
        parts = [embedding(values) for embedding, values in zip(self.embeddings, categories, strict=True)]
        return nn.functional.log_softmax(self.layers(torch.cat([scaled, missing.float(), *parts], 1)), dim=-1)


@dataclass(frozen=True)
class Rows:
    """Numbers [N, columns], categories int64 [N, C] and classes int64 [N]; the first `cut` rows train."""

    table: tables.Mixed
    numbers: Tensor
    categories: Tensor
    labels: Tensor
    cut: int

    def said(self, module: MixedMlp, chosen: Tensor | slice) -> Tensor:
        """What a module says of some rows, [N, classes]."""
        scores: Tensor = module(self.numbers[chosen], *self.categories[chosen].unbind(1))
        return scores


class Income:
    """Adam .003, batches of 32 (256 on large tables); the best on a tenth of what trains are kept."""

    card = Card(
        "income",
        task="income above 50,000 from categories and numbers",
        data="Adult census; else Palmer penguins (their species), with missing values",
        cell="Embeddings, Linear 64, 32",
        kind="predict",
        mode="",
        target=Target("behind_boosting", "<=", 0.02),
    )

    def data(self, run: Run) -> Rows:
        """The table and its split, the same for every seed."""
        table = tables.income(run.source)
        numbers, codes, labels = (torch.from_numpy(part) for part in (table.values, table.codes, table.labels))
        return Rows(table, numbers, codes, labels, len(labels) - table.held_out)

    def module(self, data: Rows) -> MixedMlp:
        """Random weights from the run's seed; mean and deviation from what trains."""
        train = data.table.values[: data.cut].astype(np.float64)
        deviation = np.nanstd(train, axis=0)
        mean, scale = (torch.from_numpy(part).float() for part in (np.nanmean(train, axis=0), deviation))
        sizes = [len(words) for words in data.table.vocabularies.values()]
        return MixedMlp(mean, torch.where(scale > 0, scale, 1.0), sizes, len(data.table.classes))

    def train(self, module: MixedMlp, data: Rows, run: Run) -> Curve:
        """Cross-entropy."""
        count = data.cut - max(1, data.cut // 10)
        small = data.cut < 10_000
        optimizer = torch.optim.Adam(module.parameters(), lr=3e-3, weight_decay=1e-4)

        def epoch() -> float:
            total = 0.0
            for chosen in torch.split(torch.randperm(count), 32 if small else 256):
                loss = nn.functional.nll_loss(data.said(module, chosen), data.labels[chosen])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                total += float(loss.item()) * len(chosen)
            return total / count

        def score() -> float:
            held = slice(count, data.cut)
            return float(nn.functional.nll_loss(data.said(module, held), data.labels[held]))

        return run.fit(module, epoch, epochs=60 if small else 15, score=score)

    def metrics(self, module: MixedMlp, data: Rows) -> dict[str, float | int | str]:
        """Accuracy on the rows held out, gradient boosting's on the same ones, and that of the larger class."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        both = np.concatenate([data.table.codes, data.table.values], axis=1)
        flags = [at < data.table.codes.shape[1] for at in range(both.shape[1])]
        boosting = HistGradientBoostingClassifier(categorical_features=flags, random_state=0)
        boosting.fit(both[: data.cut], data.table.labels[: data.cut])
        wanted = data.table.labels[data.cut :]
        ours = float((data.said(module, slice(data.cut, None)).argmax(-1).numpy() == wanted).mean())
        theirs = float((boosting.predict(both[data.cut :]) == wanted).mean())
        return {
            "test_accuracy": ours,
            "test_accuracy_boosting": theirs,
            "behind_boosting": theirs - ours,
            "larger_class": float(np.bincount(wanted).max() / len(wanted)),
            "test_rows": len(wanted),
            "data": data.table.source,
        }

    def picture(self, module: MixedMlp, data: Rows) -> Figure:
        """Which class was taken for which, among the rows held out."""
        classes = data.table.classes
        said = data.said(module, slice(data.cut, None)).argmax(-1)
        counts = torch.zeros(len(classes), len(classes))
        for real, read in zip(data.labels[data.cut :].tolist(), said.tolist(), strict=True):
            counts[real, read] += 1
        rows, columns = [f"is {name}" for name in classes], [f"said {name}" for name in classes]
        return matrix(f"income: rows held out, {data.table.source}", counts.numpy(), rows, columns)

    def export(self, module: MixedMlp, data: Rows, folder: Path) -> list[Export]:
        """One file without memory; each category is an input with its vocabulary."""
        names = list(data.table.vocabularies)
        example = {name: data.categories[: data.cut, at].contiguous() for at, name in enumerate(names)}
        return [
            export(
                module,
                {"numbers": data.numbers[: data.cut], **example},
                outputs=["scores"],
                path=folder / "model.onnx",
                columns={"numbers": data.table.columns},
                classes={"scores": data.table.classes},
                text={
                    # No value holds a line break, so that each is one symbol.
                    name: Text(vocabulary=words, separator="\n", unknown=tables.MISSING)
                    for name, words in data.table.vocabularies.items()
                },
                description=f"Names the class of a row of {data.table.source}; numbers may be NaN, categories '?'.",
                # torch.export cannot name the axes of forward's *categories.
                exporter="torchscript",
            )
        ]


recipe = Income()
