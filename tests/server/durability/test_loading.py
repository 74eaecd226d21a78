"""Loading while others are served: a thread loads, each version once; streams, openings and the drain go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import model_pb2 as model
from statestream_server.edges.grpc import parked
from statestream_server.models.proof import loading
from statestream_server.stores.base import TENANT, Key
from tests.support import models
from tests.support.arrays import u32
from tests.support.calls import Caller, Failure, failing
from tests.support.counter import numbers, sums
from tests.support.serving import serving
from tests.support.speaker import Opened, Speaker, next_incarnation

MODEL = "counter"


class Gate:
    """Holds loads where their thread has begun, and counts them."""

    def __init__(self) -> None:
        self.loaded: list[int] = []
        self.held = threading.Event()
        self.open = threading.Event()
        self._load = loading.load_file
        self.inside: set[int] = set()
        """Versions that load now."""

    def load(self, path: Path, *, version: int, **kwargs: Any) -> Any:
        assert version not in self.inside, "one version twice at once"
        self.inside.add(version)
        try:
            self.held.set()
            assert self.open.wait(30)
            found = self._load(path, version=version, **kwargs)
            self.loaded.append(version)
            return found
        finally:
            self.inside.discard(version)

    async def reached(self) -> None:
        """Returns once a load is held."""
        assert await asyncio.to_thread(self.held.wait, 30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return models.write_counter(tmp_path / "models", 1)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Open at first; `open.clear()` holds what is loaded from then on."""
    gate = Gate()
    gate.open.set()
    monkeypatch.setattr(loading, "load_file", gate.load)
    yield gate
    gate.open.set()


def hold(gate: Gate) -> None:
    gate.loaded.clear()
    gate.held.clear()
    gate.open.clear()


def load(caller: Caller, version: int = 0) -> asyncio.Task[Any]:
    async def call() -> Any:
        return (await caller.models.LoadModel(model.LoadModelRequest(name=MODEL, version=version))).model

    return asyncio.create_task(call())


async def test_streams_and_openings_go_on_while_a_version_loads(folder: Path, gate: Gate) -> None:
    async with serving(folder) as local, Speaker(local.channel, MODEL) as speaker:
        await speaker.open_one("a", 0)
        hold(gate)
        models.write_counter(folder, 2, factor=10)
        loading = load(Caller(local.channel))
        await gate.reached()
        assert sums(await speaker.step(0, 0, numbers(1, 2))) == [1, 3]
        assert (await speaker.open_one("b", 1)).version == 1
        assert not loading.done()
        gate.open.set()
        assert (await loading).version == 2
        assert (await speaker.open_one("c", 2)).version == 2


async def test_two_loads_of_one_version_load_it_once_and_two_versions_beside_each_other(
    folder: Path, gate: Gate
) -> None:
    async with serving(folder) as local:
        hold(gate)
        models.write_counter(folder, 2)
        models.write_counter(folder, 3)
        caller = Caller(local.channel)
        loads = [load(caller, version) for version in (2, 2, 3, 0)]
        await local.until(lambda: gate.inside == {2, 3})
        gate.open.set()
        assert [(await one).version for one in loads] == [2, 2, 3, 3]
        assert sorted(gate.loaded) == [2, 3]


async def test_a_session_opened_in_a_version_that_loads_waits_for_it_and_others_do_not(
    folder: Path, gate: Gate
) -> None:
    models.write_counter(folder, 2, factor=10)
    async with (
        serving(folder) as local,
        Speaker(local.channel, MODEL) as speaker,
        Speaker(local.channel, MODEL) as other,
    ):
        hold(gate)
        opening = asyncio.create_task(speaker.open_one("old", 0, version=1))
        await gate.reached()
        assert (await other.open_one("new", 0)).version == 2
        assert sums(await other.step(0, 0, numbers(1))) == [10]
        gate.open.set()
        assert (await opening).version == 1
        assert sums(await speaker.step(0, 0, numbers(1))) == [1]


async def stored_in_version_1(folder: Path, store: str, *ids: str) -> None:
    """Sessions with two steps each, then a second version."""
    async with serving(folder, store=store) as local, Speaker(local.channel, MODEL) as speaker:
        for handle, session in enumerate(ids):
            await speaker.open_one(session, handle)
            await speaker.step(handle, 0, numbers(1, 2))
            await speaker.flush(handle)
    models.write_counter(folder, 2, factor=10)


def asked(speaker: Speaker, handles: list[int], ids: list[str], version: int = 0) -> pb.OpenFrame:
    """An open that nobody waits for yet."""
    return pb.OpenFrame(
        handles=u32(*handles),
        ids=ids,
        model=MODEL,
        writer=speaker.writer,
        incarnation=next_incarnation(),
        version=version,
    )


