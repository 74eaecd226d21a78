"""Forecasts through client and server: torch's own loops, draws, bands, windows, bad input, cancels, kills."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import statestream
from statestream import aio, errors
from tests.support.calls import DEADLINE
from tests.support.serving import Local, process, serving

H = 7
RNG = np.random.default_rng(5)
SALES = RNG.standard_normal((5, 20, 1)).astype(np.float32)
CALENDAR = RNG.random((5, 20 + H, 2)).astype(np.float32)
PAST = {"sales": SALES, "calendar": CALENDAR[:, :20]}
FUTURE = CALENDAR[:, 20:]


class Served:
    """A server in this process with the models of `forecasters`, their modules, and a client."""

    def __init__(self, local: Local, client: aio.Client, modules: Any) -> None:
        self.local, self.client, self.modules = local, client, modules


@pytest.fixture
async def served(forecasters_written: tuple[Path, Any]) -> AsyncIterator[Served]:
    async with serving(forecasters_written[0]) as local, aio.connect(local.address) as client:
        yield Served(local, client, forecasters_written[1])


def rolled(module: torch.nn.Module, draw: Any, series: slice = slice(None)) -> np.ndarray:
    """Torch's own loop over "deep": `draw` makes the next value of loc and scale; [N, H, 1]."""
    sales, calendar = torch.tensor(SALES[series]), torch.tensor(CALENDAR[series])
    state = [torch.zeros(1, len(sales), 8), torch.zeros(1, len(sales), 8)]
    with torch.no_grad():
        # The calendar of a step goes in with the value before it.
        loc, scale, *state = module(sales, calendar[:, 1:21], *state)
        loc, scale, made = loc[:, -1:], scale[:, -1:], []
        for step in range(H):
            made.append(draw(loc, scale, step))
            if step + 1 < H:
                loc, scale, *state = module(made[-1], calendar[:, 21 + step : 22 + step], *state)
    return torch.cat(made, 1).numpy()


async def test_a_closed_loop_is_torchs(served: Served) -> None:
    found = await served.client.forecast("deep", PAST, h=H, future=FUTURE)
    assert np.abs(found - rolled(served.modules["deep"], lambda loc, scale, step: loc)).max() < 1e-3


async def test_paths_follow_torchs_loop_step_by_step(served: Served) -> None:
    """Fed the same draws, torch's loop has the same distributions: each path's next value is drawn from them."""
    paths = await served.client.forecast("deep", PAST, h=H, future=FUTURE, samples=True, num_samples=400, seed=2)
    assert paths.shape == (5, 400, H, 1)
    seen = []

    def draw(path: int, loc: torch.Tensor, scale: torch.Tensor, step: int) -> torch.Tensor:
        value = torch.tensor(paths[:, path, step : step + 1])
        seen.append(torch.special.ndtr((value - loc) / scale).numpy())
        return value

    for path in range(60):
        rolled(served.modules["deep"], partial(draw, path))
    levels = np.sort(np.concatenate(seen).ravel())
    # Kolmogorov and Smirnov: so far from even as one in a thousand is.
    assert np.abs(levels - np.arange(len(levels)) / len(levels)).max() < 1.95 / np.sqrt(len(levels))


async def test_the_first_step_has_the_heads_moments(served: Served) -> None:
    drawn = await served.client.forecast(
        "deep", PAST, h=1, future=FUTURE[:, :1], samples=True, num_samples=5000, seed=1
    )
    heads: list[tuple[np.ndarray, np.ndarray]] = []

    def draw(loc: torch.Tensor, scale: torch.Tensor, step: int) -> torch.Tensor:
        heads.append((loc.numpy(), scale.numpy()))
        return loc

    rolled(served.modules["deep"], draw)
    loc, scale = heads[0][0][:, 0, 0], heads[0][1][:, 0, 0]
    assert np.abs(drawn.mean((1, 2, 3)) - loc).max() < 5 * scale.max() / np.sqrt(5000)
    assert np.abs(drawn.std((1, 2, 3)) / scale - 1).max() < 0.06
    levels = await served.client.forecast("deep", PAST, h=1, future=FUTURE[:, :1], level=[80], num_samples=5000, seed=1)
    z = 1.2815516
    assert np.abs(levels[:, 0, 0] - np.stack([loc - z * scale, loc + z * scale], -1)).max() < 0.1 * scale.max()


