"""Express: unary steps of sessions that are here, taken without a wait, many as one; and what may come between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from statestream.contract import errors
from statestream.v1 import inference_pb2 as pb
from statestream_server.engine.scheduler import Costs
from statestream_server.sessions.unary import Unary
from statestream_server.settings import Durability
from tests.support import serving
from tests.support.arrays import array_of, tensor
from tests.support.calls import DEADLINE, Caller, failing
from tests.support.counter import numbers
from tests.support.serving import Local
from tests.support.speaker import Speaker

MODEL = "counter"


@pytest.fixture(params=serving.EDGES)
async def local(models_dir: Path, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Local]:
    """A server of each edge, with a store that outlives it and that nobody writes to unless somebody waits for it."""
    store = f"sqlite:{tmp_path / 'sessions.db'}"
    async with serving.serving(models_dir, store=store, checkpoint_interval=60.0, edge=request.param) as local:
        yield local


def step(session: str, value: float, **more: Any) -> pb.StepRequest:
    return pb.StepRequest(model=MODEL, session_id=session, inputs=[tensor("x", numbers(value)["x"])], **more)


def y(response: pb.StepResponse) -> list[float]:
    return list(array_of(response.outputs[0]).ravel().tolist())


@pytest.fixture
async def opened(local: Local, monkeypatch: pytest.MonkeyPatch) -> Caller:
    """A caller of sessions a, b and c, each at position 1; from now on no step goes the long way."""
    caller = Caller(local.channel)
    await asyncio.gather(*(caller.step(MODEL, session, numbers(1)) for session in "abc"))

    async def long(*_: Any, **__: Any) -> None:
        raise AssertionError("a step as usual went the long way")

    monkeypatch.setattr(Unary, "target", long)
    # However long the first runs took, three rows fit a batch.
    monkeypatch.setattr(Costs, "rows", lambda self, steps, *, most: most)
    return caller


async def test_steps_of_one_moment_are_one_batch(local: Local, opened: Caller) -> None:
    statistics = local.server.engine.statistics
    with local.engine_held():
        calls = [opened.inference.Step(step(session, 2, position=1), timeout=DEADLINE) for session in "abc"]
        await local.until(lambda: local.server.engine.queued == 3)
        batches = statistics.batches
    answers = await asyncio.gather(*calls)
    assert [y(answer) for answer in answers] == [[3], [3], [3]]
    assert [(answer.position, answer.durable_position) for answer in answers] == [(2, 1)] * 3
    assert all(answer.epoch and answer.version for answer in answers)
    assert statistics.batches == batches + 1
    assert not local.server.budgets.steps.held


async def test_chunks_of_several_steps_and_names_of_calls(local: Local, opened: Caller) -> None:
    """Each with its own name: the one that is repeated is answered again, the others go on."""
    steps = [
        pb.StepRequest(model=MODEL, session_id=session, inputs=[tensor("x", numbers(*values)["x"])], request_id=name)
        for session, values, name in (("a", (1, 2), "one"), ("b", (5,), ""), ("c", (7, 8), "three"))
    ]
    answers = await asyncio.gather(*(opened.inference.Step(each, timeout=DEADLINE) for each in steps))
    assert [y(answer) for answer in answers] == [[2, 4], [6], [8, 16]]
    assert [answer.durable_position for answer in answers] == [3, 2, 3]
    table = local.table(MODEL)
    named = [bool(table.request[table.rows_of("")[session]]) for session in "abc"]
    assert named == [True, False, True]


async def test_a_call_that_is_repeated_goes_the_long_way(local: Local) -> None:
    caller = Caller(local.channel)
    await caller.step(MODEL, "a", numbers(1))
    for _ in range(2):
        assert y(await caller.inference.Step(step("a", 2, request_id="again"), timeout=DEADLINE)) == [3]
    for _ in range(2):
        assert y(await caller.inference.Step(step("a", 3, position=2), timeout=DEADLINE)) == [6]
    assert y(await caller.inference.Step(step("a", 3, position=2), timeout=DEADLINE)) == [6]
    gap = await failing(caller.inference.Step(step("a", 3, position=9), timeout=DEADLINE))
    assert (gap.reason, gap.metadata["expected_position"]) == ("POSITION_GAP", "3")


async def test_a_call_that_is_repeated_behind_another_ones_is_not_taken_for_that(local: Local) -> None:
    """Nor applied twice: on the quick way, the long way, and from the store, whose bytes the other call may share."""
    caller = Caller(local.channel)
    for session, between in (("a", {}), ("b", {"position": 2}), ("c", {"mode": pb.OPEN_MODE_RESUME})):
        await caller.step(MODEL, session, numbers(1))
        named = step(session, 2, request_id="mine")
        assert y(await caller.inference.Step(named, timeout=DEADLINE)) == [3]
        assert y(await caller.inference.Step(step(session, 2, **between), timeout=DEADLINE)) == [5]
        for _ in range(2):
            late = await failing(caller.inference.Step(named, timeout=DEADLINE))
            assert (late.reason, late.metadata["expected_position"]) == ("ALREADY_APPLIED", "3")
            assert "a new request_id" in late.message
        assert y(await caller.inference.Step(step(session, 1, request_id="next"), timeout=DEADLINE)) == [6]
        assert y(await caller.inference.Step(step(session, 1, request_id="next"), timeout=DEADLINE)) == [6]


async def test_a_step_behind_one_that_was_just_taken_comes_behind_it(local: Local) -> None:
    """Two calls of one session in one moment: the second has to wait, and is applied where the first one ends."""
    caller = Caller(local.channel)
    await caller.step(MODEL, "a", numbers(1))
    answers = await asyncio.gather(*(caller.inference.Step(step("a", 1), timeout=DEADLINE) for _ in range(5)))
    assert sorted(y(answer)[0] for answer in answers) == [2, 3, 4, 5, 6]
    assert sorted(answer.position for answer in answers) == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("durable", [False, True])
async def test_a_session_that_goes_before_its_chunk_runs_is_not_stepped(
    local: Local, opened: Caller, durable: bool
) -> None:
    """What was taken under a claim runs under it or not at all, and nothing is left of it."""
    table, engine = local.table(MODEL), local.server.engine
    row = np.asarray([table.rows_of("")["a"]])
    turn, engine._turn = engine._turn, lambda: None
    call = opened.inference.Step(step("a", 2, **({} if durable else {"position": 1})), timeout=DEADLINE)
    await local.until(lambda: local.server.budgets.steps.held)
    local.server.evictions.drop(table, row, errors.SessionMoved("another server took the session over"))
    engine._turn = turn
    turn()
    assert (await failing(call)).reason == "SESSION_MOVED"
    assert not local.server.budgets.steps.held


async def test_a_step_waits_for_a_claim_that_is_on_its_way(local: Local) -> None:
    caller = Caller(local.channel)
    await caller.step(MODEL, "a", numbers(1))
    async with Speaker(local.channel, MODEL) as speaker:
        with local.engine_held():
            call = caller.inference.Step(step("a", 2, position=1), timeout=DEADLINE)
            await local.until(lambda: local.server.engine.queued == 1)
            opening = asyncio.create_task(speaker.open_one("a"))
            await local.until(lambda: local.table(MODEL).claiming.any())
        assert y(await call) == [3]
        assert (await opening).position == 2


@pytest.mark.parametrize("why", ["cancelled", "late"])
async def test_a_call_that_is_over_holds_nothing(local: Local, opened: Caller, why: str) -> None:
    """Its chunk is applied all the same; the next one goes on behind it."""
    with local.engine_held():
        call = opened.inference.Step(step("a", 2, position=1), timeout=0.2 if why == "late" else DEADLINE)
        await local.until(lambda: local.server.engine.queued)
        if why == "late":
            assert (await _code(call)) == "DEADLINE_EXCEEDED"
        else:
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await asyncio.sleep(0.05)  # The server hears of it.
    await local.until(lambda: not local.server.budgets.steps.held)
    assert y(await opened.inference.Step(step("a", 3, position=2), timeout=DEADLINE)) == [6]


async def test_steps_that_must_be_durable_are_saved_together_or_refused(
    local: Local, opened: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves, save = 0, local.server.store.save

    async def counted(records: Any) -> Any:
        nonlocal saves
        saves += 1
        return await save(records)

    monkeypatch.setattr(local.server.store, "save", counted)
    with local.engine_held():
        calls = [opened.inference.Step(step(session, 2), timeout=DEADLINE) for session in "abc"]
        await local.until(lambda: local.server.engine.queued == 3)
    assert [answer.durable_position for answer in await asyncio.gather(*calls)] == [2, 2, 2]
    assert saves == 1

    async def away(records: Any) -> Any:
        raise errors.StoreUnavailable("the store is away")

    monkeypatch.setattr(local.server.store, "save", away)
    refused = await failing(opened.inference.Step(step("a", 2), timeout=DEADLINE))
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
    assert not local.server.budgets.steps.held
    monkeypatch.setattr(local.server.store, "save", save)


async def test_a_save_that_fails_unexpectedly_costs_the_steps_of_other_models_nothing(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller, flush = Caller(local.channel), local.server.checkpointer.flush_each
    one = {"x": np.ones((1, 2), np.float32)}
    await asyncio.gather(caller.step(MODEL, "a", numbers(1)), caller.step("gru", "a", one))

    async def failing_for_one(table: Any, rows: Any) -> Any:
        if table is local.table("gru"):
            raise RuntimeError("a fault of ours")
        return await flush(table, rows)

    monkeypatch.setattr(local.server.checkpointer, "flush_each", failing_for_one)
    gru = pb.StepRequest(model="gru", session_id="a", inputs=[tensor("x", one["x"])])
    with local.engine_held():
        calls = [caller.inference.Step(each, timeout=DEADLINE) for each in (gru, step("a", 2))]
        await local.until(lambda: local.server.engine.queued == 2)
    assert (await failing(calls[0])).reason == "INTERNAL"
    assert y(await calls[1]) == [3]
    assert not local.server.budgets.steps.held


async def test_a_repeated_call_that_waits_never_gets_the_reply_of_another_session(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own may be acknowledged by a later call, and swept, before it may leave."""
    async with serving.serving(
        models_dir, store=f"sqlite:{tmp_path / 'sessions.db'}", durability=Durability.SYNC
    ) as local:
        caller, held, save = Caller(local.channel), asyncio.Event(), local.server.store.save
        await asyncio.gather(*(caller.step(MODEL, session, numbers(1)) for session in "ab"))

        async def waiting(records: Any) -> Any:
            await held.wait()
            return await save(records)

        monkeypatch.setattr(local.server.store, "save", waiting)
        table, calls = local.table(MODEL), list[Any]()
        asked = [
            step("a", 2, position=1),
            step("a", 2, position=1),
            step("b", 40, position=1),
            step("a", 3, position=2),
        ]
        for count, each in enumerate(asked, 1):
            calls.append(caller.inference.Step(each, timeout=DEADLINE))
            await local.until(lambda count=count: len(local.server.checkpointer._waiting) == count)
        table.replies._sweep()
        held.set()
        assert (await failing(calls[1])).reason == "ALREADY_APPLIED"
        assert [y(await calls[place]) for place in (0, 2, 3)] == [[3], [41], [6]]


