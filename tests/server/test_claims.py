"""Between a claim and its answer: a cancel, an error of the store, a kill, at every point; and who waits for whom."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import grpc
import numpy as np
import pytest

from statestream import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import session_pb2
from statestream_server.edges.grpc import open_frames
from statestream_server.sessions import records, writes
from statestream_server.sessions.ownership import claims
from statestream_server.sessions.ownership.placement import Promise
from statestream_server.sessions.ownership.turns import Turns
from statestream_server.settings import Durability
from statestream_server.stores.base import TENANT, Key
from tests.support import serving as support
from tests.support.arrays import tensor, u32
from tests.support.calls import DEADLINE, Caller, Failure, connected, failing, failure_of
from tests.support.counter import numbers, sums
from tests.support.serving import Local, process, serving
from tests.support.speaker import Refusal, Speaker, next_incarnation

MODEL = "counter"
LONG = 600.0
Point = Literal["before", "after"]
POINTS: Sequence[Point] = ("before", "after")


class Stop:
    """One call of one of the store's methods: it stops before or after its work, until it goes on or fails."""

    def __init__(self, store: Any, method: str, at: Point, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = asyncio.Event()
        self._go: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        work, met = getattr(store, method), False

        async def stopping(*args: Any, **kwargs: Any) -> Any:
            nonlocal met
            if met:
                return await work(*args, **kwargs)
            met = True
            found = await work(*args, **kwargs) if at == "after" else None
            self.reached.set()
            await self._go
            return found if at == "after" else await work(*args, **kwargs)

        monkeypatch.setattr(store, method, stopping)

    def go_on(self) -> None:
        self._go.set_result(None)

    def fail(self) -> None:
        self._go.set_exception(errors.StoreUnavailable("the test took the store away"))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'sessions.db'}"


@pytest.fixture
async def local(models_dir: Path, url: str) -> AsyncIterator[Local]:
    """A server that saves when it is told to."""
    async with serving(models_dir, store=url, checkpoint_interval=LONG) as local:
        yield local


async def goes_on(models_dir: Path, url: str, session: str, position: int, total: float) -> None:
    """Another server takes a session over where it stands: every step is in its state, once."""
    async with serving(models_dir, store=url) as other, Speaker(other.channel, MODEL) as speaker:
        opened = await speaker.open_one(session, mode=pb.OPEN_MODE_RESUME)
        assert opened.position == position
        assert sums(await speaker.step(0, position, numbers(1))) == [total + 1]


def open_call(caller: Caller, session: str = "a", **more: Any) -> Any:
    return caller.sessions.OpenSession(session_pb2.OpenSessionRequest(model=MODEL, session_id=session, **more))


@pytest.mark.parametrize("at", POINTS)
async def test_a_claim_whose_answer_is_lost_takes_nothing_from_the_session(
    models_dir: Path, url: str, local: Local, monkeypatch: pytest.MonkeyPatch, at: Point
) -> None:
    """Whether the store decided it or not: the row goes on, is saved, and moves when it is asked for again."""
    async with Speaker(local.channel, MODEL) as speaker:
        await speaker.open_one("a")
        await speaker.step(0, 0, numbers(1, 2))
        stop = Stop(local.server.store, "claim", at, monkeypatch)
        call = open_call(Caller(local.channel))
        async with asyncio.timeout(DEADLINE):
            await stop.reached.wait()
        await speaker.send_chunk([0], [2], [numbers(4)])
        stop.fail()
        assert (await failing(call)).reason == "STORE_UNAVAILABLE"
        assert [sums(answer) for answer in await speaker.answers(1)] == [[7]]
        assert not speaker.notices
        assert await speaker.flush(0) == {0: 3}
        await speaker.step(0, 3, numbers(8))
        again = await open_call(Caller(local.channel))
        assert (again.session.position, again.created) == (4, False)
        await speaker.unasked(lambda: [notice.failure.reason for notice in speaker.notices] == ["SESSION_MOVED"])
    await local.server.checkpointer.checkpoint()
    await goes_on(models_dir, url, "a", 4, 15)


