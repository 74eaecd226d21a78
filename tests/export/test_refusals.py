"""What cannot be exported is refused before anything is written, and the error says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from statestream.signature import Text
from statestream_export import ExportError, State, export
from tests.export.modules import Layered


class Bidirectional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True, proj_size=2)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.lstm(x, (h, c))
        return y, h, c


class Nested(nn.Module):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, tuple[Tensor]]:
        return x, (h,)


class LastOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.gru(x, h)
        return y[:, -1], h


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor, z: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.gru(x, h)
        return y, h


class Echo(nn.Module):
    """Its input has the name that outputs have by default."""

    def forward(self, y: Tensor) -> Tensor:
        return y * 2


ROW = State(torch.zeros(2, 1, 6), batch_axis=1)
SMALL = State(torch.zeros(1, 1, 4), batch_axis=1)
SERIES = torch.randn(1, 4, 3)
CASES: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "projection": (Projected(), SERIES, {"states": {"h": SMALL, "c": SMALL}, "time_axis": 1}, "proj_size=2"),
    "bidirectional with states": (Bidirectional(), SERIES, {"states": {"h": SMALL}, "time_axis": 1}, "bidirectional"),
    "a state too few": (Layered(nn.LSTM), SERIES, {"states": {"h": ROW}, "time_axis": 1, "outputs": ["y"]}, "forward"),
    "a state too many": (
        Layered(nn.GRU),
        SERIES,
        {"states": {"h": ROW, "c": ROW}, "time_axis": 1},
        "forward failed",
    ),
    "outputs miscounted": (
        Layered(nn.GRU),
        SERIES,
        {"states": {"h": ROW}, "time_axis": 1, "outputs": ["a", "b"]},
        "2 tensors, 1 of them new states, so 1 outputs; outputs names 2: a, b",
    ),
    "a state of an odd dtype": (
        Layered(nn.GRU),
        SERIES,
        {"states": {"h": State(torch.zeros(2, 1, 6).bfloat16(), batch_axis=1)}, "time_axis": 1},
        r"bfloat16; expected one of bool.*\.float\(\)",
    ),
    "a tensor as state": (Layered(nn.GRU), SERIES, {"states": {"h": torch.zeros(2, 1, 6)}, "time_axis": 1}, "State\\("),
    "a state of the wrong size": (
        Layered(nn.GRU),
        SERIES,
        {"states": {"h": State(torch.zeros(2, 1, 5), batch_axis=1)}, "time_axis": 1},
        r"tensors of shapes .*\[2, 2, 5\]",
    ),
    "a state's batch axis": (
        Layered(nn.GRU),
        SERIES,
        {"states": {"h": State(torch.zeros(2, 1, 6), batch_axis=3)}, "time_axis": 1},
        "batch_axis of state 'h' is 3",
    ),
    "a state without batch": (
        Layered(nn.GRU),
        SERIES,
        {"states": {"h": State(torch.zeros(2, 1, 6), batch_axis=None)}, "time_axis": 1},
        "either all have one or none",
    ),
    "start values that differ": (
        Layered(nn.GRU),
        SERIES,
        {"states": {"h": State(torch.randn(2, 3, 6), batch_axis=1)}, "time_axis": 1},
        "same for all",
    ),
    "no time axis": (Layered(nn.GRU), SERIES, {"states": {"h": ROW}}, "time_axis=1 for"),
    "an axis out of range": (Layered(nn.GRU), SERIES, {"states": {"h": ROW}, "time_axis": 5}, "is 5; the example has"),
    "one axis for two": (
        Layered(nn.GRU),
        SERIES,
        {"states": {"h": ROW}, "batch_axis": 1, "time_axis": 1},
        "are both 1",
    ),
    "the batch axis mistaken": (nn.Linear(3, 2), torch.randn(3, 3), {"batch_axis": 1}, "forward failed on tensors"),
    "nested answers": (Nested(), SERIES, {"states": {"h": ROW}, "time_axis": 1}, "gave a tuple as value 1"),
    "the last step only": (LastOnly(), SERIES, {"states": {"h": SMALL}, "time_axis": 1}, "return all steps"),
    "an idle input": (Idle(), [SERIES, SERIES], {"states": {"h": SMALL}, "time_axis": 1}, "no input 'z': forward does"),
    "an odd dtype": (nn.Linear(3, 2), torch.randn(1, 3).bfloat16(), {}, r"bfloat16; expected one of bool.*\.float\(\)"),
    "odd weights": (
        nn.Linear(3, 2).bfloat16(),
        torch.randn(1, 3),
        {},
        r"weight has dtype torch\.bfloat16.*\.float\(\)",
    ),
    "an output called like an input": (nn.Linear(3, 2), torch.randn(1, 3), {"outputs": ["input"]}, "name of an input"),
    "an output called like a state": (
        Layered(nn.GRU),
        SERIES,
        {"states": {"h": ROW}, "time_axis": 1, "outputs": ["h"]},
        r"output 'h' has the name of a state.*outputs=\[",
    ),
    "feedback of no output": (
        Echo(),
        torch.randn(2, 3),
        {"feedback": {"y": "y"}},
        r"'y' is no output: outputs are output\. Outputs are named with outputs=\[",
    ),
    "nothing": (nn.Linear(3, 2), [], {}, "example is empty"),
    "a class": (nn.Identity, torch.randn(2, 3), {}, r"module is the class Identity; .* call it: Identity\("),
    "weights alone": (
        nn.Linear(3, 2).state_dict(),
        torch.randn(2, 3),
        {},
        "module is a dict, as of weights; expected an",
    ),
    "a function": (torch.tanh, torch.randn(2, 3), {}, "module is a builtin_.*; expected an nn.Module: put what it"),
    "a text as axis": (
        nn.Linear(3, 2),
        torch.randn(2, 3),
        {"batch_axis": "0"},
        "of input 'input' is '0'; .*expected 0 to 1",
    ),
    "no values": (nn.Linear(3, 2), torch.randn(0, 3), {}, "holds no values"),
    "an array": (nn.Linear(3, 2), {"x": [1.0, 2.0, 3.0]}, {}, "is a list; expected a torch.Tensor"),
    "names miscounted": (nn.Linear(3, 2), torch.randn(1, 3), {"inputs": ["a", "b"]}, "1 tensors and there are 2"),
    "columns miscounted": (nn.Linear(3, 2), {"x": torch.randn(1, 3)}, {"columns": {"x": ["a"]}}, "1 names for a step"),
    "columns of nothing": (nn.Linear(3, 2), {"x": torch.randn(1, 3)}, {"columns": {"z": ["a"]}}, "columns names 'z'"),
    "text of nothing": (nn.Linear(3, 2), {"x": torch.randn(1, 3)}, {"text": {"z": Text()}}, "text names 'z'"),
    "feedback of other size": (
        nn.Linear(3, 2),
        {"x": torch.randn(1, 3)},
        {"feedback": {"y": "x"}},
        r"feedback 'y' → 'x': a step is float32\[2\] and float32\[3\].*leave feedback out and step a fork",
    ),
    "NaN": (nn.Sequential(nn.Linear(3, 2), nn.Threshold(9, float("nan"))), torch.randn(1, 3), {}, "itself gives NaN"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(tmp_path: Path, name: str) -> None:
    module, example, arguments, message = CASES[name]
    with pytest.raises(ExportError, match=message):
        export(module, example, path=tmp_path / "model.onnx", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["x/m.txt", "m/0", "m/new.onnx"])
def test_a_path_that_no_server_finds_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "m" / "new.onnx").mkdir(parents=True)
    with pytest.raises(
        ExportError, match=r"path is .*expected a file.*<version>/model\.onnx, or the folder of a model"
    ):
        export(nn.Linear(3, 2), torch.randn(2, 3), path=tmp_path / path)
    assert [each.name for each in tmp_path.rglob("*")] == ["m", "new.onnx"]


def test_a_path_that_is_none_or_cannot_be_written_is_told(tmp_path: Path) -> None:
    nothing: Any = None
    with pytest.raises(ExportError, match="path is None; expected a file"):
        export(nn.Linear(3, 2), torch.randn(2, 3), path=nothing)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"file/m\.onnx cannot be written: .*; give another path"):
        export(nn.Linear(3, 2), torch.randn(2, 3), path=tmp_path / "file" / "m.onnx")


@pytest.mark.parametrize(("folder", "is_there"), [("m", True), ("m/1", False), ("a model", True)])
def test_the_folder_of_a_model_or_a_version_gets_its_model(tmp_path: Path, folder: str, is_there: bool) -> None:
    if is_there:
        (tmp_path / folder).mkdir(parents=True)
    for _ in range(2):  # The second takes the place of the first.
        made = export(nn.Linear(3, 2), torch.randn(2, 3), path=tmp_path / folder)
        assert made.path == tmp_path / folder / "model.onnx"
        assert made.path.is_file()


def test_a_folder_of_several_is_refused_and_the_way_in_is_told(tmp_path: Path) -> None:
    example = torch.randn(2, 3)
    export(nn.Linear(3, 2), example, path=tmp_path / "m" / "2")
    with pytest.raises(ExportError, match=r"a folder of versions \(2\); name the one to write, like '.*m/3'"):
        export(nn.Linear(3, 2), example, path=tmp_path / "m")
    with pytest.raises(ExportError, match=r"a folder of models \(m\); name the one to write, like '.*/mine'"):
        export(nn.Linear(3, 2), example, path=tmp_path)


def test_names_that_meet_are_told_apart(tmp_path: Path) -> None:
    """An input called y, as series are; an output called like a state's new value."""
    made = export(Echo(), torch.randn(2, 3), path=tmp_path / "model.onnx")
    assert [spec.name for spec in made.signature.outputs] == ["output"]
    states = {"h": ROW}
    made = export(Layered(nn.GRU), SERIES, states=states, time_axis=1, outputs=["h_out"], path=tmp_path / "model.onnx")
    assert [state.output for state in made.signature.states] == ["h_out1"]


def test_bidirectional_without_states_is_served_whole(tmp_path: Path) -> None:
    made = export(Bidirectional(), SERIES, time_axis=1, path=tmp_path / "model.onnx")
    assert made.gate.operators["LSTM"] == 1
    assert not made.signature.states
    assert {case.way for case in made.gate.cases} == {"whole"}


@pytest.mark.slow
def test_double_precision_is_refused_in_onnx_runtimes_words(tmp_path: Path) -> None:
    module = Layered(nn.GRU).double()
    states = {"h": State(torch.zeros(2, 1, 6, dtype=torch.float64), batch_axis=1)}
    with pytest.raises(ExportError, match="does not support double"):
        export(module, SERIES.double(), states=states, time_axis=1, path=tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
