"""What a model.toml tells of gaps, times and what an output expects: served as a signature says it; wrong entries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from statestream import aio
from statestream_server import describe
from statestream_server.models.form.entries import dumps, loads
from statestream_server.models.form.told import ToldError
from statestream_server.models.model import ModelLoadError
from statestream_server.models.proof import loading
from tests.support.serving import serving

STATES = 'states = { h = "h_next" }\n'
TOLD = """
[feedback]
y = "x"
[missing]
x = "predict"
[elapsed]
dt = { unit = "min", first = 2.0 }
"""


def _written(folder: Path, told: str) -> Path:
    """A mean that is fed back: y = (x + h) / 2 + 0 * dt, and h_next = y; and what it was told of the time."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in ("x", "dt", "h")]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in ("y", "told", "h_next")]
    half = helper.make_tensor("half", TensorProto.FLOAT, [], [0.5])
    nodes = [
        helper.make_node("Add", ["x", "h"], ["sum"]),
        helper.make_node("Mul", ["sum", "half"], ["y"]),
        helper.make_node("Identity", ["y"], ["h_next"]),
        helper.make_node("Abs", ["dt"], ["told"]),
    ]
    graph = helper.make_graph(nodes, "mean", inputs, outputs, [half])
    path = folder / "mean" / "model.onnx"
    path.parent.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    path.with_suffix(".toml").write_text(STATES + told)
    return path


async def test_a_file_of_ones_own_is_told_what_arrives(tmp_path: Path) -> None:
    _written(tmp_path, TOLD)
    async with serving(tmp_path) as local, aio.connect(local.address) as client:
        session = await client.session("mean")
        first = await session.step({"x": [8.0], "dt": 100})
        assert (first["y"].tolist(), first["told"].tolist()) == ([4], [2])
        found, scores = await session.step({"x": np.array([[np.nan], [1]], np.float32), "dt": [130, 160]}, score=True)
        assert found["y"][:, 0].tolist() == [4, 2.5], "4 stood in"
        assert found["told"][:, 0].tolist() == [0.5, 0.5]
        assert scores.z.shape == (2, 1)
        assert (await client.forecast("mean", {"x": [[8.0]], "dt": [0]}, h=1)).tolist() == [[4]]


def test_inspect_says_so(tmp_path: Path) -> None:
    text = describe.describe(_written(tmp_path, TOLD), device="cpu")
    assert "x: where it is NaN what the model predicted stands in" in text
    assert "dt: that of each step in ns; the model is told the time since the step before, in units of 60 s" in text
    assert "scores" in text
    assert "z:y" in text


def test_what_is_told_is_written_as_it_was_read() -> None:
    told = loads(TOLD)
    assert loads(dumps(told)) == told
    assert loads("[elapsed]\ndt = 0.5").elapsed["dt"].seconds == 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[missing]\nx = 'mean'", "missing.x is 'mean'; expected refuse, hold, predict"),
        ("[elapsed]\ndt = 'fortnight'", "elapsed.dt is 'fortnight'; expected one of ns, us, ms, s, min, h, D, W"),
        ("[elapsed]\ndt = -1", "elapsed.dt is -1"),
        ("[elapsed]\ndt = { unit = 'h', first = -1 }", "expected one of ns"),
        ("[feedback]\ny = 3", "feedback.y is 3; expected the name of the input"),
    ],
)
def test_a_wrong_entry_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ToldError, match=said):
        loads(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[missing]\nz = 'hold'", "missing names 'z', which is no input"),
        ("[feedback]\nq = 'x'", "feedback names 'q', which is no output"),
        ("[missing]\nx = 'predict'", "nothing is fed back to it"),
    ],
)
def test_what_does_not_fit_the_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = _written(tmp_path, text)
    with pytest.raises(ModelLoadError, match=said):
        loading.load_file(path, name="m", version=1, device="cpu")
