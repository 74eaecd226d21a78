"""Graphs that do something else than their module are refused, with the case, and leave no file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from statestream_export import ExportError, GateError, State, export, gate
from tests.export.modules import Layered, states_of


class Forgetful(nn.Module):
    """Its cell state is a state in name only: what it returns is what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, _) = self.lstm(x, (h, c))
        return y, h, c


class Branching(nn.Module):
    """Decides in Python, which a trace freezes."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.gru(x, h)
        return (y if float(x.sum()) > 0 else -y), h


class Unrolled(nn.Module):
    """Loops over the steps in Python, which a trace unrolls for the example's length."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GRU(3, 4, batch_first=True)
        self.cell = nn.GRUCell(4, 4)

    def forward(self, x: Tensor, h: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, h = self.first(x, h)
        steps = []
        for at in range(z.shape[1]):
            g = self.cell(z[:, at], g)
            steps.append(g)
        return torch.stack(steps, dim=1), h, g


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


def test_a_state_that_is_not_carried_differs_in_the_stream(tmp_path: Path) -> None:
    state = State(torch.zeros(1, 1, 4), batch_axis=1)
    with pytest.raises(GateError, match=r"batch 1, 2 steps streamed, output 'y'.* differ by \d") as caught:
        export(
            Forgetful(),
            torch.randn(1, 4, 3),
            states={"h": state, "c": state},
            time_axis=1,
            path=tmp_path / "model.onnx",
        )
    assert (caught.value.output, caught.value.batch, caught.value.length) == ("y", 1, 2)
    assert 1e-3 < caught.value.difference < 10
    assert list(tmp_path.iterdir()) == []


def test_a_frozen_branch_is_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(GateError, match="differ by") as caught:
        export(
            Branching(),
            torch.randn(4, 4, 3),
            states={"h": State(torch.zeros(1, 1, 4), batch_axis=1)},
            time_axis=1,
            path=tmp_path / "model.onnx",
        )
    assert caught.value.difference > 1e-3
    assert list(tmp_path.iterdir()) == []


def test_a_frozen_length_is_found(tmp_path: Path) -> None:
    states = {"h": State(torch.zeros(1, 1, 4), batch_axis=1), "g": State(torch.zeros(1, 4))}
    with pytest.raises(GateError, match="at batch 1, 1 steps|does not run at batch 1, 1 steps") as caught:
        export(Unrolled(), torch.randn(1, 4, 3), states=states, time_axis=1, path=tmp_path / "model.onnx")
    assert (caught.value.batch, caught.value.length) == (1, 1)
    assert list(tmp_path.iterdir()) == []


def test_random_numbers_are_found(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="random"):
        export(Noisy(), torch.randn(2, 3), path=tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_looking_ahead_is_found(tmp_path: Path) -> None:
    class Ahead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(3, 3, batch_first=True)

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            y, h = self.rnn(x, h)
            return y - y.mean(dim=1, keepdim=True), h

    with pytest.raises(GateError, match="look at later ones"):
        export(
            Ahead(),
            torch.randn(1, 4, 3),
            states={"h": State(torch.zeros(1, 1, 3), batch_axis=1)},
            time_axis=1,
            path=tmp_path / "model.onnx",
        )


def test_the_wrong_exporter_for_rnn_is_found_by_its_operators(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"0 RNN operators.*call for 2|torch cannot export"):
        export(
            Layered(nn.RNN),
            torch.randn(1, 4, 3),
            states=states_of(nn.RNN),
            time_axis=1,
            path=tmp_path / "model.onnx",
            exporter="torch.export",
        )
    assert list(tmp_path.iterdir()) == []


def test_a_refused_export_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the old one")
    with pytest.raises(GateError):
        export(Noisy(), torch.randn(2, 3), path=path)
    assert path.read_bytes() == b"the old one"
    export(nn.Linear(3, 2), {"x": torch.randn(2, 3)}, path=path)
    assert path.stat().st_size > len(b"the old one")
    assert list(tmp_path.iterdir()) == [path]


def test_differences_are_judged_by_the_scale_of_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y, (h, c) = self.lstm(x, (h, c))
            return y * 1e6, h, c

    state = State(torch.zeros(1, 1, 4), batch_axis=1)
    made = export(
        Large(), torch.randn(2, 4, 3), states={"h": state, "c": state}, time_axis=1, path=tmp_path / "model.onnx"
    )
    assert max(case.scale for case in made.gate.cases) > 1e5
    monkeypatch.setattr(gate, "TOLERANCES", dict.fromkeys(gate.TOLERANCES, 0.0))
    with pytest.raises(GateError, match="allowed are 0 of that"):
        export(Large(), torch.randn(2, 4, 3), states={"h": state, "c": state}, time_axis=1, path=tmp_path / "m.onnx")
