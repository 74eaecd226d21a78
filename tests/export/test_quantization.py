"""Quantised files: what they calculate, what they lose, what the gate says of it, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from statestream import signature as signatures
from statestream_export import Export, ExportError, GateError, State, export, int8_lstm, quantized
from tests.export.modules import Cell, Layered, session, states_of

Array = np.ndarray


class Convolving(nn.Module):
    """Two convolutions and two linear layers, one of them large: image [B, 12, 12] → scores [B, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(72, 64),
            nn.ReLU(),
            nn.Linear(64, 5),
        )

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.layers((image.unsqueeze(1) - 128) / 64)
        return found


class Mixed(nn.Module):
    """A GRU, which stays float, and a linear layer that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(3, 64, batch_first=True)
        self.head = nn.Linear(64, 64)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.layer(x, h)
        return self.head(y), h


class BothWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(6, 16, 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)[0]
        return y


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_model(path).graph.node)


def lstm(folder: Path, hidden: int = 32, **options: object) -> Export:
    torch.manual_seed(0)
    module, states = Layered(nn.LSTM, hidden=hidden), states_of(nn.LSTM, hidden=hidden)
    path = folder / "model.onnx"
    return export(module, torch.randn(5, 9, 3), states=states, time_axis=1, path=path, **options)  # type: ignore[arg-type]


def test_an_lstm_becomes_a_loop_over_whole_numbers_and_says_so(tmp_path: Path) -> None:
    made = lstm(tmp_path, hidden=64, quantize="int8")
    found = operators(made.path)
    assert found["Scan"] == 2
    assert not {"LSTM", "DynamicQuantizeLSTM", "DynamicQuantizeLinear"} & set(found)
    loss = made.gate.loss
    assert loss is not None
    assert (loss.layers, loss.kept) == ({"LSTM": 2}, {"MatMul": 1})
    assert loss.bytes_after < 0.5 * loss.bytes_before
    assert abs(loss.bytes_after - made.path.stat().st_size) < 1500, "but for the signature"
    stored = {entry.key: entry.value for entry in onnx.load_model(made.path).metadata_props}[signatures.METADATA_KEY]
    signature = signatures.loads(stored)
    assert signature == made.signature
    assert (signature.quantization.dtype, dict(signature.quantization.layers)) == ("int8", {"LSTM": 2})
    assert signature.quantization.loss == loss.worst.share > 0


def test_the_report_follows_the_error_over_many_steps(tmp_path: Path) -> None:
    made = lstm(tmp_path, quantize="int8")
    assert made.gate.loss is not None
    [y] = made.gate.loss.outputs
    assert (y.output, list(y.drift)) == ("y", [1, 4, 16, 64, 256])
    assert 0 < y.mean <= y.largest
    assert all(0 < value <= y.largest for value in y.drift.values())
    assert [each.output for each in made.gate.loss.states] == ["h_out", "c_out"]
    assert all(each.mean > 0 and not each.drift for each in made.gate.loss.states)
    assert made.gate.cases, "the float graph went through the gate first"


def test_the_report_is_what_the_files_say(tmp_path: Path) -> None:
    """Without memory the gate's runs are the examples: the figures can be taken again from the two files."""
    torch.manual_seed(1)
    module, images = Convolving(), torch.randint(0, 255, (70, 12, 12)).float()
    before = export(module, images, path=tmp_path / "float.onnx")
    after = quantized(before, path=tmp_path / "int8.onnx", max_loss=1)
    one, other = (np.asarray(session(each.path).run(None, {"image": images.numpy()})[0]) for each in (before, after))
    gap = np.abs(one.astype(np.float64) - other)
    assert after.gate.loss is not None
    [y] = after.gate.loss.outputs
    assert y.largest == pytest.approx(gap.max(), rel=1e-5)
    assert y.mean == pytest.approx(gap.mean(), rel=1e-5)
    assert y.spread == pytest.approx(np.abs(one - one.mean()).mean(), rel=1e-5)
    assert y.drift == {}
    assert before.gate.loss is None
    assert operators(before.path)["DequantizeLinear"] == 0


