"""Scores: how likely what arrived was, alone and in a crowd, in chunks, after forks, sleep and resets."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statestream import PoolStep, Scored, aio, errors
from statestream.contract.tensors import to_tensor
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc as stubs
from statestream_server.settings import Durability
from tests.support.serving import Local, serving

PAST = 31
RNG = np.random.default_rng(11)


@pytest.fixture
async def local(observers_dir: Path, tmp_path: Path) -> AsyncIterator[Local]:
    store = f"sqlite:{tmp_path / 's.db'}"
    async with serving(observers_dir, store=store, durability=Durability.SYNC) as local:
        yield local


@pytest.fixture
async def client(local: Local) -> AsyncIterator[aio.Client]:
    async with aio.connect(local.address) as client:
        yield client


def likelihoods(x: np.ndarray) -> tuple[list[float], list[float]]:
    """Of "heard" [T, 1]: the density under the step before, and the share of the last 31 that were as low."""
    found, shares, past = list[float](), list[float](), list[float]()
    for step, value in enumerate(x[:, 0].tolist()):
        if not step or math.isnan(value):
            found.append(math.nan)
            shares.append(math.nan)
            continue
        before = float(x[step - 1, 0])
        loc, scale = 0.8 * before, 0.5 + 0.1 * abs(before)
        score = -0.5 * ((value - loc) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)
        found.append(score)
        shares.append((1 + sum(each <= score for each in past[-PAST:])) / (1 + len(past[-PAST:])))
        past.append(score)
    return found, shares


def deviations(residuals: Sequence[float]) -> list[float]:
    """Modified z-scores of residuals, each among the 31 before it."""
    found = []
    for step, value in enumerate(residuals):
        past = [each for each in residuals[:step] if not math.isnan(each)][-PAST:]
        if len(past) < 8 or math.isnan(value):
            found.append(math.nan)
            continue
        middle = float(np.median(past))
        spread = 1.482602218505602 * float(np.median(np.abs(np.array(past) - middle)))
        found.append((value - middle) / spread)
    return found


def series(count: int, width: int = 1) -> np.ndarray:
    return RNG.standard_normal((count, width)).astype(np.float32)


async def test_a_likelihood_and_its_share_of_the_past(client: aio.Client) -> None:
    x = series(80)
    session = await client.session("heard")
    found = [await session.step(x[0], score=True), await session.step(x[1:50], score=True)]
    found += [each async for each in session.stream(x[50:], score=True)]
    expected, shares = likelihoods(x)
    assert isinstance(found[0], Scored)
    assert np.asarray(found[0].scores.log_likelihood).shape == ()
    scores = [np.atleast_1d(each.scores.log_likelihood) for each in found]
    np.testing.assert_allclose(np.concatenate(scores), expected, rtol=2e-4, atol=1e-5)
    told = np.concatenate([np.atleast_1d(each.scores.p_value) for each in found])
    assert told.dtype == np.float32
    assert np.isnan(told[0])
    assert told[1] == 1.0
    assert np.nanmax(np.abs(told - np.asarray(shares))) < 0.07, "a share may be one off where two are alike to rounding"
    assert all(each.scores.z is None for each in found)
    plain = await (await client.session("heard")).step(x)
    assert np.concatenate([np.atleast_2d(each.outputs["loc"]) for each in found]).tobytes() == plain["loc"].tobytes()


async def test_a_share_is_calibrated_whatever_the_model_is_worth(client: aio.Client) -> None:
    """The scores of numbers that are drawn alike are exchangeable but for what came before each: few are low."""
    async with await client.sessions("heard", 64) as pool:
        x = 3 * RNG.standard_normal((64, 220, 1)).astype(np.float32)
        _, scores = await pool.step(x, score=True)
    told = scores.p_value[:, 60:]
    for level in (1 / 32, 0.1, 0.5):
        assert (told <= level).mean() <= level + 0.01, level


async def test_a_residual_without_a_head_is_a_robust_z(client: aio.Client) -> None:
    x = series(70, 2)
    x[50] = 40
    _, scores = await (await client.session("plain")).step(x, score=True)
    for place in range(2):
        residual = [math.nan, *(x[1:, place] - 0.5 * x[:-1, place]).tolist()]
        np.testing.assert_allclose(scores.z[:, place], deviations(residual), rtol=1e-3, atol=1e-4)
    assert scores.log_likelihood is None
    assert (scores.z[50] > 15).all()
    assert np.abs(scores.z[53:]).max() < 8, "one outlier moves neither median"


async def test_what_does_not_vary_has_a_score_all_the_same(client: aio.Client) -> None:
    """Where most residuals are the same their mean deviation stands in; where all are, what differs is infinite."""
    x = np.zeros((40, 2), np.float32)
    x[20, 0] = x[30, 0] = 1
    _, scores = await (await client.session("plain")).step(x, score=True)
    assert np.isposinf(scores.z[20, 0])
    assert np.isfinite(scores.z[30, 0])
    assert scores.z[30, 0] > 3
    assert (scores.z[9:, 1] == 0).all()


async def test_a_step_is_scored_alike_alone_and_in_a_crowd(client: aio.Client) -> None:
    """Whatever came in one frame, and whatever ran beside."""
    x = RNG.standard_normal((40, 24, 1)).astype(np.float32)
    async with await client.sessions("heard", 40) as pool:
        _, scores = await pool.step(x, score=True)
        session = await client.session("heard")
        alone = [(await session.step(step, score=True)).scores for step in x[7]]
        others = await client.session("heard")
        _, whole = await others.step(x[7], score=True)
    for name in ("log_likelihood", "p_value"):
        told = np.stack([getattr(one, name) for one in alone])
        assert told.tobytes() == getattr(scores, name)[7].tobytes() == getattr(whole, name).tobytes()


async def test_a_pool_has_no_scores_beyond_a_rows_length_and_of_rows_that_failed(client: aio.Client) -> None:
    async with await client.sessions("refuse", 3) as pool:
        x = RNG.standard_normal((3, 20, 2)).astype(np.float32)
        _, scores = await pool.step(x, lengths=[20, 12, 0], score=True)
        assert scores.z.shape == (3, 20, 2)
        assert np.isfinite(scores.z[0, 9:]).all()
        assert np.isfinite(scores.z[1, 9:12]).all()
        assert np.isnan(scores.z[1, 12:]).all()
        assert np.isnan(scores.z[2]).all()
        x[1, 0] = np.nan
        answers = [each async for each in pool.stream([PoolStep(x[:, 0], score=True)], return_errors=True)]
        outputs, scores = answers[0].outputs
        assert set(answers[0].errors) == {1}
        assert outputs["y"].shape == (3, 2)
        assert np.isnan(scores.z[1]).all()
        assert np.isfinite(scores.z[0]).all()


async def test_steps_that_are_not_scored_leave_no_trace(client: aio.Client) -> None:
    x = series(60)
    one, other = await client.session("heard"), await client.session("heard")
    await one.step(x[:20], score=True)
    await other.step(x[:20], score=True)
    await one.step(x[20:40])
    _, first = await one.step(x[40:], score=True)
    await other.step(x[39:40])
    _, second = await other.step(x[40:], score=True)
    assert first.p_value.tobytes() == second.p_value.tobytes()


async def test_forks_snapshots_and_sleep_carry_the_past(client: aio.Client, local: Local) -> None:
    x = series(60)
    session = await client.session("heard", id="a")
    await session.step(x[:40], score=True)
    fork = await session.fork("b")
    restored = await client.restore(await session.snapshot(), model="heard", id="c")
    _, expected = await session.step(x[40:], score=True)
    _, forked = await fork.step(x[40:50], score=True)
    table = local.table("heard")
    await local.until(lambda: (table.durable[table.resident()] == table.position[table.resident()]).all())
    await local.server.sessions.hibernate(table, float("inf"))
    assert not table.sessions
    _, later = await fork.step(x[50:], score=True)
    assert np.concatenate([forked.p_value, later.p_value]).tobytes() == expected.p_value.tobytes()
    _, again = await restored.step(x[40:], score=True)
    assert again.p_value.tobytes() == expected.p_value.tobytes()


async def test_a_reset_begins_a_new_past(client: aio.Client) -> None:
    session = await client.session("heard")
    await session.step(series(20), score=True)
    await session.reset()
    _, scores = await session.step(series(3), score=True)
    assert np.isnan(scores.p_value[0])
    assert scores.p_value[1] == 1.0


async def test_a_long_chunk_is_scored_once(client: aio.Client) -> None:
    """It runs in slices on a shadow row, and is cut and joined by the client."""
    x = series(700)
    one, other = await client.session("heard"), await client.session("heard")
    _, whole = await one.step(x, score=True)
    told = [(await other.step(x[at : at + 77], score=True)).scores.p_value for at in range(0, 700, 77)]
    assert whole.p_value.tobytes() == np.concatenate(told).tobytes()


async def test_kept_replies_have_their_scores(client: aio.Client, local: Local) -> None:
    x = series(9)
    session = await client.session("heard", id="k")
    told = [await session.step(x[at : at + 3], score=at != 3) for at in (0, 3, 6)]
    async with aio.connect(local.address) as later:
        again = await later.session("heard", id="k", return_replies=True)
        for position, outputs in again.replies:
            expected = told[position // 3]
            if position == 3:
                assert outputs["loc"].tobytes() == expected["loc"].tobytes()
            else:
                assert outputs.scores.p_value.tobytes() == expected.scores.p_value.tobytes()
        assert again.replies


async def test_nothing_is_scored_where_nothing_is_expected(client: aio.Client, local: Local) -> None:
    session = await client.session("clock")
    with pytest.raises(errors.Unsupported, match="expects nothing of its next input"):
        await session.step({"x": [0.0], "dt": 0.0}, score=True)
    assert session.position == 0
    stub: Any = stubs.InferenceServiceStub(local.channel)
    request = pb.StepRequest(model="clock", session_id="u", score=True)
    request.inputs.extend([to_tensor("x", np.zeros((1, 1), np.float32)), to_tensor("dt", np.zeros(1, np.int64))])
    with pytest.raises(Exception, match="expects nothing of its next input"):
        await stub.Step(request)


async def test_a_call_without_a_stream_is_scored_too(client: aio.Client, local: Local) -> None:
    x = series(12)
    stub: Any = stubs.InferenceServiceStub(local.channel)
    request = pb.StepRequest(model="heard", session_id="u", score=True, inputs=[to_tensor("x", x)])
    answer = await stub.Step(request)
    names = [tensor.name for tensor in answer.outputs]
    assert names == ["loc", "scale", "score:log_likelihood", "score:p_value"]
    _, scores = await (await client.session("heard")).step(x, score=True)
    assert answer.outputs[3].data == scores.p_value.tobytes()