async def test_the_same_seed_has_the_same_bits_alone_and_in_a_crowd(served: Served) -> None:
    asked: dict[str, Any] = {"h": H, "samples": True, "num_samples": 30, "seed": 11}
    client = served.client
    crowd = [client.forecast("deep", PAST, future=FUTURE, **asked | {"seed": seed}) for seed in range(6)]
    many, *_ = await asyncio.gather(client.forecast("deep", PAST, future=FUTURE, **asked), *crowd)
    alone = await client.forecast("deep", {name: x[:1] for name, x in PAST.items()}, future=FUTURE[:1], **asked)
    assert alone.tobytes() == many[:1].tobytes()
    fewer = await client.forecast("deep", PAST, future=FUTURE, **asked | {"num_samples": 7})
    assert fewer.tobytes() == np.ascontiguousarray(many[:, :7]).tobytes()
    other = await client.forecast("deep", PAST, future=FUTURE, **asked | {"seed": 12})
    assert not np.isclose(other, many).any()


async def test_a_call_that_is_cut_draws_the_same(forecasters_written: tuple[Path, Any], served: Served) -> None:
    asked: dict[str, Any] = {"h": H, "future": FUTURE, "samples": True, "num_samples": 30, "seed": 11}
    whole = await served.client.forecast("deep", PAST, **asked)
    async with (
        serving(forecasters_written[0], limits={"max_driven_rows": 64}) as local,
        aio.connect(local.address) as client,
    ):
        assert (await client.forecast("deep", PAST, **asked)).tobytes() == whole.tobytes()


async def test_sessions_and_pools_forecast_as_their_history(served: Served) -> None:
    client = served.client
    asked: dict[str, Any] = {"quantiles": [0.1, 0.5, 0.9], "seed": 4, "num_samples": 50}
    steps = {"sales": SALES, "calendar": CALENDAR[:, 1:21]}
    expected = await client.forecast("deep", PAST, h=H, future=FUTURE, **asked)
    assert expected.shape == (5, H, 1, 3)
    async with client.sessions("deep", 5) as pool, client.session("deep") as session:
        with pytest.raises(errors.Unsupported, match="took 0 steps: apply 1 at least first"):
            await pool.forecast(H, future=FUTURE)
        await pool.step(steps)
        await session.step({name: x[0] for name, x in steps.items()})
        found = await pool.forecast(H, future=FUTURE, **asked)
        assert np.abs(found - expected).max() < 1e-4
        rows = [row async for row in session.forecast(H, future=FUTURE[0], **asked)]
        assert np.stack(rows).tobytes() == found[0].tobytes()
        assert session.position == 20
        assert (await pool.forecast(H, future=FUTURE)).shape == (5, H, 1)


async def test_histories_may_differ_in_length(served: Served) -> None:
    lengths = [20, 3, 11]
    ragged = {name: [x[n, 20 - length : 20] for n, length in enumerate(lengths)] for name, x in PAST.items()}
    found = await served.client.forecast("deep", ragged, h=H, future=FUTURE[:3])
    for n, length in enumerate(lengths):
        one = {name: x[n, 20 - length :] for name, x in PAST.items()}
        alone = await served.client.forecast("deep", one, h=H, future=FUTURE[n])
        assert np.abs(found[n] - alone).max() < 1e-5


