"""Backtests: each window is the forecast of a history that ends there; tables, bands, bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pandas as pd
import polars as pl
import pytest
from statsmodels.datasets import elnino
from utilsforecast.evaluation import evaluate
from utilsforecast.losses import coverage, mae, mase

import statestream
from statestream import aio, errors
from statestream.contract.tensors import to_tensor
from statestream.v1 import inference_pb2 as pb
from statestream.v1.inference_pb2_grpc import InferenceServiceStub
from tests.server.test_forecasts import CALENDAR, PAST, SALES, Served
from tests.support.serving import serving

H, STEP, WINDOWS = 4, 3, 5


@pytest.fixture
async def served(forecasters_written: tuple[Path, Any]) -> AsyncIterator[Served]:
    async with serving(forecasters_written[0]) as local, aio.connect(local.address) as client:
        yield Served(local, client, forecasters_written[1])


@pytest.mark.parametrize(
    "asked",
    [{}, {"quantiles": [0.1, 0.9], "num_samples": 20, "seed": 3}, {"samples": True, "num_samples": 6, "seed": 3}],
)
async def test_a_window_is_the_forecast_of_a_history_that_ends_there(served: Served, asked: dict[str, Any]) -> None:
    found = await served.client.backtest("deep", PAST, H, STEP, n_windows=WINDOWS, **asked)
    assert found.cutoffs.tolist() == [[4, 7, 10, 13, 16]] * 5
    for window, cutoff in enumerate([4, 7, 10, 13, 16]):
        there = {name: x[:, :cutoff] for name, x in PAST.items()}
        future = CALENDAR[:, cutoff : cutoff + H]
        expected = await served.client.forecast("deep", there, h=H, future=future, **asked)
        assert found.forecast[:, window].tobytes() == expected.tobytes()
        assert found.y[:, window].tobytes() == SALES[:, cutoff : cutoff + H].tobytes()
    one = {name: x[2] for name, x in PAST.items()}
    alone = await served.client.backtest("deep", one, H, STEP, n_windows=WINDOWS)
    assert (alone.y.shape, alone.forecast.shape) == ((WINDOWS, H, 1), (WINDOWS, H, 1))


async def test_a_history_is_stepped_once(served: Served) -> None:
    statistics = served.local.server.engine.statistics
    before = statistics.steps
    await served.client.backtest("decay", SALES, H, 1)
    # Of 20 steps the last cutoff has 16 behind it; each of 16 windows runs h - 1 steps on.
    assert statistics.steps - before == 5 * (16 + 16 * (H - 1))


async def test_a_window_model_is_tested_like_any_other(served: Served) -> None:
    x = np.random.default_rng(3).standard_normal((2, 30, 1)).astype(np.float32)
    found = await served.client.backtest("ahead", x, 6, quantiles=[0.9])
    assert found.cutoffs.tolist() == [[6, 12, 18, 24]] * 2
    for window, cutoff in enumerate([6, 12, 18, 24]):
        expected = await served.client.forecast("ahead", x[:, :cutoff], h=6, quantiles=[0.9])
        assert found.forecast[:, window].tobytes() == expected.tobytes()


async def test_a_backtest_that_is_cut_into_calls_is_the_same(
    forecasters_written: tuple[Path, Any], served: Served
) -> None:
    asked: dict[str, Any] = {"n_windows": WINDOWS, "samples": True, "num_samples": 9, "seed": 5}
    whole = await served.client.backtest("deep", PAST, H, STEP, **asked)
    # As rows of two series, of one, of some windows of one.
    for rows in (120, 60, 30):
        async with (
            serving(forecasters_written[0], limits={"max_driven_rows": rows}) as local,
            aio.connect(local.address) as client,
        ):
            found = await client.backtest("deep", PAST, H, STEP, **asked)
        assert found.forecast.tobytes() == whole.forecast.tobytes()


def table(library: Any) -> Any:
    """Three series, the last row first, with ids that are categories and times of a zone."""
    days = pd.date_range("2026-01-01", periods=20, freq="D", tz="Europe/Paris")
    columns = [
        {
            "unique_id": [f"shop {n}"] * 20,
            "ds": days,
            "y": SALES[n, :, 0],
            "weekend": CALENDAR[n, :20, 0],
            "promotion": CALENDAR[n, :20, 1],
        }
        for n in range(3)
    ]
    if library is pd.DataFrame:
        whole = pd.concat([pd.DataFrame(one) for one in columns]).iloc[::-1]
        return whole.astype({"unique_id": "category"})
    frames = [pl.DataFrame({**one, "ds": days.to_pydatetime().tolist()}) for one in columns]
    return pl.concat(frames).reverse().with_columns(pl.col("unique_id").cast(pl.Categorical))


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame])
async def test_a_table_has_nixtlas_columns(served: Served, library: Any) -> None:
    asked: dict[str, Any] = {"n_windows": 2, "level": [80], "seed": 1}
    out = await served.client.backtest("deep", table(library), H, STEP, **asked)
    assert type(out) is library
    assert list(out.columns) == ["unique_id", "ds", "cutoff", "y", "deep", "deep-lo-80", "deep-hi-80"]
    # The series are numbered as they first come.
    inputs = {name: x[2::-1] for name, x in PAST.items()}
    arrays = await served.client.backtest("deep", inputs, H, STEP, **asked)
    assert str(out["unique_id"].dtype).lower().startswith("categor")
    assert list(out["unique_id"])[:: 2 * H] == ["shop 2", "shop 1", "shop 0"]
    assert np.asarray(out["y"]).tobytes() == arrays.y.tobytes()
    assert np.asarray(out["deep-hi-80"]).tobytes() == np.ascontiguousarray(arrays.forecast[..., 1]).tobytes()
    apart = [(time - cutoff).days for time, cutoff in zip(out["ds"], out["cutoff"], strict=True)]
    assert apart == list(range(1, H + 1)) * 6
    assert str(out["cutoff"][0]) == "2026-01-13 00:00:00+01:00"


async def test_a_model_with_a_point_and_quantiles_has_one_column_set(served: Served) -> None:
    x = pd.DataFrame({"unique_id": "a", "ds": range(30), "y": np.arange(30.0)})
    out = await served.client.backtest("ahead", x, 4, level=[80])
    assert list(out.columns) == ["unique_id", "ds", "cutoff", "y", "ahead", "ahead-lo-80", "ahead-hi-80"]
    assert np.allclose(out["ahead-hi-80"] - out["ahead"], 2, atol=1e-4)
    after = await served.client.forecast("ahead", x, 4, level=[80])
    assert list(after.columns) == ["unique_id", "ds", "ahead", "ahead-lo-80", "ahead-hi-80"]


async def test_a_table_without_times_counts_steps_and_one_with_an_index_has_it(served: Served) -> None:
    plain = await served.client.backtest("decay", pd.DataFrame({"x": np.arange(9.0)}), 2)
    assert list(plain.columns) == ["ds", "cutoff", "y", "decay"]
    assert plain["ds"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert plain["cutoff"].tolist() == [0, 0, 2, 2, 4, 4, 6, 6]
    months = pd.date_range("2026-01-01", periods=9, freq="MS")
    named = await served.client.backtest("decay", pd.DataFrame({"x": np.arange(9.0)}, index=months), 2, n_windows=1)
    assert named["ds"].tolist() == list(months[-2:])
    assert named["cutoff"].tolist() == [months[-3]] * 2


async def test_conformal_bands_cover_a_real_series_on_windows_that_were_held_out(served: Served) -> None:
    """The temperature of the sea, less its mean of each month, forecast as 0.8 of the last: no errors were seen before
    they were known, and 400 forecasts of 6 months hold what is promised."""
    sea = elnino.load_pandas().data.iloc[:, 1:].to_numpy(np.float32)
    x = (sea - sea[:20].mean(0)).reshape(-1, 1)[:, None, :].transpose(1, 0, 2)
    found = await served.client.backtest("decay", x, 6, 1, n_windows=400, level=[80, 50], bands="conformal")
    held = (found.y[..., 0] >= found.forecast[..., 0, 0]) & (found.y[..., 0] <= found.forecast[..., 0, 1])
    assert 0.75 < held.mean() < 0.88, held.mean()
    half = (found.y[..., 0] >= found.forecast[..., 0, 2]) & (found.y[..., 0] <= found.forecast[..., 0, 3])
    assert 0.45 < half.mean() < 0.58, half.mean()
    for window in (0, 211):
        cutoff = int(found.cutoffs[0, window])
        expected = await served.client.forecast("decay", x[:, :cutoff], 6, level=[80, 50], bands="conformal")
        assert np.abs(found.forecast[:, window] - expected).max() < 1e-5


BAD: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "too short": (
        "decay",
        {"n_windows": 9, "step": 2},
        errors.BadTensor,
        "series 0 has 20 steps; 9 windows of 4 steps, 2 apart, take 21: 1 before the first and 20 in them",
    ),
    "too short for one": ("decay", {"h": 20}, errors.BadTensor, "series 0 has 20 steps; 1 windows of 20 steps"),
    "too short for bands": (
        "decay",
        {"level": [90], "bands": "conformal"},
        errors.BadTensor,
        "take 27: 23 before the first, past errors for its bands among them, and 4 in them",
    ),
    "no head": ("decay", {"level": [80]}, errors.Unsupported, 'bands="conformal"'),
    "step 0": ("decay", {"step": 0}, ValueError, "step is 0; expected"),
    "half a window": ("decay", {"n_windows": 1.5}, TypeError, "n_windows is 1.5"),
    "both": ("decay", {"level": [80], "quantiles": [0.1]}, ValueError, "both quantiles and level"),
    "no input that it forecasts": ("blind", {}, errors.Unsupported, "does not say which input it forecasts"),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_input_is_told_what_it_is(served: Served, case: str) -> None:
    model, change, kind, says = BAD[case]
    with pytest.raises(kind, match=says):
        await served.client.backtest(model, SALES, **{"h": H} | change)
    assert (served.local.table("decay").driven, served.local.table("decay").allocated) == (0, 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cutoffs": [5, 5]}, "cutoffs is 5 behind 5; expected them to ascend"),
        ({"cutoffs": [0]}, "series 0 has 20 steps, which are no 1 before its cutoff at 0 and 3 behind it"),
        ({"cutoffs": [18]}, "are no 1 before its cutoff at 18 and 3 behind"),
        ({"cutoffs": b"123"}, "cutoffs has 3 bytes; expected 4 for each, as many for each of 1 series"),
        ({"cutoffs": list(range(1, 17)) * 2049}, "32784 cutoffs came; expected 1 to 32768"),
        ({"cutoffs": [5], "future": True}, "future is sent beside cutoffs"),
        ({"cutoffs": [5], "session": True}, "cutoffs came for session_id; expected a history"),
    ],
)
async def test_cutoffs_that_cannot_be_are_refused(served: Served, change: dict[str, Any], says: str) -> None:
    given = change["cutoffs"]
    request = pb.ForecastRequest(
        model="decay", horizon=3, cutoffs=given if isinstance(given, bytes) else np.asarray(given, "<u4").tobytes()
    )
    if "session" in change:
        request.session_id = "a"
        async with served.client.session("decay", "a") as session:
            await session.step([[1.0]])
            await refused(served, request, says)
        return
    request.history.inputs.append(to_tensor("x", SALES[:1]))
    if "future" in change:
        request.future.append(to_tensor("x", SALES[:1]))
    await refused(served, request, says)


async def refused(served: Served, request: pb.ForecastRequest, says: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in InferenceServiceStub(served.local.channel).Forecast(request):
            pass
    assert says in (caught.value.details() or "")


async def test_a_cancel_frees_the_rows_of_the_walk_and_its_forks(served: Served) -> None:
    tables = served.local.table("deep")
    past = {"sales": np.zeros((20, 3000, 1), np.float32), "calendar": np.zeros((20, 3000, 2), np.float32)}
    for rows in (20, 200, 2000):
        call = served.client.backtest("deep", past, 1000, 20, num_samples=20)
        task = asyncio.create_task(call)
        await served.local.until(lambda rows=rows: tables.allocated >= rows)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await served.local.until(lambda: tables.allocated == 0)
        assert (tables.driven, tables.lane.queued) == (0, 0)


async def test_rows_are_copied_a_few_in_a_turn_of_the_loop(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, most = served.local.table("deep").rows, []
    monkeypatch.setattr("statestream_server.drivers.drive._TURN_BYTES", 1000)
    copy = rows.copy

    def counted(source: np.ndarray, target: np.ndarray) -> None:
        most.append(len(source))
        copy(source, target)

    monkeypatch.setattr(rows, "copy", counted)
    await served.client.backtest("deep", PAST, H, STEP, n_windows=WINDOWS, num_samples=50)
    assert sum(most) >= 5 * WINDOWS * 50
    assert max(most) <= 1000 // (4 * 17), "h, c and the last loc and scale of a row"


DAYS = pd.date_range("2026-01-01", periods=6, freq="D")
TABLES: dict[str, tuple[Any, str]] = {
    "texts as times": (pd.DataFrame({"ds": [str(day) for day in DAYS], "y": 1.0}), "'ds' has dtype String; expected"),
    "polars, too": (
        pl.DataFrame({"ds": [str(day) for day in DAYS], "y": [1.0] * 6}),
        "'ds' has dtype String; expected",
    ),
    "one row": (
        pd.DataFrame({"unique_id": "a", "ds": DAYS[:1], "y": 1.0}),
        "after those of series 'a' cannot be told: it has one row, at 2026-01-01 00:00:00, .*; expected two rows",
    ),
    "one row, of polars": (
        pl.DataFrame({"ds": [DAYS[0].date()], "y": [1.0]}),
        "after those of the table cannot be told: it has one row, at 2026-01-01, .*; expected two rows",
    ),
    "one row of an index": (
        pd.DataFrame({"y": 1.0}, list(DAYS[:1])),
        "of the table cannot be told: it has one row, at 2026",
    ),
    "the end of days": (
        pl.DataFrame({"ds": [date(9999, 12, 30), date(9999, 12, 31)], "y": [1.0, 2.0]}),
        "it ends at 9999-12-31, and its dtype holds none so far behind it",
    ),
    "texts as index": (pd.DataFrame({"y": [1.0, 2.0]}, ["p", "q"]), "it ends at q, of type str, which has no next one"),
    "times and numbers": (
        pd.DataFrame({"ds": [1, DAYS[0]], "y": 1.0}),
        "'ds' has values without an order, of type 'Timestamp', 'int'; expected times or numbers",
    ),
    "lists as names": (
        pl.DataFrame({"unique_id": [[1], [2]], "y": [1.0, 2.0]}),
        "'unique_id' has dtype List.Int64.; expected texts or numbers",
    ),
    "an index of pairs": (
        pd.DataFrame({"a": "a", "ds": DAYS, "y": 1.0}).set_index(["a", "ds"]),
        "index has the levels .a., .ds.; expected columns, .unique_id.",
    ),
}


@pytest.mark.parametrize("case", TABLES)
async def test_times_that_have_no_next_one_are_refused(served: Served, case: str) -> None:
    given, says = TABLES[case]
    with pytest.raises(errors.BadTensor, match=says):
        await served.client.forecast("decay", given, 2)


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame])
async def test_ids_that_are_categories_stay_so(served: Served, library: Any) -> None:
    past = table(library)
    narrow = past[["unique_id", "ds", "y"]] if library is pd.DataFrame else past.select("unique_id", "ds", "y")
    out = await served.client.forecast("decay", narrow, 2)
    assert str(out["unique_id"].dtype).lower().startswith("categor")
    assert list(out["unique_id"]) == ["shop 2"] * 2 + ["shop 1"] * 2 + ["shop 0"] * 2


def test_metrics_and_the_twin(forecasters_written: tuple[Path, Any]) -> None:
    """MASE and coverage as utilsforecast has them, of the synchronous client's table."""

    async def address() -> pd.DataFrame:
        async with serving(forecasters_written[0]) as local:
            return await asyncio.to_thread(tested, local.address)

    def tested(address: str) -> pd.DataFrame:
        with statestream.connect(address) as client:
            return client.backtest("deep", table(pd.DataFrame), H, STEP, n_windows=3, level=[80], seed=1)

    out = asyncio.run(address())
    train = table(pd.DataFrame)[["unique_id", "ds", "y"]]
    measured = evaluate(
        out.drop(columns="cutoff"),
        metrics=[mae, partial(mase, seasonality=1), coverage],
        models=["deep"],
        level=[80],
        train_df=train,
    )
    assert set(measured["metric"]) == {"mae", "mase", "coverage_level80"}
    found = measured[measured["metric"] == "mae"].set_index("unique_id")["deep"]
    by_hand = (out["y"] - out["deep"]).abs().groupby(out["unique_id"], observed=True).mean()
    assert np.allclose(found.sort_index(), by_hand.sort_index())
