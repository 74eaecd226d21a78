"""The gate tries a module with values that it was made for: those of its example, and of ranges that are given."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from statestream.v1.model_pb2 import BatchInvariance
from statestream_export import ExportError, State, domain, export
from statestream_export.domain import Places
from statestream_export.errors import ForwardError, GateError
from statestream_export.running import Graph
from statestream_server.models.model import Model
from statestream_server.models.proof import loading
from tests.export.modules import session

EXACT = BatchInvariance.BATCH_INVARIANCE_EXACT


class Calendar(nn.Module):
    """x = [value, weekday, holiday] in one float tensor, as tables give it."""

    def __init__(self) -> None:
        super().__init__()
        self.day, self.holiday = nn.Embedding(7, 3), nn.Embedding(2, 2)
        self.rnn = nn.GRU(6, 5, batch_first=True)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        day, holiday = self.day(x[..., 1].long()), self.holiday(x[..., 2].long())
        y, h = self.rnn(torch.cat([x[..., :1], day, holiday], -1), h)
        return y, h


def calendar(days: int = 30) -> Tensor:
    day = torch.arange(days) % 7
    return torch.stack([torch.randn(days), day.float(), (day > 4).float()], 1)[None]


def hidden() -> dict[str, State]:
    return {"h": State(torch.zeros(1, 1, 5), batch_axis=1)}


def loads(made: Any) -> Model:
    return loading.load("m", 1, made.path.parent, device="cpu")


@pytest.mark.parametrize("seed", range(3))
def test_categories_in_float_columns_stay_categories(tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    made = export(Calendar(), calendar(), states=hidden(), time_axis=1, path=tmp_path / "1" / "model.onnx")
    ranges = [(each.lowest, each.highest, each.whole) for each in made.signature.inputs[0].ranges]
    assert ranges[1:] == [(0, 6, True), (0, 1, True)]
    assert not ranges[0][2]
    assert loads(made).batch_invariance == EXACT


def test_an_example_of_one_step_is_tried_with_what_it_has(tmp_path: Path) -> None:
    """Its holiday is 1 and its weekday 6: a tenth more would be another category, noise none at all."""
    made = export(
        Calendar(), torch.tensor([[[0.3, 6.0, 1.0]]]), states=hidden(), time_axis=1, path=tmp_path / "1" / "model.onnx"
    )
    first, *others = made.signature.inputs[0].ranges
    assert [first.lowest, first.highest] == pytest.approx([0.27, 0.33])
    assert [(each.lowest, each.highest, each.whole) for each in others] == [(6, 6, True), (1, 1, True)]
    loads(made)


def test_an_example_of_zeros_is_tried_with_noise_where_the_module_takes_it(tmp_path: Path) -> None:
    made = export(nn.Linear(3, 2), {"x": torch.zeros(1, 3)}, path=tmp_path / "model.onnx")
    assert not made.signature.inputs[0].ranges
    made = export(Calendar(), torch.zeros(1, 4, 3), states=hidden(), time_axis=1, path=tmp_path / "1" / "model.onnx")
    (only,) = made.signature.inputs[0].ranges
    assert (only.lowest, only.highest, only.whole) == (0, 0, True)
    loads(made)


def test_codes_that_do_not_start_at_zero_are_served(tmp_path: Path) -> None:
    class Codes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.rnn = nn.Embedding(5, 3), nn.GRU(3, 5, batch_first=True)

        def forward(self, code: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            y, h = self.rnn(self.table(code - 10), h)
            return y, h

    path = tmp_path / "1" / "model.onnx"
    made = export(Codes(), torch.randint(10, 15, (2, 9)), states=hidden(), time_axis=1, path=path)
    assert loads(made).batch_invariance == EXACT


class Cyclic(nn.Module):
    """Its state is the place in a week, which it looks up; a root of what it saw is the other."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 2)

    def forward(self, x: Tensor, place: Tensor, spread: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.table(place[:, 0].long())
        spread = 0.9 * spread + 0.1 * x * x
        return found + x / (spread + 1e-3).sqrt(), (place + 1) % 7, spread


@pytest.mark.parametrize("ranges", [{}, {"place": (0, 6)}])
def test_states_that_are_indices_or_stand_under_a_root(tmp_path: Path, ranges: Any) -> None:
    states = {"place": State(torch.zeros(1, 1)), "spread": State(torch.ones(1, 1))}
    made = export(Cyclic(), torch.randn(4, 1), states=states, ranges=ranges, path=tmp_path / "1" / "model.onnx")
    place, spread = made.signature.states
    assert [(each.lowest, each.highest, each.whole) for each in place.ranges] == [(0, 6, True)]
    assert not spread.ranges
    loads(made)


class Gathers(nn.Module):
    """The output at the last step of each sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.rnn = nn.Embedding(50, 8), nn.LSTM(8, 6, batch_first=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        y, _ = self.rnn(self.table(tokens))
        return y[torch.arange(y.shape[0]), lengths - 1]


class Padded(Gathers):
    """Packs, and unpacks again."""

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.table(tokens), lengths, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]


@pytest.mark.parametrize("kind", [Gathers, Padded])
def test_lengths_stay_within_the_steps(tmp_path: Path, kind: type[Gathers]) -> None:
    torch.manual_seed(0)
    module, lengths = kind().eval(), torch.tensor([7, 5, 3, 2])
    example = {"tokens": torch.randint(1, 50, (4, 7)), "lengths": lengths}
    made = export(module, example, time_axis={"tokens": 1}, path=tmp_path / "1" / "model.onnx")
    assert made.signature.inputs[1].ranges[0].counts_steps
    model = loads(made)
    assert model.graph is not None
    tokens, lengths = torch.randint(1, 50, (3, 11)), torch.tensor([11, 1, 4])
    (found,) = model.graph.predict([tokens.numpy(), lengths.numpy()])
    np.testing.assert_allclose(found, module(tokens, lengths).detach().numpy(), atol=1e-6)


def test_what_a_module_refuses_of_its_own_example_is_told(tmp_path: Path) -> None:
    class Refuses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("\x1b[96mnever\x1b[0m\nany")

    with pytest.raises(ForwardError, match=r"forward failed on tensors of shapes \[2, 3\]: never any$"):
        export(Refuses(), torch.randn(2, 3), path=tmp_path / "model.onnx")


RANGES: dict[str, tuple[Any, str]] = {
    "of nothing": ({"z": (0, 1)}, "ranges names 'z'; inputs and states are input"),
    "no pair": ({"input": 3}, r"are 3; expected \(lowest, highest\)"),
    "words": ({"input": "ab"}, "are 'ab'; expected"),
    "too few": ({"input": [(0, 9), (0, 9)]}, "one such pair or None for each of 3 places"),
    "the wrong way round": ({"input": (9.0, -9.0)}, "expected the lowest value first"),
    "without the example": ({"input": [None, (0.0, 0.5), None]}, "'input', column 1 goes from 1 to 2, its range is"),
    "whole for fractions": ({"input": [(-9, 9), None, None]}, r"the example has fractions. Write \(-9.0, 9.0\)"),
}


@pytest.mark.parametrize("name", RANGES)
def test_ranges_that_cannot_be_are_refused(tmp_path: Path, name: str) -> None:
    ranges, message = RANGES[name]
    example = torch.tensor([[0.5, 1.0, 0.0], [1.5, 2.0, 1.0]])
    with pytest.raises(ExportError, match=message):
        export(nn.Linear(3, 2), example, ranges=ranges, path=tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_given_ranges_are_tried_to_their_ends(tmp_path: Path) -> None:
    """The table has one row less than the range says, which the example alone would not show."""

    class Short(Calendar):
        def __init__(self) -> None:
            super().__init__()
            self.day = nn.Embedding(6, 3)

    example = calendar(3)
    arguments: dict[str, Any] = {"states": hidden(), "time_axis": 1, "path": tmp_path / "1" / "model.onnx"}
    export(Short(), example, **arguments)
    with pytest.raises(ForwardError, match="index out of range"):
        export(Short(), example, ranges={"x": [(-5.0, 5.0), (0, 6), (0, 1)]}, **arguments)
    made = export(Calendar(), example, ranges={"x": [None, (0, 6), (0, 1)]}, **arguments)
    assert [each.highest for each in made.signature.inputs[0].ranges][1:] == [6, 1]


@given(
    st.lists(st.tuples(st.floats(-100, 100, width=32), st.integers(-9, 9)), min_size=1, max_size=6),
    st.booleans(),
    st.integers(0, 1000),
)
def test_what_is_drawn_lies_in_the_domain(entries: list[tuple[float, int]], wide: bool, seed: int) -> None:
    rows = torch.tensor([[value, float(code), math.inf] for value, code in entries])
    known, generator = domain.seen(rows), torch.Generator().manual_seed(seed)
    drawn = domain.draw(rows, known, Places.among(len(rows), 20, generator), wide=wide)
    assert drawn.shape == (20, 3)
    codes = {float(code) for _, code in entries}
    assert set(drawn[:, 1].tolist()) <= codes
    assert drawn[:, 2].isinf().all()
    column = domain.around(known.columns[0]) if wide else known.columns[0]
    slack = 1e-5 * max(abs(column.lowest), abs(column.highest))
    assert column.lowest - slack <= float(drawn[:, 0].min())
    assert float(drawn[:, 0].max()) <= column.highest + slack


PRECISIONS = [torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_every_precision_has_a_tolerance_of_its_own(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(3, 5)

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            h, c = self.cell(x, (h, c))
            return h * 1, h, c

    states = {name: State(torch.zeros(1, 5, dtype=dtype)) for name in "hc"}
    example = {"x": torch.randn(4, 3, dtype=dtype)}
    made = export(Cell().to(dtype), example, states=states, path=tmp_path / "1" / "model.onnx")
    assert made.gate.largest.difference > 0 or dtype == torch.float32
    loads(made)


def test_double_that_is_single_inside_the_graph_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference of single precision is an error of half a billion roundings in double."""
    module, x = nn.Linear(3, 2).double(), torch.randn(4, 3, dtype=torch.float64)
    run = Graph.__call__

    def rounded(graph: Any, values: Any, batch: int, length: int) -> Any:
        return [value.astype(np.float32).astype(np.float64) for value in run(graph, values, batch, length)]

    monkeypatch.setattr(Graph, "__call__", rounded)
    with pytest.raises(GateError, match=r"allowed are 1e-12 of that and of each value \(float64\)"):
        export(module, x, path=tmp_path / "model.onnx")


@pytest.mark.slow
def test_a_graph_that_ends_its_process_is_told(tmp_path: Path) -> None:
    """ONNX Runtime dies of a recurrent layer in half precision while it loads it."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y, (h, c) = self.rnn(x, (h, c))
            return self.head(y), h, c

    states = {name: State(torch.zeros(1, 1, 5, dtype=torch.float16), batch_axis=1) for name in "hc"}
    example = torch.randn(1, 6, 3, dtype=torch.float16)
    with pytest.raises(GateError, match=r"ended its process by SIG.*LSTM layer is float16.*module\.float\(\)"):
        export(Half().half(), example, states=states, time_axis=1, path=tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_table_is_served_with_the_right_values(tmp_path: Path) -> None:
    module = Calendar().eval()
    made = export(module, calendar(), states=hidden(), time_axis=1, path=tmp_path / "1" / "model.onnx")
    x = calendar(11)
    wanted = module(x, torch.zeros(1, 1, 5))[0].detach().numpy()
    (found,) = session(made.path).run(["y"], {"x": x.numpy(), "h": np.zeros((1, 1, 5), np.float32)})
    np.testing.assert_allclose(found, wanted, atol=1e-6)