async def test_a_window_gives_its_steps_at_once_and_goes_on_with_them(served: Served) -> None:
    x = RNG.standard_normal((3, 9, 1)).astype(np.float32)
    head = served.modules["ahead"].head
    assert isinstance(head, torch.nn.Linear)
    last, expected = torch.tensor(x[:, 3:, 0]), []
    with torch.no_grad():
        for _ in range(3):
            expected.append(head(last))
            last = torch.cat([last, expected[-1]], 1)[:, -6:]
    straight = torch.cat(expected, 1).numpy()
    found = await served.client.forecast("ahead", x, h=10)
    assert np.abs(found["y"][..., 0] - straight[:, :10]).max() < 1e-3
    bands = await served.client.forecast("ahead", x, h=4, quantiles=[0.9, 0.1])
    assert np.abs(bands[:, :, 0] - (straight[:, :4, None] + np.asarray([2, -1], np.float32))).max() < 1e-5
    steps = [step async for step in served.client.forecast_steps("ahead", x[0], h=10)]
    assert np.stack([step["y"] for step in steps]).tobytes() == found["y"][0].tobytes()


async def test_conformal_bands_cover_what_they_promise(served: Served) -> None:
    """On windows that were held out, of 150 AR(1) series: at least the promise, but for chance, and not much more."""
    series, length, h = 150, 140, 5
    noise = np.random.default_rng(1).standard_normal((series, length))
    x = np.zeros((series, length), np.float32)
    for t in range(1, length):
        x[:, t] = 0.8 * x[:, t - 1] + noise[:, t]
    past, held = x[:, :-h, None], x[:, -h:]
    bands = await served.client.forecast("decay", past, h=h, level=[80, 50], bands="conformal")
    assert bands.shape == (series, h, 1, 4)
    for place, promise in ((0, 0.8), (2, 0.5)):
        low, high = bands[:, :, 0, place], bands[:, :, 0, place + 1]
        covered = float(((held >= low) & (held <= high)).mean())
        assert promise - 0.04 < covered < promise + 0.1, (promise, covered)
    assert (np.diff((bands[..., 1] - bands[..., 0]).mean(0)[:, 0]) > 0).all(), "wider from step to step"
    async with served.client.session("decay") as session:
        await session.step(past[0])
        rows = [row async for row in session.forecast(h, level=[80, 50], bands="conformal", past=past[0])]
        assert np.abs(np.stack(rows) - bands[0]).max() < 1e-5


async def test_a_series_ends_with_the_step_that_crosses_a_bound(served: Served) -> None:
    x = np.asarray([[[8.0]], [[1.0]]], np.float32)
    found = await served.client.forecast("decay", x, h=6, until=("y", "<=", 4.0))
    assert np.isnan(found[0]).ravel().tolist() == [False] * 4 + [True] * 2
    assert np.isnan(found[1]).ravel().tolist() == [False] + [True] * 5


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame])
async def test_a_long_table_in_a_long_table_out(served: Served, library: Any) -> None:
    days = pd.date_range("2026-01-01", periods=20 + H, freq="D")
    frames = [
        pd.DataFrame(
            {
                "unique_id": name,
                "ds": days,
                "y": np.append(SALES[n, :, 0], np.zeros(H)),
                "weekend": CALENDAR[n, :, 0],
                "promotion": CALENDAR[n, :, 1],
            }
        )
        for n, name in enumerate("ab")
    ]
    whole = pd.concat(frames)
    made = [whole[whole["ds"] <= days[19]], whole[whole["ds"] > days[19]].drop(columns="y")]
    past, future = [one if library is pd.DataFrame else pl.DataFrame(one.to_dict("list")) for one in made]
    asked: dict[str, Any] = {"h": H, "seed": 5, "num_samples": 40}
    out = await served.client.forecast("deep", past, future=future, level=[80], **asked)
    assert list(out.columns) == ["unique_id", "ds", "deep", "deep-lo-80", "deep-hi-80"]
    arrays = {name: x[:2] for name, x in PAST.items()}
    expected = await served.client.forecast("deep", arrays, future=FUTURE[:2], level=[80], **asked)
    assert np.abs(np.asarray(out["deep-hi-80"]) - expected[..., 0, 1].ravel()).max() < 1e-4
    assert list(out["unique_id"]) == ["a"] * H + ["b"] * H
    quantiles = await served.client.forecast("deep", past, future=future, quantiles=[0.1], **asked)
    assert list(quantiles.columns) == ["unique_id", "ds", "deep", "deep-q-10"]
    with pytest.raises(errors.BadTensor, match="future has 3 rows of series 'a'; expected 7"):
        await served.client.forecast("deep", past, future=future[:3], h=H)
    made[0].iloc[23, 2] = np.nan
    gap = made[0] if library is pd.DataFrame else pl.DataFrame(made[0].to_dict("list"))
    with pytest.raises(errors.BadTensor, match=r"nan in series 'b', row 3 of 20|no value at row 23"):
        await served.client.forecast("deep", gap, future=future, h=H)


