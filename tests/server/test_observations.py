"""Gaps and times in what arrives: refused, held, predicted, told the model; in chunks, batches and forecasts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import polars as pl
import pytest

from statestream import BadTensor, aio, errors
from statestream.contract.tensors import to_tensor
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc as stubs
from statestream_server.models.memory.observed import ObservedRows
from tests.support.serving import Local, serving

NAN = np.nan
START = np.datetime64("2026-03-01T12:00", "ns")


@pytest.fixture
async def local(observers_dir: Path) -> AsyncIterator[Local]:
    async with serving(observers_dir) as local:
        yield local


@pytest.fixture
async def client(local: Local) -> AsyncIterator[aio.Client]:
    async with aio.connect(local.address) as client:
        yield client


def rows(*values: Any) -> np.ndarray:
    return np.array(values, np.float32)


# ── missing values ─────────────────────────────────────────────────────────────────────────────────


async def test_the_last_value_is_held(client: aio.Client) -> None:
    session = await client.session("hold")
    await session.step([1.0, 2.0])
    found = await session.step(rows([NAN, 3], [NAN, NAN], [4, NAN]))
    assert found["seen"].tolist() == [[1, 3], [1, 3], [4, 3]]
    assert (await session.step([NAN, NAN]))["seen"].tolist() == [4, 3]


async def test_nothing_can_be_held_before_a_first_value(client: aio.Client) -> None:
    session = await client.session("hold")
    with pytest.raises(BadTensor, match=r"step 0 of the chunk: column 'b' of x is missing \(NaN\), and no value"):
        await session.step(rows([2, NAN], [NAN, 1], [3, 1]))
    assert session.position == 0
    await session.step([1.0, 2.0])
    await session.reset()
    with pytest.raises(BadTensor, match="no value of this session came before it"):
        await session.step([NAN, 1.0])


async def test_a_prediction_stands_in(client: aio.Client) -> None:
    session = await client.session("predict")
    await session.step([8.0, 4.0])
    found = await session.step(rows([NAN, 1], [NAN, NAN], [16, NAN]))
    assert found["seen"].tolist() == [[4, 1], [2, 0.5], [16, 0.25]]
    assert (await session.step([NAN, NAN]))["seen"].tolist() == [8, 0.125]


async def test_nothing_is_predicted_of_a_first_step(client: aio.Client) -> None:
    session = await client.session("predict")
    with pytest.raises(BadTensor, match="first step has no prediction that could stand in"):
        await session.step([NAN, 1.0])


async def test_a_chunk_with_a_gap_that_nothing_fills_is_refused_whole(client: aio.Client) -> None:
    """Its steps before the gap ran already, one by one, on the session's own row."""
    session = await client.session("partly")
    await session.step([8.0, 4.0])
    with pytest.raises(BadTensor, match=r"step 2 of the chunk: column 'b' of x is missing \(NaN\), and nothing is fed"):
        await session.step(rows([NAN, 1], [6, 1], [2, NAN], [1, 1]))
    assert session.position == 1
    assert (await session.step([NAN, 7.0]))["seen"].tolist() == [4, 7]


async def test_a_gap_can_be_refused(client: aio.Client) -> None:
    session = await client.session("refuse")
    with pytest.raises(BadTensor, match=r"column 'a' of x is missing \(NaN\); the model refuses gaps"):
        await session.step([NAN, 1.0])
    assert (await session.step([2.0, 1.0]))["seen"].tolist() == [2, 1]


async def test_where_nothing_is_said_what_would_reach_the_memory_is_refused(client: aio.Client) -> None:
    with pytest.raises(errors.NonFiniteState):
        await (await client.session("plain")).step([NAN, 1.0])


@pytest.mark.parametrize("model", ["hold", "predict"])
async def test_a_row_is_filled_alike_alone_and_in_a_crowd(client: aio.Client, model: str) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((30, 16, 2)).astype(np.float32)
    x[:, 1:][rng.random((30, 15, 2)) < 0.2] = NAN
    async with await client.sessions(model, 30) as pool:
        crowd = await pool.step(x)
    assert not np.isnan(crowd["seen"]).any()
    for row in (0, 17):
        session = await client.session(model)
        alone = [await session.step(step) for step in x[row]]
        assert np.stack([each["seen"] for each in alone]).tobytes() == crowd["seen"][row].tobytes()


async def test_a_refused_row_fails_none_beside_it(client: aio.Client) -> None:
    x = np.ones((5, 3, 2), np.float32)
    x[2, 0, 0] = NAN
    for model in ("hold", "predict", "refuse"):
        async with await client.sessions(model, 5) as pool:
            answers = [each async for each in pool.stream([x, np.ones((5, 2), np.float32)], return_errors=True)]
            assert {*answers[0].errors} == {2}
            assert isinstance(answers[0].errors[2], BadTensor)
            assert pool.positions.tolist() == [4, 4, 0, 4, 4]


async def test_a_missing_value_has_no_score(client: aio.Client) -> None:
    x = np.random.default_rng(1).standard_normal((30, 2)).astype(np.float32)
    x[20, 0] = NAN
    _, scores = await (await client.session("hold")).step(x, score=True)
    assert np.isnan(scores.z[20, 0])
    assert np.isfinite(scores.z[20, 1])
    assert np.isfinite(scores.z[21]).all()


