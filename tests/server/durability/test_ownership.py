"""Whose a session is: calls that need its live state are sent to its owner while that lives."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import session_pb2 as sessions
from tests.support.arrays import arrays_of, tensor, u64
from tests.support.calls import Caller, Failure, connected, everything, failing
from tests.support.counter import numbers
from tests.support.serving import Local, process, serving
from tests.support.speaker import Speaker, fresh_id

MODEL, LOOP = "counter", "loop"
LONG = 60.0


@pytest.fixture
async def pair(models_dir: Path, tmp_path: Path) -> AsyncIterator[tuple[Local, Local]]:
    """Two servers on one store, neither of which finds anything out by itself within a test."""
    store = f"sqlite:{tmp_path / 'sessions.db'}"
    async with (
        serving(models_dir, store=store, checkpoint_interval=LONG) as one,
        serving(models_dir, store=store, checkpoint_interval=LONG) as two,
    ):
        yield one, two


async def refusals(local: Local, model: str, session: str) -> list[Failure]:
    """What the calls say that need the live state of a session which is elsewhere."""
    caller = Caller(local.channel)
    fork = sessions.ForkSessionRequest(model=model, session_id=session, fork_id=fresh_id())
    forecast = pb.ForecastRequest(model=model, session_id=session, horizon=1)
    return [
        await failing(caller.sessions.ForkSession(fork)),
        await failing(
            caller.sessions.SnapshotSession(sessions.SnapshotSessionRequest(model=model, session_id=session))
        ),
        await failing(caller.sessions.FlushSession(sessions.FlushSessionRequest(model=model, session_id=session))),
        await failing(everything(caller.inference.Forecast(forecast))),
    ]


async def test_another_servers_session_is_described_and_not_read(pair: tuple[Local, Local]) -> None:
    one, two = pair
    session = fresh_id()
    async with Speaker(one.channel, MODEL) as speaker:
        await speaker.open_one(session)
        await speaker.step(0, 0, numbers(1, 2))
        await speaker.flush(0)
        await speaker.step(0, 2, numbers(3))
        for failure in await refusals(two, MODEL, session):
            assert (failure.code, failure.reason) == ("ABORTED", "NOT_OWNER")
            assert failure.metadata["owner"] == one.address
        request = sessions.GetSessionRequest(model=MODEL, session_id=session)
        described = (await Caller(two.channel).sessions.GetSession(request)).session
        assert (described.position, described.residence) == (2, sessions.RESIDENCE_STORED)
        described = (await Caller(one.channel).sessions.GetSession(request)).session
        assert (described.position, described.residence) == (3, sessions.RESIDENCE_RESIDENT)
        # A refused call has moved nothing.
        assert speaker.notices == []
        assert (await speaker.step(0, 3, numbers(4))).outputs["y"].ravel().tolist() == [10]


async def test_the_owner_does_not_read_out_what_has_moved(pair: tuple[Local, Local]) -> None:
    one, two = pair
    session = fresh_id()
    async with Speaker(one.channel, MODEL) as old, Speaker(two.channel, MODEL) as new:
        await old.open_one(session)
        await old.step(0, 0, numbers(1))
        await old.flush(0)
        await new.open_one(session)
        for failure in await refusals(one, MODEL, session):
            assert (failure.reason, failure.metadata["owner"]) == ("NOT_OWNER", two.address)
        assert [notice.failure.reason for notice in old.notices] == ["SESSION_MOVED"]


async def test_a_step_moves_a_session_and_a_delete_does_not(pair: tuple[Local, Local]) -> None:
    one, two = pair
    session = fresh_id()
    first, second = Caller(one.channel), Caller(two.channel)
    await first.step(MODEL, session, numbers(1), mode=pb.OPEN_MODE_CREATE)
    stepped = await second.step(MODEL, session, numbers(2), mode=pb.OPEN_MODE_RESUME)
    assert arrays_of(stepped.outputs)["y"].ravel().tolist() == [3]
    # The first has a row of it still, which is stale.
    delete = sessions.DeleteSessionRequest(model=MODEL, session_id=session)
    assert (await failing(first.sessions.DeleteSession(delete))).reason == "NOT_OWNER"
    await second.sessions.DeleteSession(delete)
    assert (await failing(second.sessions.DeleteSession(delete))).reason == "SESSION_NOT_FOUND"


async def test_a_unary_step_that_comes_to_a_former_owner_is_not_answered(pair: tuple[Local, Local]) -> None:
    """Without a position a reply means that the step is durable: here it never will be."""
    one, two = pair
    session, first, second = fresh_id(), Caller(one.channel), Caller(two.channel)
    await first.step(MODEL, session, numbers(1), mode=pb.OPEN_MODE_CREATE)
    await second.step(MODEL, session, numbers(2), mode=pb.OPEN_MODE_RESUME)
    late = tensor("x", numbers(1000)["x"])
    request = pb.StepRequest(model=MODEL, session_id=session, inputs=[late], mode=pb.OPEN_MODE_RESUME)
    assert (await failing(first.inference.Step(request))).reason == "SESSION_MOVED"
    # It has learnt that it has no row of it: the next step takes the session back.
    stepped = await first.step(MODEL, session, numbers(4), mode=pb.OPEN_MODE_RESUME)
    assert arrays_of(stepped.outputs)["y"].ravel().tolist() == [7]


async def test_what_hibernates_here_is_read_here(pair: tuple[Local, Local]) -> None:
    one, two = pair
    session, caller = fresh_id(), Caller(one.channel)
    await caller.step(MODEL, session, numbers(1), mode=pb.OPEN_MODE_CREATE)
    await one.server.sessions.hibernate(one.table(MODEL), float("inf"))
    assert one.table(MODEL).sessions == 0
    fork = sessions.ForkSessionRequest(model=MODEL, session_id=session, fork_id=fresh_id())
    assert (await caller.sessions.ForkSession(fork)).session.position == 1
    assert (await failing(Caller(two.channel).sessions.ForkSession(fork))).reason == "NOT_OWNER"


async def test_a_server_that_left_owns_nothing(models_dir: Path, tmp_path: Path) -> None:
    store, session = f"sqlite:{tmp_path / 'sessions.db'}", fresh_id()
    async with serving(models_dir, store=store) as stays, AsyncExitStack() as stack:
        leaves = await stack.enter_async_context(serving(models_dir, store=store))
        await Caller(leaves.channel).step(MODEL, session, numbers(1, 2), mode=pb.OPEN_MODE_CREATE)
        assert [each.reason for each in await refusals(stays, MODEL, session)] == ["NOT_OWNER"] * 4
        await stack.aclose()
        fork = sessions.ForkSessionRequest(model=MODEL, session_id=session, fork_id=fresh_id())
        assert (await Caller(stays.channel).sessions.ForkSession(fork)).session.position == 2


async def test_a_forecast_of_a_dead_servers_session_takes_it_from_nobody(models_dir: Path, tmp_path: Path) -> None:
    """Whoever had it there, and connects again after the forecast, goes on with the incarnation of before."""
    store, session = f"sqlite:{tmp_path / 'sessions.db'}", fresh_id()
    writer, inputs = uuid.uuid4().bytes, {"x": np.ones((3, 2), np.float32)}
    async with serving(models_dir, store=store) as stays:
        async with serving(models_dir, store=store) as leaves, Speaker(leaves.channel, LOOP, writer) as speaker:
            opened = await speaker.open_one(session, incarnation=7)
            await speaker.step(0, 0, inputs)
            await speaker.flush(0)
        request = pb.ForecastRequest(model=LOOP, session_id=session, horizon=2, epoch=opened.epoch)
        assert len(await everything(Caller(stays.channel).inference.Forecast(request))) == 2
        async with Speaker(stays.channel, LOOP, writer) as speaker:
            again = await speaker.open_one(session, incarnation=8, seen_epochs=u64(opened.epoch))
            assert (again.position, again.created) == (3, False)


async def test_a_killed_server_that_is_back_is_no_other_server(models_dir: Path, tmp_path: Path) -> None:
    """Its last beat says for some seconds that its predecessor lives, at its own address."""
    store, session = f"sqlite:{tmp_path / 'sessions.db'}", fresh_id()
    with process(models_dir, "--store", store) as server:
        async with connected(server.address) as channel:
            await Caller(channel).step(MODEL, session, numbers(1, 2), mode=pb.OPEN_MODE_CREATE)
        server.kill()
        server.start()
        async with connected(server.address) as channel:
            fork = sessions.ForkSessionRequest(model=MODEL, session_id=session, fork_id=fresh_id())
            assert (await Caller(channel).sessions.ForkSession(fork)).session.position == 2


async def test_an_advertised_address_is_the_one_that_callers_hear(models_dir: Path, tmp_path: Path) -> None:
    store, session = f"sqlite:{tmp_path / 'sessions.db'}", fresh_id()
    async with (
        serving(models_dir, store=store, advertise="replica-1.example:8001") as one,
        serving(models_dir, store=store) as two,
    ):
        await Caller(one.channel).step(MODEL, session, numbers(1), mode=pb.OPEN_MODE_CREATE)
        found = await refusals(two, MODEL, session)
        assert {each.metadata["owner"] for each in found} == {"replica-1.example:8001"}