def _gap() -> np.ndarray:
    x = np.ones((2, 9, 1), np.float32)
    x[1, 4] = np.nan
    return x


ONES = np.ones((2, 9, 1), np.float32)
BAD: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "shorter than the window": ("ahead", {"history": ONES[:, :5]}, errors.BadTensor, "5 steps; .* looks back 6"),
    "a gap": ("ahead", {"history": _gap()}, errors.BadTensor, "nan in series 1, row 4"),
    "a negative horizon": ("ahead", {"h": -1}, ValueError, "h is -1"),
    "too far a horizon": ("ahead", {"h": 5000}, errors.BadFrame, "horizon is 5000; expected 1 to 4096"),
    "quantile 1.2": ("ahead", {"quantiles": [1.2]}, ValueError, r"quantiles has 1.2; expected numbers between 0 and 1"),
    "both": ("ahead", {"quantiles": [0.5], "level": [80]}, ValueError, "both quantiles and level"),
    "no such quantile": ("ahead", {"quantiles": [0.25]}, errors.BadFrame, "0.25 is none .* 0.1, 0.5, 0.9"),
    "too many paths": ("deep", {"num_samples": 20_000, "seed": 1}, errors.BadFrame, "num_samples is 20000; expected"),
    "nothing to draw": ("decay", {"num_samples": 5}, errors.Unsupported, "no head"),
    "no head": ("decay", {"level": [80]}, errors.Unsupported, 'bands="conformal"'),
    "too short for bands": (
        "decay",
        {"level": [95], "bands": "conformal", "h": 3},
        errors.BadTensor,
        "9 past steps; conformal bands .* 39 past errors of 3 steps, which are in 42",
    ),
    "future too short": ("deep", {"future": FUTURE[:, :3]}, errors.BadTensor, "has 3 steps; expected 7"),
    "no future": ("deep", {}, errors.BadTensor, "future has no 'calendar'"),
    "a future of what is fed": ("decay", {"future": ONES}, errors.BadTensor, "leave out future"),
    "no value of that name": ("decay", {"until": ("z", "<=", 0.0)}, errors.BadFrame, "stop is of 'z'; .* y"),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_input_is_told_what_it_is(served: Served, case: str) -> None:
    model, change, kind, says = BAD[case]
    asked: dict[str, Any] = {"history": PAST if model == "deep" else ONES, "h": H} | change
    with pytest.raises(kind, match=says):
        await served.client.forecast(model, **asked)
    table = served.local.table(model)
    assert (table.driven, table.allocated, table.lane.queued) == (0, 0, 0)


async def test_a_cancel_frees_the_rows_at_once(served: Served) -> None:
    table = served.local.table("deep")
    future = np.zeros((5, 4000, 2), np.float32)
    call = served.client.forecast("deep", PAST, h=4000, future=future, num_samples=1000, samples=False)
    task = asyncio.create_task(call)
    await served.local.until(lambda: table.allocated >= 5000)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await served.local.until(lambda: table.allocated == 0)
    assert (table.driven, table.lane.queued) == (0, 0)
    assert (await served.client.forecast("deep", PAST, h=H, future=FUTURE)).shape == (5, H, 1)