def test_a_network_of_convolutions_is_quantised_but_for_its_last_layer(tmp_path: Path) -> None:
    images = torch.randint(0, 255, (20, 12, 12)).float()
    made = export(Convolving(), images, path=tmp_path / "model.onnx", quantize="int8", max_loss=1)
    assert made.gate.loss is not None
    assert (made.gate.loss.layers, made.gate.loss.kept) == ({"Conv": 2, "Gemm": 1}, {"Gemm": 1})
    weights = {tensor.name: tensor for tensor in onnx.load_model(made.path).graph.initializer}
    small = [
        tensor for tensor in weights.values() if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    ]
    assert sorted(list(tensor.dims) for tensor in small) == [[8, 1, 3, 3], [8, 8, 3, 3], [64, 72]]
    assert max(int(np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max()) for tensor in small) <= 64
    assert "DynamicQuantizeLinear" not in operators(made.path)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 5), st.booleans())
def test_the_loop_is_an_lstm_with_rounded_h_and_weights(seed: int, hidden: int, batch: int, reverse: bool) -> None:
    rng = np.random.default_rng(seed)
    features, steps = 3, 4

    def normal(*shape: int) -> Array:
        return rng.normal(size=shape).astype(np.float32)

    w, r, b = normal(1, 4 * hidden, features), normal(1, 4 * hidden, hidden), normal(1, 8 * hidden)
    x, h, c = normal(steps, batch, features), np.tanh(normal(1, batch, hidden)), normal(1, batch, hidden)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node(
                "LSTM",
                ["x", "w", "r", "b", "", "h", "c"],
                ["y", "hn", "cn"],
                hidden_size=hidden,
                direction="reverse" if reverse else "forward",
            )
        ],
        "g",
        [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("x", "h", "c")],
        [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("y", "hn", "cn")],
        [onnx.numpy_helper.from_array(value, name) for value, name in ((w, "w"), (r, "r"), (b, "b"))],
    )
    assert int8_lstm.rewrite(graph) == 1
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    y, last_h, last_c = ort(model, {"x": x, "h": h, "c": c})

    scale = np.abs(r[0].T).max(axis=0) / 64
    rounded = np.rint(r[0].T / scale) * scale
    now, cell = h[0].astype(np.float64), c[0].astype(np.float64)
    for at in range(steps)[:: -1 if reverse else 1]:
        # Beside the edge between two whole numbers, float32 and float64 may round apart: one step of h, some weights.
        whole = np.clip(np.rint(now * 127), -128, 127) / 127
        gates = x[at] @ w[0].T + b[0, : 4 * hidden] + b[0, 4 * hidden :] + whole @ rounded
        i, o, f, g = np.split(gates, 4, axis=1)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        now = sigmoid(o) * np.tanh(cell)
        np.testing.assert_allclose(y[at, 0], now, atol=0.03)
    np.testing.assert_allclose(last_h[0], now, atol=0.03)
    np.testing.assert_allclose(last_c[0], cell, atol=0.1)
    assert float(np.median(np.abs(last_h[0] - now))) < 1e-4


def ort(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    made = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in made.run(None, feeds)]


