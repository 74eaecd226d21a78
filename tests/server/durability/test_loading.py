"""Loading while others are served: a thread loads, one version at a time; streams, openings and the drain go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from statestream.v1 import model_pb2 as model
from statestream_server.models import repository
from tests.support import models
from tests.support.calls import Caller, failing
from tests.support.counter import numbers, sums
from tests.support.serving import serving
from tests.support.speaker import Speaker

MODEL = "counter"


class Gate:
    """Holds loads where their thread has begun, and counts them."""

    def __init__(self) -> None:
        self.loaded: list[int] = []
        self.held = threading.Event()
        self.open = threading.Event()
        self._load = repository.load
        self._inside = threading.Lock()

    def load(self, name: str, version: int, *args: Any, **kwargs: Any) -> Any:
        assert self._inside.acquire(blocking=False), "two loads at once"
        try:
            self.held.set()
            assert self.open.wait(30)
            found = self._load(name, version, *args, **kwargs)
            self.loaded.append(version)
            return found
        finally:
            self._inside.release()

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
    monkeypatch.setattr(repository, "load", gate.load)
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


async def test_two_loads_of_one_version_load_it_once_and_two_versions_one_after_the_other(
    folder: Path, gate: Gate
) -> None:
    async with serving(folder) as local:
        hold(gate)
        models.write_counter(folder, 2)
        models.write_counter(folder, 3)
        caller = Caller(local.channel)
        loads = [load(caller, version) for version in (2, 2, 3, 0)]
        await gate.reached()
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
