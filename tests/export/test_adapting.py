"""States as tuples, lists or dicts in forward, and of whole numbers and truth values: the graph does as torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from statestream_export import ExportError, State, export
from tests.export.modules import session

H = State(torch.zeros(1, 1, 5), batch_axis=1)


class Tupled(nn.Module):
    """As torch's own LSTM takes and returns them."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor, hc: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, hc = self.rnn(x, hc)
        return self.head(y), hc


class Listed(nn.Module):
    """A list of a cell's states, one a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.GRUCell(3, 5), nn.GRUCell(5, 5)])

    def forward(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        new = list[Tensor]()
        for cell, h in zip(self.cells, states, strict=True):
            x = cell(x, h)
            new.append(x)
        return x * 2, new


class Named(nn.Module):
    """A dict, a tuple in it, and a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTMCell(3, 5)

    def forward(self, x: Tensor, memory: dict[str, Any], total: Tensor) -> tuple[Tensor, dict[str, Any], Tensor]:
        h, c = self.rnn(x, memory["cell"])
        kept = 0.5 * memory["mean"] + 0.5 * h
        return kept + total[:, None], {"mean": kept, "cell": (h, c)}, total + x.sum(1)


def row(*shape: int) -> State:
    return State(torch.zeros(1, *shape))


NESTS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any, int | None, list[str], str]] = {
    "a tuple": (Tupled, (1, 6, 3), {"hc": (H, H)}, 1, ["hc_0", "hc_1"], "torchscript"),
    "a list": (Listed, (1, 3), {"states": [row(5), row(5)]}, None, ["states_0", "states_1"], "torch.export"),
    "a dict": (
        Named, (1, 3), {"memory": {"mean": row(5), "cell": (row(5), row(5))}, "total": row()}, None,
        ["memory_mean", "memory_cell_0", "memory_cell_1", "total"], "torch.export",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NESTS)
def test_states_come_in_the_form_in_which_forward_takes_them(tmp_path: Path, name: str) -> None:
    make, shape, states, time_axis, names, exporter = NESTS[name]
    torch.manual_seed(0)
    module = make().eval()
    made = export(module, {"x": torch.randn(shape)}, states=states, time_axis=time_axis, path=tmp_path / "m")
    assert [state.input for state in made.signature.states] == names
    assert made.exporter == exporter
    runtime, x = session(made.path), torch.randn(2, *shape[1:])
    old = [np.random.default_rng(0).standard_normal((1, 2, 5) if time_axis else (2, 5)).astype(np.float32)
           for _ in names]  # fmt: skip
    if name == "a dict":
        old[3] = old[3][:, 0]
        given = (x, {"mean": torch.tensor(old[0]), "cell": (torch.tensor(old[1]), torch.tensor(old[2]))},
                 torch.tensor(old[3]))  # fmt: skip
    else:
        given = (x, type(next(iter(states.values())))(map(torch.tensor, old)))  # type: ignore[assignment]
    with torch.no_grad():
        wanted, *_ = module(*given)
    (found,) = runtime.run(["y"], {"x": x.numpy(), **dict(zip(names, old, strict=True))})
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)


def test_another_form_comes_out_than_went_in(tmp_path: Path) -> None:
    class Odd(Tupled):
        def forward(self, x: Tensor, hc: Any) -> Any:
            y, hc = self.rnn(x, hc)
            return y, hc[0]

    with pytest.raises(ExportError, match=r"new value of state 'hc' is a Tensor; forward takes a tuple of 2, and"):
        export(Odd(), torch.randn(1, 6, 3), states={"hc": (H, H)}, time_axis=1, path=tmp_path / "m")


def test_flat_states_of_a_forward_that_takes_a_tuple_are_told_the_form(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"takes x, hc: 2 values; there are 3.*states=\{'hc': \(State\(…\), State"):
        export(Tupled(), torch.randn(1, 6, 3), states={"h": H, "c": H}, time_axis=1, path=tmp_path / "m")
    with pytest.raises(ExportError, match=r"'hc' may be memory, then add states=\{'hc': State\("):
        export(Tupled(), torch.randn(1, 6, 3), time_axis=1, path=tmp_path / "m")
    wrong: Any = {"hc": (H, H.value)}
    with pytest.raises(ExportError, match="state 'hc_1' is a Tensor; expected State"):
        export(Tupled(), torch.randn(1, 6, 3), states=wrong, time_axis=1, path=tmp_path / "m")


def test_memory_inside_is_named_as_the_module_calls_it(tmp_path: Path) -> None:
    class Keeps(Tupled):
        last: Tensor | None = None

        def forward(self, x: Tensor, hc: Any) -> Any:
            y, hc = super().forward(x, hc)
            y = y if self.last is None else y + self.last
            self.last = y[:1]
            return y, hc

    with pytest.raises(ExportError, match=r"Keeps keeps memory between calls in 'last'.*forward\(x, last\)"):
        export(Keeps(), torch.randn(1, 6, 3), states={"hc": (H, H)}, time_axis=1, path=tmp_path / "m")


class Counts(nn.Module):
    """How many steps there were, whether any was ever above 1, and the last code; float, int64, int32 and bool."""

    def forward(
        self, x: Tensor, code: Tensor, count: Tensor, seen: Tensor, last: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count = count + 1
        seen = seen | (x > 1).any(1)
        y = torch.where(seen, x.sum(1) * count, last.float())
        return y, count, seen, code


def test_states_of_whole_numbers_and_truth_values(tmp_path: Path) -> None:
    states = {
        "count": State(torch.full((1,), 7)),
        "seen": State(torch.zeros(1, dtype=torch.bool)),
        "last": State(torch.zeros(1, dtype=torch.int32)),
    }
    example = {"x": torch.randn(6, 3), "code": torch.randint(0, 4, (6,), dtype=torch.int32)}
    made = export(Counts(), example, states=states, path=tmp_path / "m")
    specs = {state.input: (state.dtype, list(state.start)) for state in made.signature.states}
    assert specs == {"count": ("int64", [7.0]), "seen": ("bool", []), "last": ("int32", [])}
    x, code = torch.randn(2, 3), torch.tensor([3, 1], dtype=torch.int32)
    old = [torch.tensor([9, 2]), torch.tensor([True, False]), torch.tensor([0, 2], dtype=torch.int32)]
    feeds = {"x": x, "code": code, **dict(zip(states, old, strict=True))}
    found = session(made.path).run(None, {name: value.numpy() for name, value in feeds.items()})
    for one, other in zip(found, Counts()(x, code, *old), strict=True):
        assert np.array_equal(one, other.numpy())
