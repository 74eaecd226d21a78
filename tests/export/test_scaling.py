"""Scalers of scikit-learn in the graph: callers send and get raw values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, PowerTransformer, RobustScaler, StandardScaler
from torch import Tensor, nn

from statestream_export import ExportError, State, export
from tests.export.modules import session

RAW = np.random.default_rng(0).normal([1013.0, 20.0, 4e5], [8.0, 5.0, 30.0], (200, 3))
SCALERS: dict[str, Any] = {
    "standard": StandardScaler(),
    "standard, not centred": StandardScaler(with_mean=False),
    "standard, not scaled": StandardScaler(with_std=False),
    "least to most": MinMaxScaler((-1, 1)),
    "least to most, cut": MinMaxScaler((0, 2), clip=True),
    "by the largest": MaxAbsScaler(),
    "by quartiles": RobustScaler(),
    "one after another": make_pipeline(RobustScaler(), "passthrough", MinMaxScaler((-1, 1))),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.rnn(x, h)
        return self.head(y), h


STATES = {"h": State(torch.zeros(1, 1, 5), batch_axis=1)}
EXAMPLE = torch.tensor(RAW[None, :50], dtype=torch.float32)


@pytest.mark.parametrize("name", SCALERS)
def test_the_graph_scales_as_scikit_learn_does(tmp_path: Path, name: str) -> None:
    scaler, module = SCALERS[name].fit(RAW), Net().eval()
    made = export(module, {"x": EXAMPLE}, states=STATES, time_axis=1, scaler=scaler, path=tmp_path / "m")
    raw = (RAW[50:60] * [1, 1.5, 1]).astype(np.float32)
    with torch.no_grad():
        scaled = torch.tensor(scaler.transform(raw.astype(np.float64)), dtype=torch.float32)
        wanted = module(scaled[None], torch.zeros(1, 1, 5))[0].numpy()
    (found,) = session(made.path).run(["y"], {"x": raw[None], "h": np.zeros((1, 1, 5), np.float32)})
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_outputs_are_unscaled_and_columns_are_those_of_the_table(tmp_path: Path) -> None:
    names = ["pressure", "temperature", "light"]
    scaler, module = MinMaxScaler().fit(pd.DataFrame(RAW, columns=names)), Net().eval()
    both = {"x": scaler, "y": scaler}
    made = export(
        module, {"x": EXAMPLE}, states=STATES, time_axis=1, scaler=both, feedback={"y": "x"}, path=tmp_path / "m"
    )
    assert [list(spec.columns) for spec in (*made.signature.inputs, *made.signature.outputs)] == [names, names]
    raw = RAW[50:60].astype(np.float32)
    with torch.no_grad():
        scaled = torch.tensor((raw - scaler.data_min_) * scaler.scale_, dtype=torch.float32)
        answer = module(scaled[None], torch.zeros(1, 1, 5))[0].double().numpy()[0]
    (found,) = session(made.path).run(["y"], {"x": raw[None], "h": np.zeros((1, 1, 5), np.float32)})
    np.testing.assert_allclose(found[0], answer / scaler.scale_ + scaler.data_min_, rtol=1e-6, atol=1e-5)


class Odd(StandardScaler):
    """Does something else than its class."""

    def transform(self, rows: Any) -> Any:
        return super().transform(rows) ** 2


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "another kind": (PowerTransformer().fit(RAW), {}, "is a PowerTransformer; a graph takes Standard.*in forward"),
    "not fitted": (StandardScaler(), {}, r"is not fitted; call StandardScaler\.fit"),
    "other columns": (StandardScaler().fit(RAW[:, :2]), {}, "was fitted on 2 columns; the last axis .* has 3"),
    "a class that lies": (Odd().fit(RAW), {}, "a Odd, does something else than its class"),
    "of nothing": ({"z": StandardScaler().fit(RAW)}, {}, "scaler names 'z'; inputs are x, outputs y"),
    "one end of a feedback": (
        StandardScaler().fit(RAW), {"feedback": {"y": "x"}},
        r"only one of them is scaled.*scaler=\{'x': scaler, 'y': scaler\}",
    ),
    "names in another order": (
        StandardScaler().fit(pd.DataFrame(RAW, columns=["a", "b", "c"])), {"columns": {"x": ["b", "a", "c"]}},
        "columns of 'x' are b, a, c; its scaler was fitted with a, b, c",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_in_a_graph_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    scaler, more, message = REFUSED[name]
    with pytest.raises(ExportError, match=message):
        export(Net(), {"x": EXAMPLE}, states=STATES, time_axis=1, scaler=scaler, path=tmp_path / "m", **more)
    assert list(tmp_path.iterdir()) == []


def test_one_scaler_of_several_inputs_is_asked_about(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    example, scaler = {"a": EXAMPLE[0], "b": EXAMPLE[0]}, StandardScaler().fit(RAW)
    with pytest.raises(ExportError, match=r"inputs are a, b; say of which: scaler=\{'a': scaler\}"):
        export(Two(), example, scaler=scaler, path=tmp_path / "m")
    export(Two(), example, scaler={"b": scaler}, path=tmp_path / "m")