async def test_a_chunk_that_is_refused_says_why(local: Local, opened: Caller) -> None:
    nan = await failing(opened.inference.Step(step("a", np.nan, position=1), timeout=DEADLINE))
    assert (nan.code, nan.reason) == ("FAILED_PRECONDITION", "NON_FINITE_STATE")
    assert y(await opened.inference.Step(step("a", 2, position=1), timeout=DEADLINE)) == [3]


async def _code(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return str(caught.value.code().name)


async def test_they_are_counted_like_other_calls(local: Local, opened: Caller) -> None:
    requests = local.server.requests

    def counted(code: str) -> int:
        kind = requests.kinds.get(("statestream.v1.InferenceService/Step", MODEL, code))
        return sum(kind.counts) if kind else 0

    answered = counted("OK")
    assert answered == 3
    await opened.inference.Step(step("a", 2), timeout=DEADLINE)
    await failing(opened.inference.Step(step("c", float("nan")), timeout=DEADLINE))
    await local.until(lambda: counted("FAILED_PRECONDITION") == 1)  # Counted once the answer is on its way.
    with local.engine_held():
        call = opened.inference.Step(step("b", 2), timeout=DEADLINE)
        await local.until(lambda: local.server.engine.queued == 1)
        assert requests.under_way == 1
        call.cancel()
        await local.until(lambda: counted("CANCELLED") == 1)
    await local.until(lambda: not requests.under_way)
    assert counted("OK") == answered + 1
    assert sum(sum(kind.counts) for kind in requests.kinds.values()) == answered + 3


@pytest.mark.parametrize("edge", serving.EDGES)
async def test_a_step_at_a_server_that_lost_the_session_is_applied_where_it_stands(
    models_dir: Path, tmp_path: Path, edge: str
) -> None:
    """The row that is left there stands where the session was long ago, and nobody told it so."""
    store = f"sqlite:{tmp_path / 'sessions.db'}"
    async with (
        serving.serving(models_dir, store=store, edge=edge) as one,
        serving.serving(models_dir, store=store, edge=edge) as other,
    ):
        here, there = Caller(one.channel), Caller(other.channel)
        await here.step(MODEL, "a", numbers(1))
        for _ in range(3):  # Without a position: each is in the store before it is answered.
            await there.inference.Step(step("a", 1), timeout=DEADLINE)
        answer = await here.inference.Step(step("a", 1, position=4), timeout=DEADLINE)
        assert (answer.position, y(answer)) == (5, [5])
        gap = await failing(there.inference.Step(step("a", 1, position=9), timeout=DEADLINE))
        assert gap.reason == "POSITION_GAP"
