"""Unary predictions: those of one moment are gathered into one run and need no task; what is not as usual; cancels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statestream.v1 import inference_pb2 as pb
from statestream_server.drivers.predict import Predictor
from statestream_server.engine.scheduler import Costs
from tests.support import models
from tests.support.arrays import arrays_of, tensor
from tests.support.calls import DEADLINE, Caller, failing
from tests.support.serving import Local, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write(tmp_path_factory.mktemp("models"), "scores", "counter")


@pytest.fixture
async def local(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Local]:
    """A server on whose edge the usual prediction needs no task."""
    # However long the first runs took, what comes together fits a batch.
    monkeypatch.setattr(Costs, "rows", lambda self, steps, *, most: most)
    async with serving(folder, edge="h2") as local:
        yield local


def request(x: np.ndarray, **more: Any) -> pb.PredictRequest:
    return pb.PredictRequest(model="scores", inputs=[tensor("x", x)], **more)


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def waiting(local: Local) -> int:
    return sum(each.waiting for each in local.server.engine._calls.by_graph.values())


async def test_calls_of_one_moment_are_one_run_whatever_rows_they_have(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller, given = Caller(local.channel), [rows(count, count) for count in (1, 3, 1, 2)]
    alone = [arrays_of((await caller.inference.Predict(request(x))).outputs) for x in given]

    async def long(*_: Any) -> None:
        raise AssertionError("a prediction as usual went the long way")

    monkeypatch.setattr(Predictor, "predict", long)
    statistics = local.server.engine.statistics
    with local.engine_held():
        calls = [caller.inference.Predict(request(x), timeout=DEADLINE) for x in given]
        await local.until(lambda: waiting(local) == 4)
        batches = statistics.batches
    answers = await asyncio.gather(*calls)
    assert statistics.batches == batches + 1
    for x, answer, expected in zip(given, answers, alone, strict=True):
        found = arrays_of(answer.outputs)
        assert answer.version == 1
        assert found.keys() == expected.keys()
        for name, array in found.items():
            assert array.shape[0] == len(x)
            assert array.tobytes() == expected[name].tobytes()
    assert not local.server.budgets.predictions.held
    assert not waiting(local)


async def test_what_is_not_as_usual_is_answered_or_refused_as_ever(local: Local) -> None:
    caller = Caller(local.channel)
    named = arrays_of((await caller.inference.Predict(request(rows(2), outputs=["scores"]))).outputs)
    assert list(named) == ["scores"]
    empty = arrays_of((await caller.inference.Predict(request(rows(0)))).outputs)
    assert empty["scores"].shape == (0, 3)
    for wrong, reason in (
        (request(rows(1).astype(np.float64)), "BAD_TENSOR"),
        (request(rows(1)[:, :3]), "BAD_TENSOR"),
        (pb.PredictRequest(model="scores"), "BAD_TENSOR"),
        (pb.PredictRequest(model="counter"), "UNSUPPORTED"),
        (request(rows(1), version=9), "MODEL_NOT_FOUND"),
        (pb.PredictRequest(model="m" * 2000), "BAD_FRAME"),
    ):
        assert (await failing(caller.inference.Predict(wrong, timeout=DEADLINE))).reason == reason
    assert not local.server.budgets.predictions.held


async def test_calls_that_are_given_up_are_not_run_and_hold_nothing(local: Local) -> None:
    """All of those that were handed on together, and one of two: the other is answered."""
    caller, statistics = Caller(local.channel), local.server.engine.statistics
    with local.engine_held():
        gone = [caller.inference.Predict(request(rows(5))) for _ in range(3)]
        await local.until(lambda: waiting(local) == 3)
        for call in gone:
            call.cancel()
        await local.until(lambda: not local.server.connected()[1])
        stays = caller.inference.Predict(request(rows(1)), timeout=DEADLINE)
        left = caller.inference.Predict(request(rows(1)))
        await local.until(lambda: waiting(local) == 5)
        left.cancel()
    assert (await stays).outputs
    await local.until(lambda: not local.server.budgets.predictions.held)
    assert statistics.rows <= 2
    assert not waiting(local)


async def test_calls_that_are_given_up_before_they_are_handed_on_are_not(local: Local) -> None:
    caller, server = Caller(local.channel), local.server
    turn, server.engine._turn = server.engine._turn, lambda: None
    gone = [caller.inference.Predict(request(rows(5))) for _ in range(2)]
    await local.until(lambda: server.connected()[1] == 2 and server.gathering._groups)
    gone[0].cancel()
    await local.until(lambda: server.connected()[1] == 1)
    server.engine._turn = turn
    server.gathering.empty()
    assert waiting(local) == 1
    gone[1].cancel()
    await local.until(lambda: server.connected()[1] == 0)
    turn()
    await local.until(lambda: not server.budgets.predictions.held)
    assert not server.engine.statistics.rows


async def test_a_prediction_beyond_the_budget_is_refused_with_a_time_to_come_again(local: Local) -> None:
    caller, budget = Caller(local.channel), local.server.budgets.predictions
    with local.engine_held():
        first = caller.inference.Predict(request(rows(1)), timeout=DEADLINE)
        await local.until(lambda: budget.held)
        budget.most, most = budget.held, budget.most
        refused = await failing(caller.inference.Predict(request(rows(1)), timeout=DEADLINE))
        budget.most = most
    assert refused.reason == "OVERLOADED"
    assert (await first).outputs
    assert not budget.held


async def test_calls_of_a_model_that_is_unloaded_hear_so(local: Local) -> None:
    """Those that were handed on to the engine, and those that were not yet."""
    caller, server = Caller(local.channel), local.server
    model = server.registry.get("scores").model
    with local.engine_held():
        calls = [caller.inference.Predict(request(rows(1)), timeout=DEADLINE) for _ in range(2)]
        await local.until(lambda: waiting(local) == 2)
        turn, server.engine._turn = server.engine._turn, lambda: None
        calls.append(caller.inference.Predict(request(rows(1)), timeout=DEADLINE))
        await local.until(lambda: server.gathering._groups)
        server.engine.forget(model.graph, "scores", 1)
        server.engine._turn = turn
        turn()
    assert [(await failing(call)).reason for call in calls] == ["MODEL_NOT_FOUND"] * 3
    assert not server.budgets.predictions.held
    assert not server.engine._calls.by_graph