async def test_a_row_whose_claim_the_store_has_forgotten_is_saved_again(
    url: str, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is emptied, and found so, after it decided the claim and before the row is there."""
    store, lease, resets = local.server.store, local.server.lease, local.server.lease.resets
    async with Speaker(local.channel, MODEL) as speaker:
        await speaker.open_one("a")
        await speaker.step(0, 0, numbers(1, 2))
        await speaker.flush(0)
        table = local.table(MODEL)
        local.server.sessions.hibernation.hibernate(table, np.asarray([table.rows_of("")["a"]]))
        stop = Stop(store, "claim", "after", monkeypatch)
        call = open_call(Caller(local.channel))
        async with asyncio.timeout(DEADLINE):
            await stop.reached.wait()
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:"))) as connection, connection:
            connection.execute("DELETE FROM session")
        monkeypatch.setattr(store, "generation", _another_generation)
        await lease.refresh()
        assert lease.resets == resets + 1
        stop.go_on()
        assert (await call).session.position == 2
    await local.server.checkpointer.checkpoint()
    (record,) = await store.load([Key(TENANT, MODEL, "a")])
    assert record is not None
    assert record.position == 2


async def _another_generation() -> str:
    return "another"


@pytest.mark.parametrize("at", POINTS)
async def test_a_claim_that_is_decided_late_takes_nothing_from_the_session(
    models_dir: Path, url: str, local: Local, monkeypatch: pytest.MonkeyPatch, at: Point
) -> None:
    """The store wakes after its caller gave up, and after a later claim: the row that both went on from is current."""
    claim, late = local.server.store.claim, list[Any]()

    async def lost(claims: Any) -> Any:
        late.append(claims)
        raise errors.StoreUnavailable("no answer in time")

    async with Speaker(local.channel, MODEL) as speaker:
        await speaker.open_one("a")
        await speaker.step(0, 0, numbers(1, 2))
        with monkeypatch.context() as patch:
            patch.setattr(local.server.store, "claim", lost)
            assert (await failing(open_call(Caller(local.channel)))).reason == "STORE_UNAVAILABLE"
        if at == "after":
            await claim(late[0])
        await speaker.step(0, 2, numbers(4))
        assert await speaker.flush(0) == {0: 3}
        if at == "before":
            await claim(late[0])
        await speaker.step(0, 3, numbers(8))
        await local.server.lease.check(local.table(MODEL), np.asarray([local.table(MODEL).rows_of("")["a"]]))
        assert (await speaker.open_one("a", 1, mode=pb.OPEN_MODE_RESUME)).position == 4
    await local.server.checkpointer.checkpoint()
    await goes_on(models_dir, url, "a", 4, 15)


async def test_a_late_claim_spares_a_session_that_woke_meanwhile(
    models_dir: Path, url: str, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was asked while the session slept here; its stream woke and stepped it before the store decided."""
    claim, late = local.server.store.claim, list[Any]()

    async def lost(claims: Any) -> Any:
        late.append(claims)
        raise errors.StoreUnavailable("no answer in time")

    async with Speaker(local.channel, MODEL) as speaker:
        await speaker.open_one("a")
        await speaker.step(0, 0, numbers(1, 2))
        await speaker.flush(0)
        await local.server.sessions.hibernate(local.table(MODEL), float("inf"))
        with monkeypatch.context() as patch:
            patch.setattr(local.server.store, "claim", lost)
            assert (await failing(open_call(Caller(local.channel)))).reason == "STORE_UNAVAILABLE"
        await speaker.step(0, 2, numbers(4))
        await claim(late[0])
        assert await speaker.flush(0) == {0: 3}
        assert not speaker.notices
    await goes_on(models_dir, url, "a", 3, 7)


async def test_a_stream_hears_of_the_claim_of_a_session_that_sleeps(local: Local) -> None:
    async with Speaker(local.channel, MODEL) as speaker, Speaker(local.channel, MODEL) as other:
        await speaker.open_one("a", 3)
        await speaker.step(3, 0, numbers(1, 2))
        await speaker.flush(3)
        await local.server.sessions.hibernate(local.table(MODEL), float("inf"))
        assert (await other.open_one("a")).position == 2
        await speaker.unasked(lambda: speaker.notices)
        assert [(n.handle, n.failure.reason) for n in speaker.notices] == [(3, "SESSION_MOVED")]


@pytest.mark.parametrize("at", POINTS)
async def test_what_the_store_grants_is_installed_although_nobody_waits_for_it(
    models_dir: Path, url: str, local: Local, monkeypatch: pytest.MonkeyPatch, at: Point
) -> None:
    """The caller left between claim and answer: the session is nobody's, who had it hears so, and it has every step."""
    table = local.table(MODEL)
    async with Speaker(local.channel, MODEL) as speaker:
        await speaker.open_one("a")
        await speaker.step(0, 0, numbers(1, 2))
        epoch = int(table.epoch[table.rows_of("")["a"]])
        stop = Stop(local.server.store, "claim", at, monkeypatch)
        call = open_call(Caller(local.channel))
        async with asyncio.timeout(DEADLINE):
            await stop.reached.wait()
        call.cancel()
        stop.go_on()
        await speaker.unasked(lambda: [notice.failure.reason for notice in speaker.notices] == ["SESSION_MOVED"])
    row = table.rows_of("")["a"]
    assert (int(table.owner[row]), bool(table.claiming[row])) == (0, False)
    assert int(table.epoch[row]) > epoch
    await local.server.checkpointer.checkpoint()
    await goes_on(models_dir, url, "a", 2, 3)


@pytest.mark.parametrize("at", POINTS)
async def test_a_stream_that_ends_while_it_opens_leaves_the_sessions_to_nobody(
    local: Local, monkeypatch: pytest.MonkeyPatch, at: Point
) -> None:
    table = local.table(MODEL)
    stop = Stop(local.server.store, "claim", at, monkeypatch)
    async with Speaker(local.channel, MODEL) as speaker:
        state = [tensor("s", np.full((1, 1), 5, np.float32))]
        await speaker.send(
            open=pb.OpenFrame(
                model=MODEL, handles=u32(0), ids=["a"], writer=speaker.writer, incarnation=1, initial_states=state
            )
        )
        async with asyncio.timeout(DEADLINE):
            await stop.reached.wait()
    await local.until(lambda: not len(local.server.streams))
    stop.go_on()
    await local.until(lambda: "a" in table.rows_of(""))
    assert int(table.owner[table.rows_of("")["a"]]) == 0
    assert sums_of(await Caller(local.channel).step(MODEL, "a", numbers(1))) == [6]


def sums_of(response: pb.StepResponse) -> list[float]:
    return np.frombuffer(response.outputs[0].data, "<f4").tolist()


async def begun(caller: Caller, kind: str) -> Callable[[], Awaitable[Any]]:
    """A call that makes session "b" at sum 30, of 3 steps, and what it needs."""
    for value in (5, 10, 15):
        await caller.step(MODEL, "origin", numbers(value))
    if kind == "fork":
        fork = session_pb2.ForkSessionRequest(model=MODEL, session_id="origin", fork_id="b")
        return lambda: caller.sessions.ForkSession(fork)
    snapshot = session_pb2.SnapshotSessionRequest(model=MODEL, session_id="origin")
    data = (await caller.sessions.SnapshotSession(snapshot)).snapshot
    if kind == "replace":
        await caller.step(MODEL, "b", numbers(1, 1))
    restore = session_pb2.RestoreSessionRequest(model=MODEL, session_id="b", snapshot=data)
    return lambda: caller.sessions.RestoreSession(restore)


@pytest.mark.parametrize("at", POINTS)
@pytest.mark.parametrize("kind", ["fork", "restore", "replace"])
async def test_a_copy_is_whole_or_not_there_and_may_be_asked_for_again(
    models_dir: Path, url: str, local: Local, monkeypatch: pytest.MonkeyPatch, kind: str, at: Point
) -> None:
    """The store fails on the way of a fork or a restore: never is there a session without its state."""
    caller = Caller(local.channel)
    ask = await begun(caller, kind)
    stop = Stop(local.server.store, "claim", at, monkeypatch)
    asked = asyncio.ensure_future(ask())
    async with asyncio.timeout(DEADLINE):
        await stop.reached.wait()
    stop.fail()
    assert (await failing(asked)).reason == "STORE_UNAVAILABLE"
    (record,) = await local.server.store.load([Key(TENANT, MODEL, "b")])
    left = {"before": {"replace": 2}, "after": dict.fromkeys(["fork", "restore", "replace"], 3)}[at].get(kind)
    assert (record and record.position) == left
    await ask()
    assert sums_of(await caller.step(MODEL, "b", numbers(1))) == [31]
    await local.server.checkpointer.checkpoint()
    await goes_on(models_dir, url, "b", 4, 31)


_KILLED = """
import os, signal, sys
from statestream_server.stores import sqlite
claim, at = sqlite.SqliteStore.claim, %r
async def killed(self, claims):
    if any(each.blob for each in claims):
        if at == "after":
            await claim(self, claims)
        os.kill(os.getpid(), signal.SIGKILL)
    return await claim(self, claims)
sqlite.SqliteStore.claim = killed
from statestream_server.cli import serve
sys.argv[0] = "statestream serve"
serve()
"""


@pytest.mark.slow
@pytest.mark.parametrize("at", POINTS)
@pytest.mark.parametrize("kind", ["states", "fork", "replace"])
async def test_sigkill_at_a_claim_leaves_no_session_without_its_state(
    models_dir: Path, url: str, monkeypatch: pytest.MonkeyPatch, kind: str, at: Point
) -> None:
    """The process dies right before or after the store has the claim; the same call is made again."""
    options = ("--store", url, "--checkpoint-interval", "0.05", "--log-level", "warning")
    normal = support._SERVE
    with process(models_dir, *options) as server:
        async with connected(server.address) as channel:
            caller = Caller(channel)
            await begun(caller, kind)
            await caller.sessions.FlushSession(session_pb2.FlushSessionRequest(model=MODEL, session_id="origin"))
        server.stop()
        monkeypatch.setattr(support, "_SERVE", _KILLED % at)
        server.start()
        async with connected(server.address) as channel:
            with contextlib.suppress(AssertionError, grpc.aio.AioRpcError):
                await _make(channel, kind)
        server.wait()
        monkeypatch.setattr(support, "_SERVE", normal)
        server.start()
        async with connected(server.address) as channel:
            caller = Caller(channel)
            if kind == "replace" and at == "before":
                ask = session_pb2.GetSessionRequest(model=MODEL, session_id="b")
                assert (await caller.sessions.GetSession(ask)).session.position == 2
            await _make(channel, kind)
            assert sums_of(await caller.step(MODEL, "b", numbers(1))) == [31]


async def _make(channel: Any, kind: str) -> None:
    """Makes session "b" at sum 30."""
    caller = Caller(channel)
    if kind == "states":
        async with Speaker(channel, MODEL) as speaker:
            await speaker.open_one("b", initial_states=[tensor("s", np.full((1, 1), 30, np.float32))])
        return
    await (await _again(caller, kind))()


async def _again(caller: Caller, kind: str) -> Callable[[], Awaitable[Any]]:
    if kind == "fork":
        fork = session_pb2.ForkSessionRequest(model=MODEL, session_id="origin", fork_id="b")
        return lambda: caller.sessions.ForkSession(fork)
    snapshot = session_pb2.SnapshotSessionRequest(model=MODEL, session_id="origin")
    data = (await caller.sessions.SnapshotSession(snapshot)).snapshot
    restore = session_pb2.RestoreSessionRequest(model=MODEL, session_id="b", snapshot=data)
    return lambda: caller.sessions.RestoreSession(restore)


async def test_a_unary_step_runs_under_the_claim_that_it_came_under_or_not_at_all(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller, table = Caller(local.channel), local.table(MODEL)
    await caller.step(MODEL, "a", numbers(1))
    async with Speaker(local.channel, MODEL) as speaker:
        stop = Stop(local.server.store, "claim", "after", monkeypatch)
        opening = asyncio.create_task(speaker.open_one("a"))
        async with asyncio.timeout(DEADLINE):
            await stop.reached.wait()
        request = pb.StepRequest(model=MODEL, session_id="a", position=1, inputs=[tensor("x", numbers(5)["x"])])
        step = caller.inference.Step(request, timeout=DEADLINE)
        await local.until(lambda: local.server.unary._order)
        stop.go_on()
        assert (await failing(step)).reason == "SESSION_MOVED"
        assert (await opening).position == 1
        assert sums(await speaker.step(0, 1, numbers(2))) == [3]
    assert int(table.position[table.rows_of("")["a"]]) == 2


@pytest.mark.parametrize("at", POINTS)
@pytest.mark.parametrize("method", ["save", "claim"])
@pytest.mark.parametrize("mode", [Durability.NONE, Durability.INTERVAL, Durability.SYNC])
async def test_one_stream_that_opens_a_session_twice_is_answered_at_both_handles(
    models_dir: Path, url: str, monkeypatch: pytest.MonkeyPatch, mode: Durability, method: str, at: Point
) -> None:
    """The older handle hears that the session moved, whatever waits for the store at that moment."""
    async with (
        serving(models_dir, store=url, durability=mode, checkpoint_interval=0.05) as local,
        Speaker(local.channel, MODEL) as speaker,
    ):
        await speaker.open_one("a", 0)
        saves = method == "save" and mode != Durability.NONE
        stop = Stop(local.server.store, method, at, monkeypatch) if saves or method == "claim" else None
        await speaker.send_chunk([0], [0], [numbers(1)])
        table = local.table(MODEL)
        row = table.rows_of("")["a"]
        await local.until(lambda: int(table.position[row]) == 1)
        opening = asyncio.create_task(
            speaker.send(
                open=pb.OpenFrame(
                    model=MODEL, handles=u32(1), ids=["a"], writer=speaker.writer, incarnation=next_incarnation()
                )
            )
        )
        await opening
        if stop is not None:
            async with asyncio.timeout(DEADLINE):
                await stop.reached.wait()
            if method == "save":
                await local.until(lambda: int(table.handle[row]) == 1)
            stop.go_on()
        await speaker.unasked(lambda: any(n.handle == 0 for n in speaker.notices))
        assert [(n.handle, n.failure.reason) for n in speaker.notices] == [(0, "SESSION_MOVED")]
        opened = None
        while opened is None or opened.WhichOneof("response") != "opened":
            opened = await speaker.read()
            assert opened is not None
        assert not opened.opened.errors
        await speaker.send_chunk([1], [1], [numbers(2)])
        found: Any = None
        while found is None or found.handle != 1:
            (found,) = await speaker.rows(1)
        assert not isinstance(found, Refusal), found
        assert sums(found) == [3]
        assert mode != Durability.SYNC or found.durable == 2


@pytest.mark.parametrize("method", ["claim", "delete"])
async def test_nobody_waits_for_the_claim_of_another_session(
    local: Local, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """While the store thinks about one session, its stream and others open, step, copy and delete what they like."""
    caller = Caller(local.channel)
    async with Speaker(local.channel, MODEL) as speaker:
        await speaker.open("a", "b")
        await speaker.step(0, 0, numbers(1))
        stop = Stop(local.server.store, method, "before", monkeypatch)
        if method == "claim":
            await speaker.send(
                open=pb.OpenFrame(
                    model=MODEL, handles=u32(0), ids=["a"], writer=speaker.writer, incarnation=next_incarnation()
                )
            )
        else:
            await speaker.send(close=pb.CloseFrame(handles=u32(0), action=pb.CLOSE_ACTION_DELETE))
        async with asyncio.timeout(DEADLINE):
            await stop.reached.wait()
        await speaker.send_chunk([0], [1], [numbers(5)])
        assert sums(await speaker.step(1, 0, numbers(2))) == [2]
        assert (await speaker.open_one("c", 2)).created
        await speaker.close(2, delete=True)
        assert await speaker.flush(1) == {1: 1}
        await caller.step(MODEL, "d", numbers(1))
        fork = session_pb2.ForkSessionRequest(model=MODEL, session_id="d", fork_id="e")
        assert (await caller.sessions.ForkSession(fork)).session.position == 1
        await caller.sessions.DeleteSession(session_pb2.DeleteSessionRequest(model=MODEL, session_id="e"))
        stop.go_on()
        await speaker.expect("opened" if method == "claim" else "closed")
        (row,) = await speaker.rows(1)
        assert isinstance(row, Refusal) == (method == "delete")


@pytest.mark.parametrize("at", POINTS)
async def test_a_delete_whose_answer_is_lost_is_told_when_it_is_known(
    local: Local, monkeypatch: pytest.MonkeyPatch, at: Point
) -> None:
    """The caller hears STORE_UNAVAILABLE; the session goes on where it stays, and its stream hears where it is gone."""
    async with Speaker(local.channel, MODEL) as speaker:
        await speaker.open_one("a")
        await speaker.step(0, 0, numbers(1))
        stop = Stop(local.server.store, "delete", at, monkeypatch)
        ask = session_pb2.DeleteSessionRequest(model=MODEL, session_id="a")
        call = Caller(local.channel).sessions.DeleteSession(ask)
        async with asyncio.timeout(DEADLINE):
            await stop.reached.wait()
        stop.fail()
        assert (await failing(call)).reason == "STORE_UNAVAILABLE"
        if at == "before":
            assert sums(await speaker.step(0, 1, numbers(2))) == [3]
            assert not speaker.notices
        else:
            await speaker.unasked(lambda: [n.failure.reason for n in speaker.notices] == ["SESSION_NOT_FOUND"])
            assert "a" not in local.table(MODEL).rows_of("")


async def test_a_delete_does_not_take_a_session_from_a_newer_claim(models_dir: Path, url: str, local: Local) -> None:
    async with Speaker(local.channel, MODEL) as speaker, serving(models_dir, store=url) as other:
        await speaker.open_one("a")
        await speaker.step(0, 0, numbers(1))
        await speaker.flush(0)
        async with Speaker(other.channel, MODEL) as newer:
            await newer.open_one("a")
            closed = await speaker.close(0, delete=True)
            assert [failure_of(row.status).reason for row in closed.errors] == ["SESSION_MOVED"]
            assert sums(await newer.step(0, 1, numbers(2))) == [3]


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_row_that_goes_to_another_session_before_its_caller_goes_on(
    models_dir: Path, url: str, local: Local, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Memory is short: a session is opened, has to leave, and another one is promised its row in the same moment."""
    table, hibernation, look_again = (
        local.table(MODEL),
        local.server.sessions.hibernation,
        local.server.checkpointer.look_again,
    )
    promises = list[Promise]()

    def taken() -> None:
        look_again()
        if not promises:
            row = np.asarray([table.rows_of("")["a"]])
            hibernation.hibernate(table, row)
            promised = table.allocate(1)
            assert promised == row
            promises.append(Promise(table, promised))

    monkeypatch.setattr(local.server.checkpointer, "look_again", taken)
    async with asyncio.timeout(DEADLINE), Speaker(local.channel, MODEL) as speaker:
        if kind == "unary":
            first = await Caller(local.channel).step(MODEL, "a", numbers(1, 2))
            assert first.position == 2
        else:
            await speaker.open_one("a")  # It woke again before the answer left.
            assert sums(await speaker.step(0, 0, numbers(1, 2))) == [1, 3]
        assert not speaker.notices
        (row,) = promises[0].take(1).tolist()
        assert (int(table.position[row]), bool(table.dirty[row])) == (0, False)
        table.release(np.asarray([row]))
        await local.server.checkpointer.checkpoint()
    await goes_on(models_dir, url, "a", 2, 3)


async def test_a_step_whose_session_falls_asleep_before_its_turn_is_to_be_sent_again(local: Local) -> None:
    caller, table, unary = Caller(local.channel), local.table(MODEL), local.server.unary
    assert (await caller.step(MODEL, "a", numbers(1))).position == 1
    before = unary._order.take("", MODEL, ["a"])
    call = asyncio.create_task(caller.step(MODEL, "a", numbers(2)))
    await local.until(lambda: local.server.budgets.steps.held)
    local.server.sessions.hibernation.hibernate(table, np.asarray([table.rows_of("")["a"]]))
    before.end()
    assert (await failing(call)).reason == "SESSION_MOVED"
    assert (await caller.step(MODEL, "a", numbers(2))).position == 2


@pytest.mark.parametrize("mode", [Durability.INTERVAL, Durability.SYNC])
async def test_a_record_that_is_too_large_fails_its_own_session(
    models_dir: Path, url: str, monkeypatch: pytest.MonkeyPatch, mode: Durability
) -> None:
    """Others are saved as ever; once its replies are acknowledged, it is saved too, with every step."""
    monkeypatch.setattr(writes, "MAX_RECORD_BYTES", 400)
    monkeypatch.setattr(records, "_SMALL", 0)
    async with (
        serving(models_dir, store=url, durability=mode, checkpoint_interval=0.05) as local,
        Speaker(local.channel, MODEL) as speaker,
    ):
        await speaker.open("fat", "other")
        await speaker.send_chunk([0], [0], [numbers(*[1] * 200)])
        if mode == Durability.SYNC:
            refused = (await speaker.refusal()).reason
        else:
            await speaker.answers(1)
            await speaker.send(flush=pb.FlushFrame(handles=u32(0)))
            (error,) = (await speaker.expect("durable")).errors
            refused = failure_of(error.status).reason
        assert refused == "RECORD_TOO_LARGE"
        await speaker.step(1, 0, numbers(1))
        assert await speaker.flush(1) == {1: 1}
        await speaker.send_ack(0, 200)
        assert sums(await speaker.step(0, 200, numbers(1), 200)) == [201]
        assert await speaker.flush(0) == {0: 201}


async def test_turns_come_in_the_order_in_which_they_were_asked_for_each_session() -> None:
    turns, order = Turns(), list[str]()

    async def take(name: str, *ids: str) -> None:
        turn = turns.take("", "m", ids)
        try:
            await turn.come()
            order.append(name)
            await asyncio.sleep(0)
        finally:
            turn.end()

    held = turns.take("", "m", ["a"])
    tasks = [asyncio.create_task(take(ids, *ids)) for ids in ("ab", "b", "c", "bc")]
    for _ in range(5):
        await asyncio.sleep(0)
    assert order == ["c"]
    tasks[0].cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    # One that gave up passes on only what has come to it.
    assert order == ["c"]
    passed = asyncio.create_task(turns.passed([Key("", "m", "a")]))
    held.end()
    await asyncio.gather(*tasks[1:], passed)
    assert order == ["c", "b", "bc"]
    assert not turns


async def test_a_large_frame_is_opened_in_parts_of_which_one_may_fail(
    models_dir: Path, url: str, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two parts are with the store at once; one that fails takes nothing from the others; a reader leaves."""
    monkeypatch.setattr(open_frames, "_OPENED", 3)
    ids = [f"s{number}" for number in range(14)]
    async with Speaker(local.channel, MODEL) as speaker:
        asked = list[str]()
        stops: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()
        claim = local.server.store.claim

        async def claiming(wanted: Any) -> Any:
            if asked:  # The first part goes by itself.
                stops.put_nowait(stop := asyncio.get_running_loop().create_future())
                asked.append(wanted[0].key.id)
                await stop
            asked.append(wanted[0].key.id)
            return await claim(wanted)

        monkeypatch.setattr(local.server.store, "claim", claiming)
        opening = asyncio.create_task(speaker.open(*ids))
        async with asyncio.timeout(DEADLINE):
            second, third = await stops.get(), await stops.get()
            third.set_exception(errors.StoreUnavailable("the test took the store away"))
            second.set_result(None)
            for _ in range(2):
                (await stops.get()).set_result(None)
            found = await opening
        failed = {handle: one.reason for handle, one in found.items() if isinstance(one, Failure)}
        assert failed == dict.fromkeys(range(6, 9), "STORE_UNAVAILABLE")
        assert sums(await speaker.step(13, 0, numbers(1))) == [1]

    async with Speaker(local.channel, MODEL) as speaker:
        opening = asyncio.create_task(speaker.open(*(f"t{number}" for number in range(14))))
        async with asyncio.timeout(DEADLINE):
            (await stops.get()).set_result(None)
            left = [await stops.get() for _ in range(2)]
        opening.cancel()
    async with asyncio.timeout(DEADLINE):
        while len(local.server.streams):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
    for stop in left:
        stop.set_result(None)
    await local.server.tasks.finished()
    assert not local.server.sessions.turns
    # What was begun is claimed and nobody's; the rest was never asked for.
    (table,) = local.server.registry.tables(MODEL)
    assert [session for session in table.rows_of("") if session.startswith("t")] == [
        f"t{number}" for number in range(9)
    ]
    assert not table.owner.any()


async def test_two_large_claims_are_with_the_store_at_a_time_and_small_ones_pass_by(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens a million sessions does not have the lease run out, which counts from when a question left."""
    monkeypatch.setattr(claims, "FEW", 1)
    store, with_store, most = local.server.store, list[int](), 0
    claim, go_on = store.claim, asyncio.Event()

    async def claiming(asked: Any) -> Any:
        nonlocal most
        if len(asked) == 1:
            return await claim(asked)
        with_store.append(len(asked))
        most = max(most, len(with_store))
        try:
            await go_on.wait()
            return await claim(asked)
        finally:
            with_store.remove(len(asked))

    monkeypatch.setattr(store, "claim", claiming)
    async with contextlib.AsyncExitStack() as stack:
        many = [await stack.enter_async_context(Speaker(local.channel, MODEL)) for _ in range(5)]
        one = await stack.enter_async_context(Speaker(local.channel, MODEL))
        opening = [
            asyncio.create_task(speaker.open(*(f"s{number}-{n}" for n in range(3))))
            for number, speaker in enumerate(many)
        ]
        await local.until(lambda: len(with_store) == 2)
        assert (await one.open_one("alone")).created
        gone = opening.pop()
        gone.cancel()
        go_on.set()
        for found in await asyncio.gather(*opening):
            assert all(not isinstance(session, Failure) for session in found.values())
    assert most == 2


async def test_a_large_frame_makes_room_out_of_its_own_parts(
    models_dir: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More sessions than memory has, in one frame: what is open already leaves memory for the next."""
    monkeypatch.setattr(open_frames, "_OPENED", 8)
    async with (
        serving(models_dir, store=url, limits={"max_sessions": 12}) as local,
        Speaker(local.channel, MODEL) as speaker,
    ):
        opened = await speaker.open(*(f"s{number}" for number in range(60)))
        assert not [one for one in opened.values() if isinstance(one, Failure)]
        assert local.table(MODEL).sessions <= 12
        for handle in (0, 30, 59):
            assert sums(await speaker.step(handle, 0, numbers(1))) == [1]
        # Frames beside each other, each of which fills memory by itself.
        frames = [[f"t{number}-{frame}" for number in range(10)] for frame in range(3)]
        for frame, ids in enumerate(frames):
            handles = u32(*range(100 + 10 * frame, 110 + 10 * frame))
            asked: dict[str, Any] = {"model": MODEL, "writer": speaker.writer, "incarnation": next_incarnation()}
            await speaker.send(open=pb.OpenFrame(handles=handles, ids=ids, **asked))
        told = [await speaker.expect("opened") for _ in frames]
        while sum(len(one.handles) // 4 for one in told) < 30:
            told.append(await speaker.expect("opened"))
            assert not told[-1].errors


async def test_a_part_of_a_large_frame_that_fails_unexpectedly_takes_no_other_along(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sessions hear of it, the others are open."""
    monkeypatch.setattr(open_frames, "_OPENED", 3)
    open_some = local.server.sessions.open

    async def failing_once(opening: Any) -> Any:
        if "s7" in opening.ids:
            raise RuntimeError("the test broke it")
        return await open_some(opening)

    monkeypatch.setattr(local.server.sessions, "open", failing_once)
    async with Speaker(local.channel, MODEL) as speaker:
        opened = await speaker.open(*(f"s{number}" for number in range(12)))
        failed = {handle: one.reason for handle, one in opened.items() if isinstance(one, Failure)}
        assert failed == dict.fromkeys(range(6, 9), "INTERNAL")
