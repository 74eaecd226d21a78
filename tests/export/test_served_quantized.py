"""Quantised files behind a server: served like any other, the same bits alone and among others, and as ONNX Runtime."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import quantize_dynamic
from torch import nn

from statestream import aio, errors
from statestream import signature as signatures
from statestream.v1.model_pb2 import BatchInvariance
from statestream_export import State, export
from statestream_server.describe import describe
from statestream_server.models.proof import loading
from tests.export.modules import Layered, session, states_of
from tests.export.test_quantization import Convolving, lstm
from tests.support.serving import serving

SESSIONS, STEPS, HIDDEN = 9, 12, 32


async def test_a_quantised_lstm_steps_as_onnx_runtime_does_alone(tmp_path: Path) -> None:
    made = lstm(tmp_path / "models" / "small" / "1", quantize="int8")
    x = np.random.default_rng(0).normal(size=(SESSIONS, STEPS, 3)).astype(np.float32)
    async with serving(tmp_path / "models") as local, aio.connect(local.address) as client:
        [model] = await client.models()
        assert model.batch_invariance == "exact"
        assert model.signature.quantization.dtype == "int8"
        assert dict(model.signature.quantization.layers) == {"LSTM": 2}
        async with client.sessions("small", SESSIONS) as pool:
            single = [np.asarray(await pool.step(x[:, at])) for at in range(STEPS)]
        async with client.sessions("small", SESSIONS) as pool:
            whole = np.asarray(await pool.step(x))
        async with client.session("small") as stream:
            alone = np.asarray(await stream.step(x[3]))
    judge = session(made.path)
    wanted = []
    for row in x:
        h, c = (np.zeros((2, 1, HIDDEN), np.float32) for _ in "hc")
        said = []
        for value in row:
            y, h, c = judge.run(None, {"x": value[None, None], "h": h, "c": c})
            said.append(y[0, 0])
        wanted.append(said)
    np.testing.assert_array_equal(np.stack(single, axis=1), np.asarray(wanted))
    np.testing.assert_array_equal(whole, np.asarray(wanted))
    np.testing.assert_array_equal(alone, np.asarray(wanted)[3])


@pytest.mark.slow
async def test_a_quantised_network_of_convolutions_predicts_as_onnx_runtime_does_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 255, (24, 12, 12)).float()
    path = tmp_path / "models" / "seer" / "1" / "model.onnx"
    made = export(Convolving(), images, path=path, quantize="int8", max_loss=1)
    async with serving(tmp_path / "models") as local, aio.connect(local.address) as client:
        [model] = await client.models()
        assert dict(model.signature.quantization.layers) == {"Conv": 2, "Gemm": 1}
        together = np.asarray(await client.predict("seer", images.numpy()))
    judge = session(made.path)
    alone = [judge.run(None, {"image": image[None].numpy()})[0][0] for image in images]
    # The last layer is float, and ONNX Runtime multiplies one row otherwise than many: rounding, no more.
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-5, atol=1e-6)


class Convolved(nn.Module):
    """A running mean of what convolutions see: their whole numbers know no NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Convolving()

    def forward(self, image: torch.Tensor, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = 0.9 * mean + self.seen(image)
        return mean, mean


@pytest.mark.parametrize("name", ["small", "seer"])
async def test_nan_is_refused_although_whole_numbers_know_none(tmp_path: Path, name: str) -> None:
    path = tmp_path / "models" / name / "1" / "model.onnx"
    torch.manual_seed(0)
    if name == "small":
        shape: tuple[int, ...] = (3,)
        lstm(path.parent, quantize="int8")
    else:
        shape = (12, 12)
        images, states = torch.rand(20, *shape) * 255, {"mean": State(torch.zeros(1, 5))}
        export(Convolved(), images, states=states, path=path, quantize="int8", max_loss=1)
    good, bad = np.full(shape, 0.5, np.float32), np.full(shape, np.nan, np.float32)
    async with (
        serving(tmp_path / "models") as local,
        aio.connect(local.address) as client,
        client.session(name) as first,
        client.session(name) as second,
    ):
        await asyncio.gather(first.step(good), second.step(good))
        outcomes = await asyncio.gather(first.step(bad), second.step(good), return_exceptions=True)
        assert isinstance(outcomes[0], errors.NonFiniteState)
        np.testing.assert_array_equal(await first.step(good), outcomes[1])


def test_the_server_says_what_was_quantised(tmp_path: Path) -> None:
    made = lstm(tmp_path, quantize="int8")
    lines = {line.split("  ")[0]: line for line in describe(made.path).splitlines()}
    assert "int8: LSTM ×2; outputs " in lines["quantised"]
    assert "exact: the same bits" in lines["batching"]


class Wide(nn.Module):
    """Inputs so wide that their products are quantised too, by the calibration."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(100, HIDDEN, batch_first=True)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, (h, c) = self.layer(x, (h, c))
        return y, h, c


def test_wide_inputs_of_an_lstm_are_quantised_and_rows_stay_exact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "1" / "model.onnx"
    states = states_of(nn.LSTM, layers=1, hidden=HIDDEN)
    made = export(Wide(), torch.randn(8, 20, 100), states=states, time_axis=1, path=path, quantize="int8")
    assert dict(made.signature.quantization.layers) == {"LSTM": 1}
    weights = onnx.load_model(path).graph.initializer
    shapes = [list(tensor.dims) for tensor in weights if tensor.data_type == onnx.TensorProto.INT8]
    assert [100, 4 * HIDDEN] in shapes
    assert loading.load("m", 1, path.parent).batch_invariance == BatchInvariance.BATCH_INVARIANCE_EXACT


def test_what_is_said_of_quantisation_does_not_change_the_digest(tmp_path: Path) -> None:
    made = lstm(tmp_path / "1", quantize="int8")
    before = loading.load("m", 1, made.path.parent).digest
    proto = onnx.load_model(made.path)
    made.signature.quantization.loss *= 2
    onnx.helper.set_model_props(proto, {signatures.METADATA_KEY: signatures.dumps(made.signature)})
    onnx.save_model(proto, made.path)
    assert loading.load("m", 1, made.path.parent).digest == before


def test_scales_that_are_measured_over_a_batch_are_not_batch_invariant(tmp_path: Path) -> None:
    """Why `export` does not leave this to ONNX Runtime's dynamic quantisation: rows would influence each other."""
    torch.manual_seed(0)
    made = export(
        Layered(nn.LSTM, hidden=HIDDEN),
        torch.randn(5, 9, 3),
        states=states_of(nn.LSTM, hidden=HIDDEN),
        time_axis=1,
        path=tmp_path / "float.onnx",
    )
    target = tmp_path / "1" / "model.onnx"
    target.parent.mkdir()
    quantize_dynamic(made.path, target, reduce_range=True)  # 7 bits: what processors without VNNI hold.
    assert "DynamicQuantizeLSTM" in {node.op_type for node in onnx.load_model(target).graph.node}
    found = loading.load("m", 1, target.parent)
    assert found.batch_invariance == BatchInvariance.BATCH_INVARIANCE_APPROXIMATE
    assert found.invariance_note.startswith("bits differ with the batch by up to 0.00")
