"""Forecasts of files that somebody else wrote over a window: L past values in, h values out, told by a model.toml."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import statestream
from statestream import errors
from tests.server.models import form_zoo_windows
from tests.support import serving

RNG = np.random.default_rng(4)
Y = RNG.standard_normal((3, 9)).astype(np.float32)
EXOG = RNG.random((3, 9 + 7, 2)).astype(np.float32)
TOLD = {
    "beats": """
window = { insample = 4 }
horizon = { forecast = 1 }
feedback = { forecast = "insample" }
""",
    "once": "window = { insample = 4 }\nhorizon = { forecast = 1 }\n",
    "hits": 'ahead = ["exog"]\nwindow = { y = { steps = 4, before = "hold" } }\nhorizon = { forecast = 1 }\n'
    'feedback = { forecast = "y" }\n',
    "untold": "",
}


def runtime(name: str) -> onnxruntime.InferenceSession:
    made = form_zoo_windows.n_hits() if name == "hits" else form_zoo_windows.n_beats()
    return onnxruntime.InferenceSession(made.model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    models = tmp_path_factory.mktemp("windows")
    for name, told in TOLD.items():
        (models / name).mkdir()
        onnx.save(
            (form_zoo_windows.n_hits() if name == "hits" else form_zoo_windows.n_beats()).model,
            models / name / "model.onnx",
        )
        (models / name / "model.toml").write_text(told)
    with serving.process(models, "--store", "memory") as server, statestream.connect(server.address) as client:
        yield client


def by_hand(y: np.ndarray, h: int) -> np.ndarray:
    """[N, h] of what the file gives of its last 4 values, and of those with what it gave before them."""
    run, window, found = runtime("beats"), y[:, -4:], list[np.ndarray]()
    while sum(each.shape[1] for each in found) < h:
        found.append(run.run(None, {"insample": window})[0])
        window = np.concatenate([window, found[-1]], 1)[:, -4:]
    return np.concatenate(found, 1)[:, :h]


@pytest.mark.parametrize("h", [1, 3, 8])
def test_many_series_are_forecast_in_one_call(client: Any, h: int) -> None:
    np.testing.assert_allclose(client.forecast("beats", Y, h=h), by_hand(Y, h), rtol=1e-4, atol=1e-5)


def test_histories_may_differ_in_length(client: Any) -> None:
    found = client.forecast("beats", [Y[0], Y[1, :4], Y[2, :6]], h=3)
    for series, past in zip(found, (Y[:1], Y[1:2, :4], Y[2:, :6]), strict=True):
        np.testing.assert_allclose(series, by_hand(past, 3)[0], rtol=1e-4, atol=1e-5)


def test_a_session_forecasts_from_where_it_stands(client: Any) -> None:
    with client.session("beats") as session:
        for value in Y[0, :3]:
            session.step(value)
        with pytest.raises(errors.Unsupported, match="took 3 steps: apply 4 at least first"):
            list(session.forecast(3))
        session.step(Y[0, 3])
        np.testing.assert_allclose(list(session.forecast(5)), by_hand(Y[:1, :4], 5)[0], rtol=1e-4, atol=1e-5)


def test_what_is_known_beforehand_goes_in_beside_the_window(client: Any) -> None:
    run = runtime("hits")
    first = run.run(None, {"y": Y[:, -4:], "exog": EXOG[:, 9]})[0]
    past = {"y": Y, "exog": EXOG[:, :9]}
    np.testing.assert_allclose(
        client.forecast("hits", past, h=4, future={"exog": EXOG[:, 9:13]}), first, rtol=1e-4, atol=1e-5
    )
    second = run.run(None, {"y": first, "exog": EXOG[:, 13]})[0]
    found = client.forecast("hits", past, h=7, future={"exog": EXOG[:, 9:]})
    np.testing.assert_allclose(found, np.concatenate([first, second], 1)[:, :7], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_is_told(client: Any) -> None:
    with pytest.raises(errors.BadTensor, match=r"series 1 has 3 steps; model 'beats' looks back 4"):
        client.forecast("beats", [Y[0], Y[1, :3]], h=2)
    gap = Y.copy()
    gap[2, 5] = np.nan
    with pytest.raises(errors.BadTensor, match="nan in series 2, row 5"):
        client.forecast("beats", gap, h=2)
    with pytest.raises(errors.BadFrame, match=r"gives 3 at most"):
        client.forecast("once", Y, h=4)
    np.testing.assert_allclose(client.forecast("once", Y, h=3), by_hand(Y, 3), rtol=1e-4, atol=1e-5)
    with pytest.raises(errors.Unsupported, match=r"\[window\]"):
        client.forecast("untold", Y, h=3)
    with pytest.raises(errors.Unsupported, match="no head"):
        client.forecast("once", Y, h=3, level=[80])


def test_bands_come_of_past_errors(client: Any) -> None:
    past = np.random.default_rng(1).standard_normal((2, 60)).astype(np.float32)
    found = client.forecast("beats", past, h=3, level=[80], bands="conformal")
    assert found.shape == (2, 3, 2)
    assert (found[..., 0] < found[..., 1]).all()
