"""What a recipe is: from data to a served model, in one short file. No recipe lives here.

A file of one's own becomes a recipe by a class with these methods and a module-level `recipe`:

    class Mine:
        card = Card("mine", task=…, data=…, cell=…, kind="session", mode=…, target=Target("rmse", "<=", 0.1))
        def data(self, run): ...                      # whatever the methods below need
        def module(self, data): ...                   # an nn.Module; (inputs, states) → (outputs, new states)
        def train(self, module, data, run): ...       # return run.fit(module, one_epoch, epochs=100)
        def metrics(self, module, data): ...          # {"rmse": 0.07}
        def picture(self, module, data): ...          # a matplotlib Figure
        def export(self, module, data, folder): ...   # [export(module, example, path=folder / "model.onnx", …)]

    recipe = Mine()
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from statestream_export.exporter import Export
    from statestream_export.training import Curve, Run

Kind = Literal["predict", "session", "generate"]
Value = float | int | str | bool | Sequence[float] | Mapping[str, str]
Data = TypeVar("Data")

_COMPARE: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
}


@dataclass(frozen=True, slots=True)
class Target:
    """The figure that a recipe must reach: the name of a metric, a comparison and a bound."""

    metric: str
    relation: Literal["<", "<=", ">=", "=="]
    bound: float

    def __str__(self) -> str:
        bound = f"{self.bound:,}" if isinstance(self.bound, int) else f"{self.bound:g}"
        return f"{self.metric} {self.relation} {bound}"

    def reached(self, metrics: Mapping[str, Value]) -> bool:
        """Whether these metrics reach it."""
        value = metrics[self.metric]
        return isinstance(value, float | int) and _COMPARE[self.relation](float(value), self.bound)


@dataclass(frozen=True, slots=True)
class Card:
    """What the list of recipes says of one.

    Attributes:
        name: Its name, and the model's.
        task: What the model does.
        data: On which data.
        cell: The layers that matter.
        kind: How it is served: by predict, by sessions or by generate.
        mode: Sequence to class, synchronous or asynchronous sequence to sequence, …; "" where none.
        target: The figure it must reach.
    """

    name: str
    task: str
    data: str
    cell: str
    kind: Kind
    mode: str
    target: Target


class Recipe(Protocol[Data]):
    """From data to a served model. The methods are called once each, in this order, with seeds set."""

    @property
    def card(self) -> Card:
        """What the list says of it."""

    def data(self, run: Run) -> Data:
        """Everything that the other methods need."""

    def module(self, data: Data) -> nn.Module:
        """The module, not trained; its forward takes (inputs..., states...)."""

    def train(self, module: Any, data: Data, run: Run) -> Curve:
        """Trains the module in place; an empty Curve where there is nothing to train."""

    def metrics(self, module: Any, data: Data) -> Mapping[str, Value]:
        """The figures, the target's among them, from data that was held out."""

    def picture(self, module: Any, data: Data) -> Figure:
        """What the module learnt, as one picture."""

    def export(self, module: Any, data: Data, folder: Path) -> Sequence[Export]:
        """Writes model.onnx, or encoder.onnx and decoder.onnx, into the folder, through the gate.

        What it writes into a folder `part` inside becomes a model of its own, `<name>-part`.
        """
