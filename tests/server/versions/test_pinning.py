"""A session stays with the version that it began with, whatever becomes of the model's folder."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import statestream
from statestream import errors
from statestream.v1 import model_pb2 as model
from statestream_server.settings import Durability
from tests.server.versions.counters import LONG, MODEL, TO_2, record, started, table_of
from tests.support import models
from tests.support.calls import Caller
from tests.support.counter import numbers, sums
from tests.support.serving import process, serving
from tests.support.speaker import Opened, Speaker


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


@pytest.mark.slow
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


async def test_the_row_that_a_moved_session_left_behind_refuses_nobody(both: Path, url: str) -> None:
    """The session moved to version 2 on another server, and comes back: the row of version 1 here is nobody's."""
    async with (
        serving(both, store=url, checkpoint_interval=LONG) as here,
        serving(both, store=url, checkpoint_interval=LONG) as there,
    ):
        async with Speaker(here.channel, MODEL) as speaker:
            await started(speaker)
            await speaker.flush(0)
            await speaker.close(0)
        async with Speaker(there.channel, MODEL) as speaker:
            moved = await speaker.open_one("a", **TO_2)
            assert sums(await speaker.step(0, 2, numbers(1))) == [13]
            await speaker.flush(0)
        assert table_of(here, 1).sessions == 1
        async with Speaker(here.channel, MODEL) as speaker:
            opened = await speaker.open_one("a", version=2)
            assert (opened.version, opened.position, opened.epoch > moved.epoch) == (2, 3, True)
            assert sums(await speaker.step(0, 3, numbers(1))) == [23]
            assert table_of(here, 1).sessions == 0