def test_both_directions_of_an_lstm_are_quantised(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = export(BothWays(), torch.randn(4, 9, 6), time_axis=1, path=tmp_path / "model.onnx", quantize="int8")
    assert made.gate.loss is not None
    assert made.gate.loss.layers == {"LSTM": 2}
    assert operators(made.path)["Scan"] == 4


def test_what_is_not_covered_stays_float_beside_what_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    states = {"h": State(torch.zeros(1, 1, 64), batch_axis=1)}
    made = export(
        Mixed(), torch.randn(3, 8, 3), states=states, time_axis=1, path=tmp_path / "model.onnx", quantize="int8"
    )
    assert made.gate.loss is not None
    assert (made.gate.loss.layers, made.gate.loss.kept) == ({"MatMul": 1}, {"GRU": 1})
    assert operators(made.path)["GRU"] == 1


def test_a_cell_that_is_stepped_is_followed_step_by_step(tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Wide(Cell):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(3, 40)

    states = {name: State(torch.zeros(1, 40)) for name in "hc"}
    made = export(Wide(), torch.randn(4, 3), states=states, path=tmp_path / "model.onnx", quantize="int8")
    assert made.gate.loss is not None
    assert (made.gate.loss.layers, made.gate.loss.kept) == ({"Gemm": 1}, {"Gemm": 1})
    assert list(made.gate.loss.outputs[0].drift) == [1, 4, 16, 64, 256]


@pytest.mark.slow
def test_scales_come_from_the_calibration_where_it_is_given(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, narrow = Convolving(), torch.randint(120, 136, (20, 12, 12)).float()
    wide = torch.randint(0, 255, (100, 12, 12)).float()
    errors = []
    for number, calibration in enumerate((None, wide, {"image": wide})):
        path = tmp_path / f"{number}.onnx"
        made = export(module, narrow, path=path, quantize="int8", calibration=calibration, max_loss=10)
        [said] = session(made.path).run(None, {"image": wide.numpy()})
        errors.append(float(np.abs(said - module(wide).detach().numpy()).mean()))
    assert errors[1] == errors[2] < 0.2 * errors[0], "what lies outside the calibration is clipped"


def test_a_loss_beyond_the_limit_writes_nothing_and_says_how_much(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"output 'y' is .* off on average .*allowed are 0\.0%.*max_loss") as caught:
        lstm(tmp_path, quantize="int8", max_loss=0.0)
    assert (caught.value.output, caught.value.length) == ("y", 256)
    assert 0 < caught.value.difference < 0.1
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_loses_too_much_leaves_the_float_file_as_it_was(tmp_path: Path) -> None:
    made = lstm(tmp_path)
    before = made.path.read_bytes()
    with pytest.raises(GateError):
        quantized(made, max_loss=0.0)
    assert made.path.read_bytes() == before
    small = quantized(made)
    assert len(made.path.read_bytes()) < len(before)
    with pytest.raises(ExportError, match="quantised already"):
        quantized(small)


@pytest.mark.parametrize(("kind", "found"), [(nn.GRU, "GRU×2, MatMul×1"), (nn.RNN, "MatMul×1, RNN×2")])
def test_a_file_with_nothing_to_quantise_is_refused(tmp_path: Path, kind: type[nn.RNNBase], found: str) -> None:
    with pytest.raises(
        ExportError, match=f"nothing to quantise: the graph has {found}.*Covered are LSTM, Conv.*nn.LSTM"
    ):
        export(
            Layered(kind),
            torch.randn(2, 5, 3),
            states=states_of(kind),
            time_axis=1,
            path=tmp_path / "model.onnx",
            quantize="int8",
        )
    assert list(tmp_path.iterdir()) == []


REFUSED: dict[str, tuple[Callable[[], dict[str, object]], str]] = {
    "another type": (lambda: {"quantize": "int4"}, "quantize is 'int4'; expected 'int8' or None"),
    "a calibration for nothing": (lambda: {"calibration": torch.randn(2, 3, 3)}, "add quantize='int8'"),
    "a limit below nothing": (lambda: {"quantize": "int8", "max_loss": -1.0}, "max_loss is -1.0"),
    "a limit that is no number": (lambda: {"quantize": "int8", "max_loss": float("nan")}, "max_loss is nan"),
    "another width": (
        lambda: {"quantize": "int8", "calibration": torch.randn(2, 3, 4)},
        r"calibration of input 'x' is torch.float32\[2, 3, 4\]; expected torch.float32\[-1, -1, 3\]",
    ),
    "another dtype": (
        lambda: {"quantize": "int8", "calibration": torch.randn(2, 3, 3).double()},
        "is torch.float64.*expected torch.float32",
    ),
    "no values": (lambda: {"quantize": "int8", "calibration": torch.randn(0, 3, 3)}, r"is torch.float32\[0, 3, 3\]"),
    "another number": (
        lambda: {"quantize": "int8", "calibration": [torch.randn(2, 3, 3)] * 2},
        "calibration has 2 tensors; there are 1 inputs",
    ),
    "another name": (
        lambda: {"quantize": "int8", "calibration": {"z": torch.randn(2, 3, 3)}},
        "calibration has z; expected the inputs x",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_asked_for_wrongly_is_refused(tmp_path: Path, what: str) -> None:
    options, message = REFUSED[what]
    with pytest.raises(ExportError, match=message):
        lstm(tmp_path, hidden=6, **options())
    assert list(tmp_path.iterdir()) == []


def test_a_decoder_is_refused(tmp_path: Path) -> None:
    state = State(torch.zeros(2, 1, 6), batch_axis=1, from_encoder="memory")
    with pytest.raises(ExportError, match="not for decoders"):
        export(
            Layered(nn.LSTM),
            torch.randn(2, 5, 3),
            states={"h": state, "c": state},
            time_axis=1,
            path=tmp_path / "decoder.onnx",
            quantize="int8",
        )
    assert list(tmp_path.iterdir()) == []
