"""A session moves to another version when its caller says so: awake, asleep, by thousands, from another server."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import statestream
from statestream import errors
from statestream.v1 import model_pb2 as model
from statestream_server.settings import Durability
from statestream_server.stores.base import TENANT, Key
from tests.server.versions.counters import LONG, MODEL, TO_2, move_frame, record, started, table_of
from tests.support import models
from tests.support.calls import Caller, failing
from tests.support.counter import numbers, sums
from tests.support.serving import Local, process, serving
from tests.support.speaker import Speaker


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
        await speaker.send(open=move_frame(speaker, "a"))
        assert (await speaker.refused()).reason == "TOO_MANY_SESSIONS"
        await speaker.open_one("a", version=1)
        assert sums(await speaker.step(0, 2, numbers(1))) == [4]


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


async def test_a_save_on_its_way_does_not_undo_a_move(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store takes its time with a save of the old version: the claim of the move comes behind it."""
    store, going, ends = local.server.store, asyncio.Event(), asyncio.Event()
    save, claim, order = store.save, store.claim, list[str]()

    async def slow(records: Any) -> Any:
        going.set()
        await ends.wait()
        order.append("save")
        return await save(records)

    async def noted(claims: Any) -> Any:
        order.append("claim")
        return await claim(claims)

    async with Speaker(local.channel, MODEL) as old, Speaker(local.channel, MODEL) as new:
        await old.open_one("a", version=1)
        monkeypatch.setattr(store, "save", slow)
        monkeypatch.setattr(store, "claim", noted)
        await old.step(0, 0, numbers(1, 2))
        saving = asyncio.create_task(local.server.checkpointer.checkpoint())
        await asyncio.wait_for(going.wait(), 20)
        moving = asyncio.create_task(new.open_one("a", **TO_2))
        # Nothing tells that a claim waits: it would be there long before this is over.
        assert not (await asyncio.wait([moving], timeout=0.5))[0]
        assert not order
        ends.set()
        assert (await moving).version == 2
        assert order[:2] == ["save", "claim"]
        await saving
    (kept,) = await store.load([Key(TENANT, MODEL, "a")])
    assert kept is not None
    assert (kept.version, kept.position) == (2, 2)


async def test_what_the_store_forgot_does_not_move(local: Local) -> None:
    """Its caller saw a later epoch than the row here, or the record, has: it is a session that is not there."""
    async with Speaker(local.channel, MODEL) as speaker:
        opened = await started(speaker)
        seen = np.asarray([opened.epoch + 10], "<u8").tobytes()
        anew = await speaker.open_one("a", 1, seen_epochs=seen, **TO_2)
        assert (anew.position, anew.version, anew.created) == (0, 2, True)
        other = await speaker.open_one("b", 2, version=1)
        await speaker.close(2)
        await local.server.checkpointer.checkpoint()
        await local.server.sessions.hibernate(table_of(local, 1), math.inf)
        anew = await speaker.open_one("b", 3, seen_epochs=np.asarray([other.epoch + 10], "<u8").tobytes(), **TO_2)
        assert (anew.position, anew.version, anew.created) == (0, 2, True)


async def test_a_session_that_another_server_deleted_does_not_move(both: Path, url: str) -> None:
    """Its old row is still here, and would carry its state over: nothing is there to move."""
    async with (
        serving(both, store=url, checkpoint_interval=LONG) as here,
        serving(both, store=url, checkpoint_interval=LONG) as there,
        Speaker(here.channel, MODEL) as speaker,
        Speaker(there.channel, MODEL) as other,
    ):
        await started(speaker)
        await speaker.flush(0)
        await other.open_one("a")
        await other.close(0, delete=True)
        anew = await speaker.open_one("a", 1, **TO_2)
        assert (anew.position, anew.version, anew.created) == (0, 2, True)
