"""States in any form, of whole numbers and truth values, and scalers, behind a server: what torch says by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn

import statestream
from statestream_export import State, export
from tests.export.test_adapting import NESTS, Counts
from tests.support import serving

NAMES = ["wind", "sun", "rain"]
RAW = pd.DataFrame(np.random.default_rng(2).normal([10.0, 500.0, -3.0], [2.0, 90.0, 1.0], (40, 3)), columns=NAMES)
SCALER = StandardScaler().fit(RAW)
_SLUGS = {name: name.replace(" ", "-") for name in NESTS}


class Walk(nn.Module):
    """The next row from this one; trained, if it were, on scaled rows."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 3)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.cell(x, h)
        return x + h, h


def made(name: str) -> nn.Module:
    torch.manual_seed(3)
    return (NESTS[name][0]() if name in NESTS else Walk()).eval()


COUNTS = {
    "count": State(torch.full((1,), 7)),
    "seen": State(torch.zeros(1, dtype=torch.bool)),
    "last": State(torch.zeros(1, dtype=torch.int32)),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("models")
    for name, (_, shape, states, time_axis, _, _) in NESTS.items():
        export(
            made(name), {"x": torch.randn(shape)}, states=states, time_axis=time_axis, path=folder / _SLUGS[name] / "1"
        )
    example = {"x": torch.randn(6, 3), "code": torch.randint(0, 4, (6,), dtype=torch.int32)}
    export(Counts(), example, states=COUNTS, path=folder / "counts")
    export(
        made("walk"),
        {"x": torch.tensor(RAW.to_numpy(), dtype=torch.float32)},
        states={"h": State(torch.zeros(1, 3))},
        scaler={"x": SCALER, "y": SCALER},
        feedback={"y": "x"},
        path=folder / "walk",
    )
    with serving.process(folder, "--store", "memory") as server, statestream.connect(server.address) as client:
        yield client


@pytest.mark.parametrize("name", NESTS)
def test_states_in_any_form(client: Any, name: str) -> None:
    time_axis = NESTS[name][3]
    module, rows = made(name), torch.randn(6, 3)
    nested: dict[str, Any] = {
        "a tuple": lambda: (torch.zeros(1, 1, 5), torch.zeros(1, 1, 5)),
        "a list": lambda: [torch.zeros(1, 5), torch.zeros(1, 5)],
        "a dict": lambda: {"mean": torch.zeros(1, 5), "cell": (torch.zeros(1, 5), torch.zeros(1, 5))},
    }
    state = [nested[name](), *([torch.zeros(1)] if name == "a dict" else [])]
    with client.session(_SLUGS[name]) as session:
        for row in rows:
            with torch.no_grad():
                y, *state = module(row[None, None] if time_axis else row[None], *state)
            np.testing.assert_allclose(np.ravel(session.step(row.numpy())), y.numpy().ravel(), atol=1e-5)


def test_whole_numbers_and_truth_values_are_kept_exactly(client: Any) -> None:
    state, rng = [each.value for each in COUNTS.values()], np.random.default_rng(0)
    with client.session("counts") as session:
        for step in range(20):
            x, code = rng.standard_normal((1, 3)).astype(np.float32) * 0.9, np.array([step % 4], np.int32)
            y, *state = Counts()(torch.tensor(x), torch.tensor(code), *state)
            with session.fork() as branch:
                for each in (branch, session):
                    found = np.asarray(each.step({"x": x[0], "code": code[0]}))
                    assert found == pytest.approx(float(y), rel=1e-6)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_callers_send_and_get_raw_rows_and_a_forecast_is_raw(client: Any) -> None:
    module, rows = made("walk"), RAW.to_numpy()[:5]
    state = torch.zeros(1, 3)
    wanted = list[np.ndarray]()
    for step in range(8):
        value = rows[step] if step < len(rows) else wanted[-1]
        with torch.no_grad():
            y, state = module(torch.tensor(SCALER.transform(value[None]), dtype=torch.float32), state)
        wanted.append(SCALER.inverse_transform(y.double().numpy())[0])
    with client.session("walk") as session:
        found = [np.asarray(session.step(row)) for row in RAW[["rain", "wind", "sun"]].iloc[:5].to_dict("records")]
    np.testing.assert_allclose(np.array(found), wanted[:5], rtol=1e-4)
    ahead = client.forecast("walk", RAW.iloc[:5], h=4)
    np.testing.assert_allclose(np.asarray(ahead[NAMES]), wanted[4:], rtol=1e-4)
