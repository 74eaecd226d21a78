"""Recipes that write a quantised file: the figures before and after, what is recorded, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from statestream_export import ExportError, GateError, RecipeError
from statestream_export.cli import train
from statestream_export.recipes import load
from statestream_export.recipes.digits_cnn import digits
from statestream_export.runs import Result, execute
from tests.export.modules import session


def run(name: str, folder: Path, *, max_loss: float = 1.0) -> Result:
    return execute(load(name), folder / "models", folder / "runs", quick=True, quantize="int8", max_loss=max_loss)


@pytest.mark.slow
def test_the_figures_are_those_of_the_quantised_file(tmp_path: Path) -> None:
    result = run("digits-cnn", tmp_path)
    data = digits()
    [scores] = session(result.model / "model.onnx").run(None, {"image": data.test_images.numpy()})
    right = float(np.mean(scores.argmax(-1) == data.test_labels.numpy()))
    assert result.metrics["test_accuracy"] == pytest.approx(right)
    assert result.before is not None
    assert result.before["test_accuracy"] == pytest.approx(right, abs=0.05)
    report = json.loads((result.folder / "metrics.json").read_text("utf-8"))
    assert report["metrics"]["test_accuracy"] == result.metrics["test_accuracy"]
    assert report["quantized"]["metrics_before"]["test_accuracy"] == result.before["test_accuracy"]
    loss = report["quantized"]["loss"]
    assert loss["layers"] == {"Conv": 2, "Gemm": 1}
    assert loss["bytes_after"] < 0.4 * loss["bytes_before"]
    assert loss["outputs"][0]["output"] == "scores"
    assert loss["share"] == pytest.approx(loss["outputs"][0]["mean"] / loss["outputs"][0]["spread"])


def test_a_forecaster_is_quantised_with_its_scaling_inside(tmp_path: Path) -> None:
    result = run("sunspots", tmp_path)
    [made] = result.exports
    assert dict(made.signature.quantization.layers) == {"LSTM": 2}
    assert list(made.signature.feedback), "it forecasts as before"
    assert result.before is not None
    assert result.metrics["rmse"] != result.before["rmse"]
    assert result.metrics["rmse"] == pytest.approx(result.before["rmse"], rel=0.05)
    zeros = np.zeros((2, 1, 64), np.float32)
    [y, _, _] = session(made.path).run(None, {"x": np.full((1, 30, 1), 60, np.float32), "h": zeros, "c": zeros})
    assert 20 < y[0, -1, 0] < 120, "in sunspots"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("gru", ExportError, "the graph has GRU×2.*Covered are LSTM"),
        ("lstm", RecipeError, "recipe 'lstm' cannot be taken from a quantised file: they do not run the module"),
        ("rnn-cells", RecipeError, "look inside the module .*'rnn1'"),
        ("antonyms", RecipeError, "recipe 'antonyms' writes 2 files; --quantize is for recipes that write model.onnx"),
    ],
)
def test_recipes_that_cannot_be_quantised_say_why(
    tmp_path: Path, name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(name, tmp_path)
    assert list(tmp_path.rglob("*.onnx")) == []


@pytest.mark.slow
def test_a_loss_beyond_the_limit_leaves_no_model(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"allowed are 0\.0%"):
        run("digits-cnn", tmp_path, max_loss=0.0)
    assert list(tmp_path.rglob("*.onnx")) == []


def test_the_command_tells_both_figures_and_both_sizes(tmp_path: Path) -> None:
    folders = ["--out", str(tmp_path / "models"), "--runs", str(tmp_path / "runs")]
    options = ["--quick", "--quantize", "int8", "--max-loss", "1"]
    answer = CliRunner().invoke(train, ["sunspots", *folders, *options], env={"COLUMNS": "200"})
    assert answer.exit_code == 0, answer.output
    assert " quantised, " in answer.output
    assert "LSTM ×2; y is " in answer.output
    assert " bytes" in answer.output
    metadata = onnx.load_model(tmp_path / "models" / "sunspots" / "1" / "model.onnx").metadata_props
    assert '"quantization"' in metadata[0].value


def test_the_command_knows_one_way_to_quantise(tmp_path: Path) -> None:
    answer = CliRunner().invoke(train, ["sunspots", "--out", str(tmp_path), "--quantize", "int4"])
    assert answer.exit_code == 2
    assert "'int4' is not 'int8'" in answer.output