async def test_a_slow_reader_holds_back_its_own_forecast_only(served: Served) -> None:
    x = np.ones((4000, 3, 1), np.float32)
    slow = served.client.forecast_steps("decay", x, h=4000)
    await anext(slow)
    statistics, seen = served.local.server.engine.statistics, -1
    async with asyncio.timeout(30):
        # It goes on until gRPC takes no more, then it stands still.
        while seen != statistics.steps:
            seen = statistics.steps
            await asyncio.sleep(0.3)
    assert seen < 4000 * 3999
    await asyncio.wait_for(served.client.forecast("decay", x[:400], h=300), 30)
    assert statistics.steps == seen + 400 * (3 + 299), "what nobody reads is not run"
    assert isinstance(slow, AsyncGenerator)
    await slow.aclose()
    await served.local.until(lambda: served.local.table("decay").allocated == 0)


def test_a_pools_forecast_over_sigkill_has_the_same_bits(forecasters_written: tuple[Path, Any], tmp_path: Path) -> None:
    """Whole, from all sessions of a pool: the caller sees one answer, that of a server that lived."""
    asked: dict[str, Any] = {"h": 600, "samples": True, "num_samples": 200, "seed": 3}
    future = np.zeros((600, 2), np.float32)
    with (
        process(forecasters_written[0], "--store", f"sqlite:{tmp_path / 's.db'}", "--log-level", "warning") as server,
        statestream.connect(server.address) as client,
        client.sessions("deep", ids=["a", "b", "c"]) as pool,
        ThreadPoolExecutor(1) as thread,
    ):
        pool.step({"sales": SALES[:3, 0], "calendar": CALENDAR[:3, 1]})
        pool.flush()
        straight = pool.forecast(future=future, **asked)
        before = client.statistics().steps
        found = thread.submit(pool.forecast, future=future, **asked)
        while client.statistics().steps < before + 60 * 3 * 200:
            assert not found.done()
        server.kill()
        assert not found.done()
        server.start()
        assert found.result(DEADLINE).tobytes() == straight.tobytes()
        pool.step({"sales": SALES[:3, 1], "calendar": CALENDAR[:3, 2]})
        assert pool.positions.tolist() == [2, 2, 2]


@pytest.mark.slow
def test_a_forecast_over_sigkill_has_the_same_bits(forecasters_written: tuple[Path, Any], tmp_path: Path) -> None:
    """From histories and a session, with paths; the session moved on meanwhile."""
    store = f"sqlite:{tmp_path / 's.db'}"
    # More than what is on its way without being read.
    long = np.zeros((5, 600, 2), np.float32)
    asked: dict[str, Any] = {"h": 600, "samples": True, "num_samples": 200, "seed": 3}
    with process(forecasters_written[0], "--store", store, "--log-level", "warning") as server:
        with statestream.connect(server.address) as client, client.session("deep", id="a") as session:
            session.step({"sales": SALES[0], "calendar": CALENDAR[0, 1:21]})
            session.flush()
            straight = np.stack(list(session.forecast(future=long[0], **asked)))
            plain = np.stack(list(client.forecast_steps("deep", PAST, future=long, **asked)))
            for kill in (1, 4):
                rows = session.forecast(future=long[0], **asked)
                found = [next(rows) for _ in range(kill)]
                others = client.forecast_steps("deep", PAST, future=long, **asked)
                steps = [next(others) for _ in range(kill)]
                session.step({"sales": [9.0], "calendar": [1.0, 1.0]})
                server.kill()
                server.start()
                assert np.stack([*found, *rows]).tobytes() == straight.tobytes()
                assert np.stack([*steps, *others]).tobytes() == plain.tobytes()
                assert client.statistics().steps > 600 * 5 * 200, "they went on after the kill"
                straight = np.stack(list(session.forecast(future=long[0], **asked)))
        assert server.stop() == 0
