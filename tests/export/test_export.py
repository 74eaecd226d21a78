from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from statestream import signature as signatures
from statestream.signature import Decoding, StateCheck, Text
from statestream_export import State, export
from tests.export.modules import Cell, Layered, session, states_of


@pytest.mark.parametrize(("kind", "operator"), [(nn.RNN, "RNN"), (nn.LSTM, "LSTM"), (nn.GRU, "GRU")])
def test_recurrent_layers_become_native_operators(tmp_path: Path, kind: type[nn.RNNBase], operator: str) -> None:
    path = tmp_path / "model.onnx"
    made = export(Layered(kind), torch.randn(1, 4, 3), states=states_of(kind), time_axis=1, path=path)
    assert made.path == path
    assert made.gate.operators[operator] == 2
    assert {case.way for case in made.gate.cases} == {"whole", "streamed"}
    assert {(case.batch, case.length) for case in made.gate.cases} == {(b, t) for b in (1, 3) for t in (1, 2, 7)}
    assert made.gate.largest.difference < 1e-5
    assert list(tmp_path.iterdir()) == [path]
    onnx.checker.check_model(onnx.load(path), full_check=True)


def test_signature_in_the_file_is_the_one_returned(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    module = Layered(nn.LSTM)
    start = torch.full((2, 1, 6), 0.5)
    made = export(
        module,
        {"x": torch.randn(2, 4, 3)},
        states={"h": State(start, batch_axis=1), "c": State(torch.zeros(2, 1, 6), batch_axis=1, check="nan")},
        outputs=["forecast"],
        time_axis=1,
        path=path,
        columns={"x": ["wind", "sun", "rain"]},
        classes={"forecast": ["up", "down"]},
        description="Tells the weather.",
    )
    written = signatures.loads(session(path).get_modelmeta().custom_metadata_map[signatures.METADATA_KEY])
    assert written == made.signature
    [x], [y] = written.inputs, written.outputs
    assert (x.name, x.dtype, list(x.shape), x.batch_axis, x.time_axis) == ("x", "float32", [-1, -1, 3], 0, 1)
    assert list(x.columns) == ["wind", "sun", "rain"]
    assert (y.name, list(y.shape), y.batch_axis, y.time_axis) == ("forecast", [-1, -1, 2], 0, 1)
    assert list(y.classes) == ["up", "down"]
    h, c = written.states
    assert (h.input, h.output, list(h.shape), h.batch_axis, list(h.start)) == ("h", "h_out", [2, -1, 6], 1, [0.5])
    assert (h.check, c.check) == (StateCheck.STATE_CHECK_FINITE, StateCheck.STATE_CHECK_NAN)
    assert list(c.start) == []
    assert written.description == "Tells the weather."


def test_start_values_of_their_own_keep_their_order(tmp_path: Path) -> None:
    start = torch.arange(12.0).reshape(2, 1, 6)
    made = export(
        Layered(nn.GRU),
        torch.randn(1, 4, 3),
        states={"h": State(start.expand(2, 3, 6), batch_axis=1)},
        time_axis=1,
        path=tmp_path / "model.onnx",
    )
    assert np.array_equal(signatures.start_row(made.signature.states[0]), start[:, 0].numpy())


def test_time_first_layers_keep_their_layout(tmp_path: Path) -> None:
    module = Layered(nn.LSTM, batch_first=False)
    made = export(
        module, torch.randn(4, 1, 3), states=states_of(nn.LSTM), batch_axis=1, time_axis=0, path=tmp_path / "m.onnx"
    )
    assert (made.signature.inputs[0].batch_axis, made.signature.inputs[0].time_axis) == (1, 0)
    assert (made.signature.outputs[0].batch_axis, made.signature.outputs[0].time_axis) == (1, 0)


def test_cells_without_a_time_axis_are_one_step_a_run(tmp_path: Path) -> None:
    state = State(torch.zeros(1, 6))
    made = export(Cell(), torch.randn(1, 3), states={"h": state, "c": state}, path=tmp_path / "model.onnx")
    assert not made.signature.inputs[0].HasField("time_axis")
    assert list(made.signature.inputs[0].shape) == [-1, 3]
    assert {(case.way, case.length) for case in made.gate.cases} == {("streamed", t) for t in (1, 2, 7)}


def test_modules_without_a_batch_axis_have_one_session_a_run(tmp_path: Path) -> None:
    state = State(torch.zeros(6), batch_axis=None)
    made = export(
        Cell(), torch.randn(3), states={"h": state, "c": state}, batch_axis=None, path=tmp_path / "model.onnx"
    )
    assert not made.signature.inputs[0].HasField("batch_axis")
    assert not made.signature.states[0].HasField("batch_axis")
    assert {(case.batch, case.length) for case in made.gate.cases} == {(None, 1), (None, 2), (None, 7)}


def test_modules_without_memory_are_compared_by_batch(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10))
    made = export(module, torch.randn(1, 1, 8, 8), outputs=["scores"], path=tmp_path / "model.onnx")
    assert made.exporter == "torch.export"
    assert made.gate.operators["Conv"] == made.gate.operators["MaxPool"] == 1
    assert [(case.batch, case.output) for case in made.gate.cases] == [(1, "scores"), (3, "scores")]
    assert list(made.signature.outputs[0].shape) == [-1, 10]