async def test_a_session_whose_own_version_loads_waits_alone(folder: Path, gate: Gate, tmp_path: Path) -> None:
    """Nobody asked for a version: that it is another one is found out in the store, with nobody else waiting."""
    store = f"sqlite:{tmp_path / 'sessions.db'}"
    await stored_in_version_1(folder, store, "old", "older")
    async with (
        serving(folder, store=store) as local,
        Speaker(local.channel, MODEL) as speaker,
        Speaker(local.channel, MODEL) as other,
    ):
        await speaker.open_one("here", 5)
        hold(gate)
        frame = await speaker.send(open=asked(speaker, [0, 1, 2], ["old", "new", "older"]))
        # Behind it, in its order: a chunk of a session that loads, and one with it of one that does not.
        await speaker.send_chunk([0], [2], [numbers(3)])
        await speaker.send_chunk([0, 1], [3, 0], [numbers(4), numbers(1)])
        await gate.reached()
        assert (await other.open_one("another", 0)).version == 2
        assert sums(await other.step(0, 0, numbers(1))) == [10]
        assert sums(await speaker.step(5, 0, numbers(1))) == [10]
        assert await speaker.flush(5) == {5: 1}
        assert (await speaker.open_one("one more", 6)).version == 2
        gate.open.set()
        found: dict[int, tuple[int, int]] = {}
        while len(found) < 3:
            response = await speaker.read()
            assert response is not None
            assert response.frame == frame
            opened = response.opened
            positions = np.frombuffer(opened.positions, "<u8").tolist()
            for handle, position in zip(np.frombuffer(opened.handles, "<u4").tolist(), positions, strict=True):
                found[handle] = (opened.version, position)
        assert found == {0: (1, 2), 1: (2, 0), 2: (1, 2)}
        answers = await speaker.answers(3)
        assert [(answer.handle, sums(answer)) for answer in sorted(answers, key=lambda one: (one.handle, one.end))] == [
            (0, [6]),
            (0, [10]),
            (1, [10]),
        ]


async def test_a_stream_whose_opens_wait_for_a_version_is_not_read_on_without_end(folder: Path, gate: Gate) -> None:
    """What waits counts as under way: beyond what the server holds, the stream that has most of it is not read on."""
    models.write_counter(folder, 2, factor=10)
    async with (
        serving(folder, limits={"max_queued_bytes": 3 * parked.FRAME_BYTES}) as local,
        Speaker(local.channel, MODEL) as speaker,
    ):
        await speaker.open_one("here", 9)
        (stream,) = local.server.streams._streams.values()
        hold(gate)
        frames = [await speaker.send(open=asked(speaker, [handle], [f"s{handle}"], version=1)) for handle in range(6)]
        await gate.reached()
        async with Speaker(local.channel, MODEL) as other:
            await other.open_one("other", 0)
            for position in range(10):
                await other.step(0, position, numbers(1))
        assert stream._last_frame == frames[2]
        gate.open.set()
        for frame in frames:
            opened = await speaker.read()
            assert opened is not None
            assert (opened.frame, opened.opened.version) == (frame, 1)
        assert local.server.accounts.held == 0


async def test_frames_behind_an_open_that_loads_keep_their_order_to_the_end_of_the_stream(
    folder: Path, gate: Gate
) -> None:
    models.write_counter(folder, 2, factor=10)
    async with serving(folder) as local, Speaker(local.channel, MODEL) as speaker:
        hold(gate)
        await speaker.send(open=asked(speaker, [0], ["a"], version=1))
        for position in range(5):
            await speaker.send_chunk([0], [position], [numbers(1)])
        await speaker.send(open=asked(speaker, [1], ["a"], version=1))
        await speaker.send_chunk([1], [5], [numbers(1)])
        await speaker.send(close=pb.CloseFrame(handles=u32(1)))
        await speaker.half_close()
        await gate.reached()
        gate.open.set()
        assert (await speaker.expect("opened")).version == 1
        assert [sums(answer) for answer in await speaker.answers(5)] == [[1], [2], [3], [4], [5]]
        assert np.frombuffer((await speaker.expect("opened")).positions, "<u8").tolist() == [5]
        assert [sums(answer) for answer in await speaker.answers(1)] == [[6]]
        await speaker.expect("closed")
        assert await speaker.read() is None


