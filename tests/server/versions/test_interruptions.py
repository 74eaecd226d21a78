"""What comes between on the way to another version: a store that fails, another claim, a step, a kill."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import statestream
from statestream import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import model_pb2 as model
from statestream.v1 import session_pb2
from statestream_server.stores.base import Claim
from statestream_server.stores.sqlite import SqliteStore
from tests.server.stores.compliance.asking import claim_of
from tests.server.stores.redis_server import redis_server
from tests.server.versions.counters import LONG, MODEL, TO_2, move_frame, record, started, table_of
from tests.support.arrays import tensor
from tests.support.calls import Caller, failing
from tests.support.counter import numbers, sums
from tests.support.serving import Local, process
from tests.support.speaker import Speaker

Ask = Callable[[Sequence[Claim]], Any]


def interfering(
    local: Local, monkeypatch: pytest.MonkeyPatch, interfere: Callable[[Ask, Sequence[Claim]], Any]
) -> None:
    """Lets a test have its way with the first claim that takes a session to version 2."""
    claim, met = local.server.store.claim, False

    async def wrapped(claims: Sequence[Claim]) -> Any:
        nonlocal met
        if not met and any(each.base for each in claims):
            met = True
            return await interfere(claim, claims)
        return await claim(claims)

    monkeypatch.setattr(local.server.store, "claim", wrapped)


@pytest.mark.parametrize("written", [False, True])
async def test_a_store_that_fails_on_the_way_costs_no_step(
    local: Local, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """Whether the claim arrived or not: the row goes on in its version, and moves when it is asked for again."""

    async def interfere(claim: Ask, claims: Sequence[Claim]) -> Any:
        if written:
            await claim(claims)
        raise errors.StoreUnavailable("gone for a moment")

    async with Speaker(local.channel, MODEL) as old, Speaker(local.channel, MODEL) as new:
        await started(old)
        interfering(local, monkeypatch, interfere)
        await new.send(open=move_frame(new, "a"))
        assert (await new.refused()).reason == "STORE_UNAVAILABLE"
        assert sums(await old.step(0, 2, numbers(3))) == [6]
        assert not old.notices
        await old.flush(0)
        assert ((await record(local)).version, (await record(local)).position) == (1, 3)
        opened = await new.open_one("a", 3, **TO_2)
        assert (opened.version, opened.position) == (2, 3)
        assert sums(await new.step(3, 3, numbers(1))) == [16]


async def _awaited(call: Any) -> Any:
    return await call


def _step(session: str, position: int, value: float) -> pb.StepRequest:
    inputs = [tensor(name, array) for name, array in numbers(value).items()]
    return pb.StepRequest(model=MODEL, session_id=session, position=position, inputs=inputs)


def sums_of(response: pb.StepResponse) -> list[float]:
    return np.frombuffer(response.outputs[0].data, "<f4").tolist()


async def test_a_step_without_a_stream_that_meets_a_move(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a claim is on its way nothing is answered; what meant the row of version 1 is to be sent again."""
    caller, reached, go_on = Caller(local.channel), asyncio.Event(), asyncio.Event()

    async def interfere(claim: Ask, claims: Sequence[Claim]) -> Any:
        reached.set()
        await go_on.wait()
        return await claim(claims)

    await caller.step(MODEL, "a", numbers(1, 2), version=1)
    row = table_of(local, 1).rows_of("")["a"]
    interfering(local, monkeypatch, interfere)
    request = session_pb2.OpenSessionRequest(model=MODEL, session_id="a", **TO_2)
    moving = asyncio.create_task(_awaited(caller.sessions.OpenSession(request)))
    await reached.wait()
    step = asyncio.create_task(_awaited(caller.inference.Step(_step("a", 2, 1))))
    assert table_of(local, 1).claiming[row]
    # A call behind the step is answered: so the step has arrived, and waits.
    await caller.models.ListModels(model.ListModelsRequest())
    assert not step.done()
    go_on.set()
    assert (await moving).session.version == 2
    assert (await failing(step)).reason == "SESSION_MOVED"
    answer = await caller.inference.Step(_step("a", 2, 1))
    assert (answer.version, answer.position, sums_of(answer)) == (2, 3, [13])


async def test_a_claim_that_comes_on_the_way_wins(local: Local, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another server claims the session first: it has version 1 and every saved step, we answer no more."""
    other = SqliteStore(url.removeprefix("sqlite:"))
    await other.start()

    async def interfere(claim: Ask, claims: Sequence[Claim]) -> Any:
        (taken,) = await other.claim([claim_of(claims[0].key, incarnation=1 << 51)])
        assert taken.record is not None
        assert (taken.record.version, taken.record.position) == (1, 2)
        return await claim(claims)

    async with Speaker(local.channel, MODEL) as speaker:
        await started(speaker)
        await speaker.flush(0)
        interfering(local, monkeypatch, interfere)
        assert (await speaker.not_opened("a", 1, **TO_2)).reason == "SESSION_MOVED"
        assert not table_of(local, 1).sessions
        assert not table_of(local, 2).sessions
        assert (await record(local)).version == 1
    await other.close()


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.service)])
def any_url(request: pytest.FixtureRequest, url: str, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield url
        return
    with redis_server(tmp_path) as server:
        yield server.url


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["interval", "sync"])
async def test_sigkill_right_after_an_upgrade(both: Path, any_url: str, mode: str) -> None:
    """What version 1 applied stays applied by version 1, what came after by version 2; the caller sees nothing."""
    options = ("--store", any_url, "--durability", mode, "--checkpoint-interval", str(LONG), "--log-level", "warning")
    with process(both, *options) as server, statestream.connect(server.address) as client:
        first = client.session(MODEL, "a", version=1)
        assert first.step([[1.0], [2.0]]).ravel().tolist() == [1, 3]
        first.close()
        session = client.session(MODEL, "a", upgrade=2)
        server.kill()
        server.start()
        assert (session.version, session.position) == (2, 2)
        assert session.step([1.0]).tolist() == [13]
        server.kill()
        server.start()
        assert session.step([2.0]).tolist() == [33]
        with pytest.raises(errors.AlreadyOpen, match="is open in version 2"):
            client.session(MODEL, "a", version=1)
        with client.session(MODEL, "a", mode="resume") as again:
            assert (again.version, again.position) == (2, 4)
