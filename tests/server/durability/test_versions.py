"""Sessions and the versions of their model on the server: asleep, stored, moving, killed on the way.

"counter" adds what it gets: version 1 as it comes, version 2 ten times as much, so that a sum tells which steps were
applied by which version. Version 3 has other outputs, version 4 another state.
"""

from __future__ import annotations

import asyncio
import gc
import math
import shutil
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import statestream
from statestream import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import model_pb2 as model
from statestream.v1 import session_pb2
from statestream_server.engine.table import Table
from statestream_server.settings import Durability
from statestream_server.stores.base import Key, Record
from statestream_server.stores.sqlite import SqliteStore
from tests.server.stores.compliance import claim_of
from tests.server.stores.redis_server import redis_server
from tests.support import models
from tests.support.serving import Local, process, serving
from tests.support.speaker import Answer, Caller, Opened, Refusal, Speaker, failing, next_incarnation, tensor, u32

MODEL = "counter"
LONG = 60.0
TO_2: dict[str, Any] = {"version": 2, "upgrade": True}


def numbers(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.asarray(values, np.float32)[:, None]}


def sums(answer: Answer | Refusal) -> list[float]:
    assert isinstance(answer, Answer), answer
    return answer.outputs["y"].ravel().tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Version 1; the others come as tests need them."""
    return models.write_counter(tmp_path / "models", 1)


@pytest.fixture
def both(folder: Path) -> Path:
    return models.write_counter(folder, 2, factor=10)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'sessions.db'}"


@pytest.fixture
async def local(both: Path, url: str) -> AsyncIterator[Local]:
    """A server that writes only when it is told to."""
    async with serving(both, store=url, checkpoint_interval=LONG) as local:
        yield local


async def record(local: Local, session: str = "a") -> Record:
    (found,) = await local.server.store.load([Key("", MODEL, session)])
    assert found is not None
    return found


def table_of(local: Local, version: int) -> Table:
    table = local.server.registry.get(MODEL, version).table
    assert table is not None
    return table


async def started(speaker: Speaker, session: str = "a", *values: float) -> Opened:
    """A session of version 1 that has added some numbers."""
    opened = await speaker.open_one(session, version=1)
    await speaker.step(0, 0, numbers(*(values or (1, 2))))
    return opened


async def test_loading_a_version_disturbs_no_session(folder: Path, url: str) -> None:
    """Those that are open, detached or stored go on with theirs; only new ones start with the new one."""
    async with serving(folder, store=url) as local, Speaker(local.channel, MODEL) as speaker:
        await started(speaker)
        models.write_counter(folder, 2, factor=10)
        await Caller(local.channel).models.LoadModel(model.LoadModelRequest(name=MODEL))
        assert sums(await speaker.step(0, 2, numbers(3))) == [6]
        fresh = await speaker.open_one("new", 1)
        assert fresh.version == 2
        assert sums(await speaker.step(1, 0, numbers(1))) == [10]
        await speaker.close(0)
        again = await speaker.open_one("a", 2)
        assert (again.version, again.position) == (1, 3)
        assert not speaker.notices
        await local.server.sessions.hibernate(table_of(local, 1), math.inf)
        await speaker.flush(2)
        assert sums(await speaker.step(2, 3, numbers(4))) == [10]


async def test_pinned_sessions_outlive_a_restart_beside_a_newer_version(folder: Path, url: str) -> None:
    """The server comes back with version 2 and loads version 1 because a session asks for it."""
    with process(folder, "--store", url) as server, statestream.connect(server.address) as client:
        with client.session(MODEL, "a") as session:
            assert session.step([1.0]).tolist() == [1]
            server.kill()
            models.write_counter(folder, 2, factor=10)
            server.start()
            assert session.step([2.0]).tolist() == [3]
            assert session.version == 1
        with pytest.raises(errors.ModelChanged, match="pinned to version 1, 2 was asked for"):
            client.session(MODEL, "a", version=2)
        assert client.session(MODEL, "b").version == 2


async def test_room_is_made_among_the_sessions_of_the_same_version(both: Path, url: str) -> None:
    """A full table of version 1 lets its idle sessions go for others of version 1, whatever serves by default."""
    async with (
        serving(both, store=url, checkpoint_interval=LONG, limits={"max_sessions": 2}) as local,
        Speaker(local.channel, MODEL) as speaker,
    ):
        await speaker.open("a", "b", version=1)
        await local.server.sessions.hibernate(table_of(local, 1), math.inf)
        await speaker.open("c", "d", handles=[2, 3], version=1)
        for handle in range(4):
            assert sums(await speaker.step(handle, 0, numbers(handle))) == [handle]
            await speaker.flush(handle)
        opened = await speaker.open("a", "c", handles=[4, 5])
        assert {each.version for each in opened.values() if isinstance(each, Opened)} == {1}
        assert table_of(local, 1).sessions == 2


async def test_a_move_waits_for_what_was_sent_and_leaves_nothing_behind(local: Local) -> None:
    """Chunks sent in time are applied by the old version; its row is free, and the version can be unloaded."""
    caller = Caller(local.channel)
    async with Speaker(local.channel, MODEL) as old, Speaker(local.channel, MODEL) as new:
        await old.open_one("a", version=1)
        for start in range(20):
            await old.send_chunk([0], [start], [numbers(1)])
        assert [sums(each) for each in await old.answers(1)] == [[1]]
        in_use = await failing(caller.models.UnloadModel(model.UnloadModelRequest(name=MODEL, version=1)))
        assert in_use.reason == "MODEL_IN_USE"
        moved = await new.open_one("a", **TO_2)
        assert 1 <= moved.position <= 20
        assert moved.durable == moved.position
        assert sums(await new.step(0, moved.position, numbers(1))) == [moved.position + 10]
        assert not table_of(local, 1).sessions
        await old.unasked(lambda: old.notices)
        before = weakref.ref(table_of(local, 1).rows)
        await caller.models.UnloadModel(model.UnloadModelRequest(name=MODEL, version=1))
        await local.until(lambda: gc.collect() < 0 or before() is None)
        assert sums(await new.step(0, moved.position + 1, numbers(1))) == [moved.position + 20]


async def test_thousands_move_at_once(local: Local) -> None:
    """One frame, whatever state each is in: of this version, of the other, stored, new."""
    ids = [f"s{n}" for n in range(3000)]
    async with Speaker(local.channel, MODEL) as speaker:
        await speaker.open(*ids[:2500], version=1)
        await speaker.send_chunk(range(2500), [0] * 2500, [numbers(n) for n in range(2500)])
        await speaker.answers(2500)
        await speaker.open(*ids[2000:2500], handles=range(2000, 2500), **TO_2)
        await speaker.flush(*range(500))
        await local.server.sessions.hibernate(table_of(local, 1), math.inf)
        opened = await speaker.open(*ids, **TO_2)
        assert [getattr(opened[n], "position", opened[n]) for n in range(3000)] == [1] * 2500 + [0] * 500
        await speaker.send_chunk(range(3000), [1] * 2500 + [0] * 500, [numbers(1)] * 3000)
        answers = sorted(await speaker.answers(3000), key=lambda each: each.handle)
        assert [sums(each) for each in answers] == [[n + 10] for n in range(2500)] + [[10]] * 500
    assert table_of(local, 1).sessions == 0


async def test_a_sleeper_moves_and_its_stream_is_told(local: Local) -> None:
    """A session that left memory goes over from its record; the stream that had it may not wake it."""
    async with Speaker(local.channel, MODEL) as old, Speaker(local.channel, MODEL) as new:
        await started(old)
        await old.flush(0)
        await local.server.sessions.hibernate(table_of(local, 1), math.inf)
        assert table_of(local, 1).sessions == 0
        moved = await new.open_one("a", **TO_2)
        assert (moved.version, moved.position) == (2, 2)
        await old.send_chunk([0], [2], [numbers(99)])
        assert (await old.refusal()).reason in ("SESSION_MOVED", "SESSION_NOT_FOUND")
        assert sums(await new.step(0, 2, numbers(1))) == [13]


async def test_the_old_version_need_not_be_there_any_more(both: Path, url: str) -> None:
    """A record says by itself whether its state fits; kept replies go along."""
    async with serving(both, store=url) as local, Speaker(local.channel, MODEL) as speaker:
        await started(speaker)
    models.write_counter(both, 4, width=2)
    shutil.move(both / MODEL / "1", both.parent / "away")
    async with serving(both, store=url) as local, Speaker(local.channel, MODEL) as speaker:
        failure = await speaker.not_opened("a")
        assert failure.reason == "MODEL_NOT_FOUND"
        assert "'a' is pinned to version 1: model 'counter' has no version 1" in failure.message
        assert "Put that version back into the models folder, or move the session" in failure.message
        failure = await speaker.not_opened("a", version=4, upgrade=True)
        assert failure.reason == "MODEL_CHANGED"
        assert "version 1 is not in the models folder" in failure.message
        shutil.move(both.parent / "away", both / MODEL / "1")
        failure = await speaker.not_opened("a", version=4, upgrade=True)
        assert (failure.metadata["column"], failure.metadata["came"]) == ("s", "'s' float32[1]")
        assert failure.metadata["expected"] == "'s' float32[2]"
        with pytest.raises(errors.ModelNotFound):
            local.server.registry.get(MODEL, 1)
        shutil.rmtree(both / MODEL / "1")
        moved = await speaker.open_one("a", **TO_2)
        assert (moved.version, moved.position, moved.durable) == (2, 2, 2)
        assert sums(await speaker.step(0, 0, numbers(1, 2))) == [1, 3], "the kept reply"
        assert sums(await speaker.step(0, 2, numbers(1))) == [13]


async def test_labels_only(folder: Path, url: str) -> None:
    """Versions of the same digest are versions all the same: sessions stay until they are moved."""
    models.write_counter(folder, 2, description="The same in other words.")
    async with serving(folder, store=url) as local, Speaker(local.channel, MODEL) as speaker:
        await started(speaker)
        assert table_of(local, 1).model.digest == table_of(local, 2).model.digest
        assert (await speaker.not_opened("a", 1, version=2)).reason == "MODEL_CHANGED"
        moved = await speaker.open_one("a", 1, **TO_2)
        assert (moved.version, moved.position) == (2, 2)
        assert (await record(local)).version == 2
        assert sums(await speaker.step(1, 2, numbers(1))) == [4]


async def test_a_version_whose_file_was_replaced(folder: Path, url: str) -> None:
    """The same number, another digest: MODEL_CHANGED, and upgrade to that number takes the session over."""
    async with serving(folder, store=url) as local, Speaker(local.channel, MODEL) as speaker:
        await started(speaker)
    models.write_counter(folder, 1, factor=10)
    async with serving(folder, store=url) as local, Speaker(local.channel, MODEL) as speaker:
        assert (await speaker.not_opened("a")).reason == "MODEL_CHANGED"
        assert (await speaker.open_one("a", upgrade=True)).position == 2
        assert sums(await speaker.step(0, 2, numbers(1))) == [13]


@pytest.mark.parametrize("stored", [False, True])
async def test_kept_replies_and_other_outputs(folder: Path, url: str, stored: bool) -> None:
    """Replies that version 3 cannot give are let go, unless the caller asks for them: then it must take them first."""
    models.write_counter(folder, 3, outputs=2)
    async with serving(folder, store=url, checkpoint_interval=LONG) as local, Speaker(local.channel, MODEL) as speaker:
        await started(speaker)
        if stored:
            await speaker.flush(0)
            await local.server.sessions.hibernate(table_of(local, 1), math.inf)
        failure = await speaker.not_opened("a", 1, version=3, upgrade=True, return_replies=True)
        assert (failure.reason, failure.metadata["replies"]) == ("MODEL_CHANGED", "1")
        assert (await speaker.open_one("a", 1, version=3, upgrade=True)).position == 2
        await speaker.send_chunk([1], [0], [numbers(1, 2)])
        assert (await speaker.refusal()).reason == "ALREADY_APPLIED"
        assert sums(await speaker.step(1, 2, numbers(1))) == [4, 4]


async def test_mode_none_moves_in_memory(both: Path, url: str) -> None:
    """Nothing is written, so the record goes on to say version 1; the row knows better, for every open after it."""
    async with serving(both, store=url, durability=Durability.NONE) as local, Speaker(local.channel, MODEL) as speaker:
        await started(speaker)
        moved = await speaker.open_one("a", 1, **TO_2)
        assert (moved.version, moved.position, moved.durable) == (2, 2, 0)
        assert sums(await speaker.step(1, 2, numbers(1))) == [13]
        again = await speaker.open_one("a", 2)
        assert (again.version, again.position) == (2, 3)
        assert sums(await speaker.step(2, 3, numbers(1))) == [23]
        assert (await speaker.open_one("a", 3, version=2)).position == 4
        assert (await speaker.not_opened("a", 4, version=1)).reason == "MODEL_CHANGED"


async def test_another_servers_session_moves_like_any_take_over(both: Path, url: str) -> None:
    """The record is the truth; the owner finds out with its next write and answers nothing of the old version."""
    settings: dict[str, Any] = {"store": url, "durability": Durability.SYNC, "checkpoint_interval": LONG}
    async with (
        serving(both, **settings) as one,
        serving(both, **settings) as two,
        Speaker(one.channel, MODEL) as old,
        Speaker(two.channel, MODEL) as new,
    ):
        opened = await started(old)
        moved = await new.open_one("a", **TO_2)
        assert (moved.version, moved.position) == (2, 2)
        assert moved.epoch > opened.epoch
        await old.send_chunk([0], [2], [numbers(99)])
        assert (await old.refusal()).reason == "SESSION_MOVED"
        assert sums(await new.step(0, 2, numbers(1))) == [13]
        found = await record(two)
        assert (found.version, found.position) == (2, 3)


async def test_a_claim_for_another_version_fences_nobody(both: Path, url: str) -> None:
    """A session that another server has stays there, with its epoch: the claim was refused before it was one."""
    settings: dict[str, Any] = {"store": url, "durability": Durability.SYNC, "checkpoint_interval": LONG}
    async with (
        serving(both, **settings) as one,
        serving(both, **settings) as two,
        Speaker(one.channel, MODEL) as old,
        Speaker(two.channel, MODEL) as new,
    ):
        opened = await started(old)
        refused = await new.not_opened("a", version=2)
        assert (refused.reason, "pinned to version 1, 2 was asked for" in refused.message) == ("MODEL_CHANGED", True)
        assert sums(await old.step(0, 2, numbers(3))) == [6]
        assert (await record(two)).epoch == opened.epoch


Save = Callable[[Sequence[Record]], Any]


def interfering(
    local: Local, monkeypatch: pytest.MonkeyPatch, interfere: Callable[[Save, Sequence[Record]], Any]
) -> None:
    """Lets a test have its way with the write of sessions that moved to version 2."""
    save = local.server.store.save

    async def wrapped(records: Sequence[Record]) -> Any:
        if any(record.version == 2 for record in records):
            return await interfere(save, records)
        return await save(records)

    monkeypatch.setattr(local.server.store, "save", wrapped)


@pytest.mark.parametrize("written", [False, True])
async def test_a_store_that_fails_on_the_way_costs_no_step(
    local: Local, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """Whether its last write arrived or not: the store has every step, in one version or the other."""

    async def interfere(save: Save, records: Sequence[Record]) -> Any:
        if written:
            await save(records)
        raise errors.StoreUnavailable("gone for a moment")

    async with Speaker(local.channel, MODEL) as speaker:
        await started(speaker)
        with monkeypatch.context() as patch:
            interfering(local, patch, interfere)
            failure = await speaker.not_opened("a", 1, **TO_2)
            assert failure.reason == "STORE_UNAVAILABLE"
        assert not table_of(local, 1).sessions
        assert not table_of(local, 2).sessions
        opened = await speaker.open_one("a", 2)
        assert (opened.version, opened.position) == (2 if written else 1, 2)
        assert sums(await speaker.step(2, 2, numbers(1))) == [13 if written else 4]
        again = await speaker.open_one("a", 3, **TO_2)
        assert (again.version, again.position) == (2, 3)


async def test_a_store_that_fails_before_the_move_leaves_the_session_alone(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def save(records: Sequence[Record]) -> Any:
        raise errors.StoreUnavailable("gone for a moment")

    async with Speaker(local.channel, MODEL) as old, Speaker(local.channel, MODEL) as new:
        await started(old)
        with monkeypatch.context() as patch:
            patch.setattr(local.server.store, "save", save)
            await new.send(open=_move(new, "a"))
            assert (await new.refused()).reason == "STORE_UNAVAILABLE"
        assert sums(await old.step(0, 2, numbers(3))) == [6]
        assert not old.notices


def _move(speaker: Speaker, session: str) -> pb.OpenFrame:
    return pb.OpenFrame(
        model=MODEL,
        version=2,
        handles=u32(0),
        ids=[session],
        writer=speaker.writer,
        incarnation=next_incarnation(),
        upgrade=True,
    )


@pytest.mark.parametrize("writing", [1, 2])
async def test_a_step_without_a_stream_that_meets_a_move(
    local: Local, monkeypatch: pytest.MonkeyPatch, writing: int
) -> None:
    """Until the record is of version 2 nothing is answered; what meant the row of version 1 is to be sent again."""
    caller, save = Caller(local.channel), local.server.store.save
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def wrapped(records: Sequence[Record]) -> Any:
        if any(each.version == writing for each in records) and not go_on.is_set():
            reached.set()
            await go_on.wait()
        return await save(records)

    await caller.step(MODEL, "a", numbers(1, 2), version=1)
    row = table_of(local, 1).row_of["a"]
    monkeypatch.setattr(local.server.store, "save", wrapped)
    request = session_pb2.OpenSessionRequest(model=MODEL, session_id="a", **TO_2)
    moving = asyncio.create_task(_awaited(caller.sessions.OpenSession(request)))
    await reached.wait()
    step = asyncio.create_task(_awaited(caller.inference.Step(_step("a", 2, 1))))
    claimed = (table_of(local, 1), row) if writing == 1 else (table_of(local, 2), table_of(local, 2).row_of["a"])
    assert claimed[0].claiming[claimed[1]]
    # A call behind the step is answered: so the step has arrived, and waits.
    await caller.models.ListModels(model.ListModelsRequest())
    assert not step.done()
    go_on.set()
    assert (await moving).session.version == 2
    if writing == 1:
        assert (await failing(step)).reason == "SESSION_MOVED"
        answer = await caller.inference.Step(_step("a", 2, 1))
    else:
        answer = await step
    assert (answer.version, answer.position, sums_of(answer)) == (2, 3, [13])


async def _awaited(call: Any) -> Any:
    return await call


def _step(session: str, position: int, value: float) -> pb.StepRequest:
    inputs = [tensor(name, array) for name, array in numbers(value).items()]
    return pb.StepRequest(model=MODEL, session_id=session, position=position, inputs=inputs)


def sums_of(response: pb.StepResponse) -> list[float]:
    return np.frombuffer(response.outputs[0].data, "<f4").tolist()


async def test_a_claim_that_comes_on_the_way_wins(local: Local, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another server claims the session between claim and write: it has version 1 and every step, we answer no more."""
    other = SqliteStore(url.removeprefix("sqlite:"))
    await other.start()

    async def interfere(save: Save, records: Sequence[Record]) -> Any:
        (taken,) = await other.claim([claim_of(records[0].key, incarnation=1 << 51)])
        assert taken.record is not None
        assert (taken.record.version, taken.record.position) == (1, 2)
        return await save(records)

    async with Speaker(local.channel, MODEL) as speaker:
        await started(speaker)
        interfering(local, monkeypatch, interfere)
        assert (await speaker.not_opened("a", 1, **TO_2)).reason == "SESSION_MOVED"
        assert not table_of(local, 1).sessions
        assert not table_of(local, 2).sessions
        assert (await record(local)).version == 1
    await other.close()