async def test_a_session_whose_version_is_not_there_stays_with_its_owner(
    folder: Path, gate: Gate, tmp_path: Path
) -> None:
    """It is refused before it is claimed: whoever has it goes on."""
    store = f"sqlite:{tmp_path / 'sessions.db'}"
    await stored_in_version_1(folder, store, "old")
    new = models.write_counter(tmp_path / "new", 2, factor=10)
    async with (
        serving(folder, store=store) as owner,
        serving(new, store=store) as local,
        Speaker(owner.channel, MODEL) as speaker,
        Speaker(local.channel, MODEL) as other,
    ):
        before = await speaker.open_one("old", 0)
        found = await other.open("old", "fresh", handles=[0, 1])
        assert isinstance(found[0], Failure)
        assert (found[0].reason, "'old' is pinned to version 1" in found[0].message) == ("MODEL_NOT_FOUND", True)
        assert isinstance(found[1], Opened)
        assert sums(await speaker.step(0, 2, numbers(3))) == [6]
        await speaker.flush(0)
        assert not speaker.notices
        (record,) = await local.server.store.load([Key(TENANT, MODEL, "old")])
        assert record is not None
        assert (record.epoch, record.owner) == (before.epoch, owner.server.lease.owner)


async def test_a_session_that_slept_while_its_version_was_unloaded_wakes_alone(
    folder: Path, gate: Gate, tmp_path: Path
) -> None:
    store = f"sqlite:{tmp_path / 'sessions.db'}"
    models.write_counter(folder, 2, factor=10)
    async with (
        serving(folder, store=store) as local,
        Speaker(local.channel, MODEL) as speaker,
        Speaker(local.channel, MODEL) as other,
    ):
        await speaker.open_one("old", 0, version=1)
        await speaker.step(0, 0, numbers(1))
        await speaker.flush(0)
        (table,) = [one for one in local.server.registry.tables(MODEL) if one.model.version == 1]
        await local.server.sessions.hibernate(table, float("inf"))
        await Caller(local.channel).models.UnloadModel(model.UnloadModelRequest(name=MODEL, version=1))
        hold(gate)
        await speaker.send_chunk([0], [1], [numbers(1)])
        await gate.reached()
        assert (await other.open_one("new", 0)).version == 2
        gate.open.set()
        assert [sums(answer) for answer in await speaker.answers(1)] == [[2]]


async def test_an_unload_waits_for_the_load_before_it(folder: Path, gate: Gate) -> None:
    async with serving(folder) as local:
        caller = Caller(local.channel)
        hold(gate)
        models.write_counter(folder, 2)
        loading = load(caller, 2)
        await gate.reached()
        unloading = asyncio.ensure_future(caller.models.UnloadModel(model.UnloadModelRequest(name=MODEL, version=2)))
        gate.open.set()
        await unloading
        assert (await loading).version == 2
        assert [served.model.version for served in local.server.registry] == [1]
        assert (await load(caller, 2)).version == 2
        assert gate.loaded == [2, 2]


async def test_a_load_that_fails_on_its_thread_says_why_and_may_be_tried_again(folder: Path, gate: Gate) -> None:
    async with serving(folder) as local:
        models.write_counter(folder, 2)
        file = folder / MODEL / "2" / "model.onnx"
        good = file.read_bytes()
        file.write_bytes(b"no model")
        caller = Caller(local.channel)
        failure = await failing(caller.models.LoadModel(model.LoadModelRequest(name=MODEL, version=2)))
        assert failure.reason == "UNSUPPORTED"
        assert str(file) in failure.message
        assert (MODEL, 2) in local.server.registry.failures
        file.write_bytes(good)
        assert (await load(caller, 2)).version == 2
        assert not local.server.registry.failures


async def test_a_caller_that_leaves_does_not_stop_a_load_that_another_waits_for(folder: Path, gate: Gate) -> None:
    async with serving(folder) as local:
        hold(gate)
        models.write_counter(folder, 2)
        first = asyncio.create_task(local.server.registry.load(MODEL, 2))
        await gate.reached()
        second = asyncio.create_task(local.server.registry.load(MODEL, 2))
        first.cancel()
        await asyncio.wait([first])
        gate.open.set()
        assert (await second).model.version == 2
        assert gate.loaded == [2]


async def test_a_drain_saves_and_leaves_while_a_version_loads(folder: Path, gate: Gate, tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 'sessions.db'}"
    async with serving(folder, store=store) as local:
        async with Speaker(local.channel, MODEL) as speaker:
            await speaker.open_one("a", 0)
            await speaker.step(0, 0, numbers(1, 2))
        hold(gate)
        models.write_counter(folder, 2)
        loading = asyncio.create_task(local.server.registry.load(MODEL, 2))
        await gate.reached()
    assert not loading.done()  # The drain did not wait for it.
    gate.open.set()
    await loading
    async with serving(folder, store=store) as local, Speaker(local.channel, MODEL) as speaker:
        assert (await speaker.open_one("a", 0)).position == 2