def test_an_encoder_gives_its_state_without_a_time_axis(tmp_path: Path) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.letters = nn.Embedding(4, 5)
            self.rnn = nn.RNN(5, 7, batch_first=True)

        def forward(self, text: Tensor) -> Tensor:
            return self.rnn(self.letters(text))[1]

    letters = Text(vocabulary=list("ab?c"), unknown="?")
    made = export(
        Encoder(),
        torch.tensor([[0, 1, 2, 3]]),
        outputs=["h"],
        time_axis=1,
        text={"text": letters},
        path=tmp_path / "encoder.onnx",
    )
    [text], [h] = made.signature.inputs, made.signature.outputs
    assert (text.name, text.dtype, list(text.shape), text.text) == ("text", "int64", [-1, -1], letters)
    assert (list(h.shape), h.batch_axis, h.HasField("time_axis")) == ([1, -1, 7], 1, False)


def test_decoder_and_feedback_reach_the_signature(tmp_path: Path) -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 6, batch_first=True)
            self.head = nn.Linear(6, 4)

        def forward(self, token: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            hidden, h = self.rnn(nn.functional.one_hot(token, 4).float(), h)
            return self.head(hidden), h

    text = Text(vocabulary=list("SEab"))
    decoding = Decoding(input="token", output="logits", start_token=0, end_token=1, text=text, max_tokens=5)
    made = export(
        Decoder(),
        {"token": torch.tensor([[0, 1, 2, 3]])},
        states={"h": State(torch.zeros(1, 1, 6), batch_axis=1, from_encoder="h")},
        outputs=["logits"],
        time_axis=1,
        decoding=decoding,
        path=tmp_path / "decoder.onnx",
    )
    assert made.signature.decoding == decoding
    assert made.signature.states[0].from_encoder == "h"

    class Walk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(2, 2)

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = self.cell(x, h)
            return h + x, h

    walk = export(
        Walk(), torch.randn(1, 2), states={"h": State(torch.zeros(1, 2))}, feedback={"y": "x"}, path=tmp_path / "w.onnx"
    )
    assert [(pair.output, pair.input) for pair in walk.signature.feedback] == [("y", "x")]


def test_modes_are_put_back_part_by_part(tmp_path: Path) -> None:
    module = Layered(nn.LSTM)
    module.train()
    module.head.eval()
    export(module, torch.randn(1, 4, 3), states=states_of(nn.LSTM), time_axis=1, path=tmp_path / "model.onnx")
    assert (module.training, module.layer.training, module.head.training) == (True, True, False)


def test_the_file_holds_no_paths_of_the_machine(tmp_path: Path) -> None:
    state = State(torch.zeros(1, 6))
    export(Cell(), torch.randn(1, 3), states={"h": state, "c": state}, path=tmp_path / "model.onnx")
    data = (tmp_path / "model.onnx").read_bytes()
    assert b"modules.py" not in data
    assert b"site-packages" not in data


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from([nn.RNN, nn.LSTM, nn.GRU]),
    layers=st.integers(1, 3),
    hidden=st.integers(1, 9),
    batch=st.integers(1, 4),
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=5),
)
def test_any_cutting_into_chunks_gives_what_torch_gives(
    tmp_path: Path, kind: type[nn.RNNBase], layers: int, hidden: int, batch: int, cuts: list[int]
) -> None:
    torch.manual_seed(layers * 10 + hidden)
    module, states = Layered(kind, layers, hidden), states_of(kind, layers, hidden)
    export(module, torch.randn(1, 4, 3), states=states, time_axis=1, path=tmp_path / "model.onnx")
    x = torch.randn(batch, sum(cuts), 3)
    start = [torch.randn(layers, batch, hidden) for _ in states]
    module.eval()
    with torch.no_grad():
        want, *_ = module(x, *start)
    run, rows, got = session(tmp_path / "model.onnx"), [value.numpy() for value in start], []
    for chunk in torch.split(x, cuts, dim=1):
        y, *rows = run.run(None, {"x": chunk.numpy(), **dict(zip(states, rows, strict=True))})
        got.append(y)
    np.testing.assert_allclose(np.concatenate(got, axis=1), want.numpy(), rtol=1e-5, atol=1e-5)
