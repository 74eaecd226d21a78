"""What `export` says of gaps, times and scores, and what it refuses to say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from statestream.contract.signature import Missing
from statestream_export import ExportError, State, export


class Sum(nn.Module):
    def forward(self, x: Tensor, dt: Tensor, n: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return x + s, s + dt + 0 * n


def made(path: Path, **more: Any) -> Any:
    example = {"x": torch.randn(4, 1), "dt": torch.rand(4, 1), "n": torch.zeros(4, 1, dtype=torch.int64)}
    return export(Sum(), example, states={"s": State(torch.zeros(1, 1))}, outputs=["y"], path=path / "m.onnx", **more)


def test_the_signature_says_what_was_told(tmp_path: Path) -> None:
    told = made(tmp_path, missing={"x": "predict"}, feedback={"y": "x"}, elapsed={"dt": ("h", 24.0)}, score_past=63)
    x, dt, _ = told.signature.inputs
    assert x.missing == Missing.MISSING_PREDICT
    assert (dt.elapsed.seconds, dt.elapsed.first) == (3600, 24)
    assert (dt.dtype, told.signature.score_past) == ("float32", 63)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"missing": {"z": "hold"}}, "missing names 'z', which is no input; inputs are x, dt, n"),
        ({"missing": {"x": "mean"}}, "missing\\['x'\\] is 'mean'; expected 'refuse', 'hold', 'predict'"),
        ({"missing": {"x": "predict"}}, "MISSING_PREDICT, and nothing is fed back to it"),
        ({"missing": {"n": "hold"}}, "it holds int64; expected an input of floats"),
        ({"elapsed": {"t": "s"}}, "elapsed names 't', which is no input"),
        ({"elapsed": {"dt": "year"}}, "elapsed\\['dt'\\] is in 'year'; expected 'ns'"),
        ({"elapsed": {"dt": 0.0}}, "is in 0.0"),
        ({"elapsed": {"dt": ("s", -1.0)}}, "expected a unit above 0, and 0 or more for the first step"),
        ({"elapsed": {"n": "s"}}, "a step of it is int64"),
        ({"elapsed": {"x": "s"}, "feedback": {"y": "x"}}, "time is known beforehand"),
        ({"score_past": -1}, "score_past is -1; expected a number of scores"),
        ({"score_past": 1 << 20}, "score_past is 1048576; expected 65535 at most"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        made(tmp_path, **more)