async def test_a_forecast_takes_a_history_with_gaps_that_are_filled(client: aio.Client) -> None:
    history = rows([8, 4], [NAN, 2])
    assert (await client.forecast("predict", history, h=2)).tolist() == [[2, 1], [1, 0.5]]
    assert (await client.forecast("hold", history, h=2)).tolist() == [[4, 1], [2, 0.5]]
    with pytest.raises(BadTensor, match="series 0, row 1"):
        await client.forecast("plain", history, h=2)


# ── times ──────────────────────────────────────────────────────────────────────────────────────────


async def test_the_model_is_told_the_time_between_steps(client: aio.Client) -> None:
    """In its unit, minutes; its first step what the signature says."""
    session = await client.session("clock")
    times = START + np.array([0, 60, 90, 90], "m8[s]")
    first = await session.step({"x": [1.0], "dt": times[0]})
    others = await session.step({"x": np.zeros((3, 1), np.float32), "dt": times[1:]})
    assert first.tolist() == [1, 5]
    assert others[:, 1].tolist() == [1, 0.5, 0]
    await session.reset()
    assert (await session.step({"x": [1.0], "dt": START}))[1] == 5


@pytest.mark.parametrize(
    "times",
    [
        [0, 30, 90],
        [0.0, 30.0, 90.0],
        np.array([0, 30, 90], np.int32),
        np.array([0, 30, 90], "m8[s]"),
        [datetime(2026, 3, 1, 12, 0, second, tzinfo=UTC) for second in (0, 30)]
        + [datetime(2026, 3, 1, 12, 1, 30, tzinfo=UTC)],
        pd.Series(START + np.array([0, 30, 90], "m8[s]")),
        pd.Series(START + np.array([0, 30, 90], "m8[s]")).dt.tz_localize("UTC"),
        pl.Series([datetime(2026, 3, 1, 12, 0, 0), datetime(2026, 3, 1, 12, 0, 30), datetime(2026, 3, 1, 12, 1, 30)]),
    ],
)
async def test_times_come_as_callers_have_them(client: aio.Client, times: Any) -> None:
    found = await (await client.session("clock")).step({"x": np.zeros((3, 1), np.float32), "dt": times})
    assert found[:, 1].tolist() == [5, 0.5, 1]


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (np.array(["2026-01-01", "NaT"], "M8[ns]"), "has no time"),
        (["now", "then"], "expected times"),
        ([0.0, np.nan], "expected seconds between"),
        ([0, 10**11], "expected seconds between"),
        ([True, False], "expected times"),
    ],
)
async def test_what_is_no_time_is_not_sent(client: aio.Client, times: Any, said: str) -> None:
    session = await client.session("clock")
    with pytest.raises(BadTensor, match=said):
        await session.step({"x": np.zeros((2, 1), np.float32), "dt": times})
    assert session.position == 0


async def test_a_time_before_the_last_one_is_refused(client: aio.Client) -> None:
    session = await client.session("clock")
    x = np.zeros((3, 1), np.float32)
    await session.step({"x": [0.0], "dt": 100})
    with pytest.raises(BadTensor, match=r"dt is 99 s, before 100 s, the time of the step before it"):
        await session.step({"x": [0.0], "dt": 99})
    with pytest.raises(BadTensor, match=r"step 2 of the chunk: dt is 119 s, before 120 s"):
        await session.step({"x": x, "dt": [110, 120, 119]})
    assert (await session.step({"x": [0.0], "dt": 160}))[1] == 1, "what was refused left no trace"


async def test_a_call_that_sends_no_time_is_refused(local: Local) -> None:
    stub: Any = stubs.InferenceServiceStub(local.channel)
    request = pb.StepRequest(model="clock", session_id="u", inputs=[to_tensor("x", np.zeros((1, 1), np.float32))])
    request.inputs.append(to_tensor("dt", np.array([np.iinfo(np.int64).min])))
    with pytest.raises(Exception, match=r"dt has no time \(NaT\)"):
        await stub.Step(request)


async def test_what_callers_send_is_what_the_server_says(client: aio.Client) -> None:
    (model,) = [model for model in await client.models() if model.name == "clock"]
    spec = model.signature.inputs[1]
    assert spec.dtype == "int64"
    assert list(spec.shape) == [-1, -1]
    assert spec.elapsed.seconds == 60


async def test_times_of_many_sessions_in_one_pool(client: aio.Client) -> None:
    times = START + np.arange(8).reshape(4, 2) * np.timedelta64(30, "s")
    async with await client.sessions("clock", 4) as pool:
        found = await pool.step({"x": np.zeros((4, 2, 1), np.float32), "dt": times})
        assert found[..., 1].tolist() == [[5, 0.5]] * 4


def test_rows_run_from_gap_to_gap() -> None:
    """In pieces of powers of two whose first step alone may have a gap, of whichever row."""
    x = np.zeros((2, 20, 1), np.float32)
    x[0, 5] = x[1, 6] = x[1, 0] = np.nan
    rows = SimpleNamespace(_predicted=[SimpleNamespace(place=0)])
    pieces = list(ObservedRows._pieces(cast(Any, rows), [x]))
    assert pieces == [(0, 4), (4, 5), (5, 6), (6, 14), (14, 18), (18, 20)]