async def test_there_must_be_room_in_the_other_version(both: Path, url: str) -> None:
    """Else the frame is refused before anything is claimed; the session goes on."""
    async with (
        serving(both, store=url, checkpoint_interval=LONG, limits={"max_sessions": 1}) as local,
        Speaker(local.channel, MODEL) as speaker,
        Speaker(local.channel, MODEL) as other,
    ):
        await other.open_one("new")
        await other.step(0, 0, numbers(1))
        await started(speaker)
        await speaker.send(open=_move(speaker, "a"))
        assert (await speaker.refused()).reason == "TOO_MANY_SESSIONS"
        await speaker.open_one("a", version=1)
        assert sums(await speaker.step(0, 2, numbers(1))) == [4]


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.service)])
def any_url(request: pytest.FixtureRequest, url: str, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield url
        return
    with redis_server(tmp_path) as server:
        yield server.url


@pytest.mark.parametrize("mode", ["interval", "sync"])
async def test_sigkill_right_after_an_upgrade(both: Path, any_url: str, mode: str) -> None:
    """What version 1 applied stays applied by version 1, what came after by version 2; the caller sees nothing."""
    options = ("--store", any_url, "--durability", mode, "--checkpoint-interval", str(LONG), "--log-level", "warning")
    with process(both, *options) as server, statestream.connect(server.address) as client:
        first = client.session(MODEL, "a", version=1)
        assert first.step([[1.0], [2.0]]).ravel().tolist() == [1, 3]
        session = client.session(MODEL, "a", upgrade=2)
        server.kill()
        server.start()
        assert (session.version, session.position) == (2, 2)
        assert session.step([1.0]).tolist() == [13]
        server.kill()
        server.start()
        assert session.step([2.0]).tolist() == [33]
        # The same client's older handle: its claim is for a version that the session has left.
        with pytest.raises(errors.ModelChanged, match="pinned to version 2, 1 was asked for"):
            first.step([1.0])
        with client.session(MODEL, "a", mode="resume") as again:
            assert (again.version, again.position) == (2, 4)


async def test_a_pool_of_several_versions_becomes_one(both: Path, url: str) -> None:
    with process(both, "--store", url) as server, statestream.connect(server.address) as client:
        ids = [f"s{n}" for n in range(6)]
        with client.sessions(MODEL, ids=ids[:3], version=1) as old:
            old.step(np.ones((3, 1), np.float32))
        with client.sessions(MODEL, ids=ids[3:]) as new:
            new.step(np.ones((3, 1), np.float32))
        with pytest.raises(errors.Unsupported, match=r"pinned to versions \[1, 2\].*upgrade"):
            client.sessions(MODEL, ids=ids)
        with client.sessions(MODEL, ids=ids, upgrade=True) as pool:
            assert pool.version == 2
            assert pool.step(np.ones((6, 1), np.float32)).ravel().tolist() == [11, 11, 11, 20, 20, 20]
        models.write_counter(both, 4, width=2)
        with pytest.raises(statestream.PoolError, match="keeps another state"):
            client.sessions(MODEL, ids=ids, upgrade=4)
        with client.sessions(MODEL, ids=ids) as pool:
            assert (pool.version, pool.positions.tolist()) == (2, [2] * 6)
        blob = None
        with client.session(MODEL, "s0") as session:
            blob = session.snapshot()
        with client.restore(blob, model=MODEL, id="back", upgrade=1) as session:
            assert (session.version, session.step([1.0]).tolist()) == (1, [12])
