"""Faults of the server itself: the process ends where it must, and leaves nothing half-way behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from statestream_server import housekeeping
from statestream_server.sessions.admission.intake import Intake
from tests.support.calls import DEADLINE
from tests.support.counter import numbers, sums
from tests.support.serving import Local, serving
from tests.support.speaker import Speaker


class Fault(Exception):
    """Something that nobody thought of."""


async def failing(*_: object, **__: object) -> Any:
    raise Fault


async def test_what_a_broken_engine_left_half_way_is_never_saved(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's step is committed, the position is not: saved so, the step would be applied twice."""
    store = f"sqlite:{tmp_path / 's.db'}"
    async with (
        serving(models_dir, store=store, checkpoint_interval=60.0) as local,
        Speaker(local.channel, "counter") as speaker,
    ):
        await speaker.open_one("a")
        await speaker.step(0, 0, numbers(1))
        await speaker.flush(0)
        await speaker.step(0, 1, numbers(2))

        def commit(*_: object) -> None:
            raise Fault

        monkeypatch.setattr(Intake, "completed", commit)
        await speaker.send_chunk([0], [2], [numbers(3)])
        with pytest.raises(Fault):
            await asyncio.wait_for(local.running.failed(), DEADLINE)
    monkeypatch.undo()
    async with serving(models_dir, store=store) as local, Speaker(local.channel, "counter") as speaker:
        assert (await speaker.open_one("a")).position == 1
        assert sums(await speaker.step(0, 1, numbers(2, 3))) == [3, 6]


@pytest.mark.parametrize(("room", "method"), [("checkpointer", "_save"), ("lease", "_round")])
async def test_a_room_that_stops_ends_the_process(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: str, method: str
) -> None:
    """Without the checkpointer nothing would be durable any more, without lease replies could wait for ever."""
    async with serving(models_dir, store=f"sqlite:{tmp_path / 's.db'}", checkpoint_interval=0.05) as local:
        with monkeypatch.context() as patch:
            patch.setattr(getattr(local.server, room), method, failing)
            with pytest.raises(Fault):
                await asyncio.wait_for(local.running.failed(), DEADLINE)


async def test_a_round_of_housekeeping_that_fails_is_not_the_last(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = 0

    async def tidy(*_: object, **__: object) -> None:
        nonlocal rounds
        rounds += 1
        raise Fault

    monkeypatch.setattr(housekeeping, "tidy", tidy)
    async with serving(models_dir, hibernate_after=0.01) as local:
        await local.until(lambda: rounds > 2)
    assert "a round of housekeeping failed" in caplog.text


async def test_a_model_may_be_unloaded_during_a_round_of_housekeeping(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Speaker(local.channel, "counter") as counter, Speaker(local.channel, "gru") as gru:
        await counter.open_one("a")
        await gru.open_one("b")
        await gru.close(0, delete=True)
        hibernate, seen = local.server.sessions.hibernate, list[str]()

        async def unloading(table: Any, before: float) -> None:
            seen.append(table.model.name)
            if not seen[1:]:
                await local.server.selection.unload("gru", 0)
            await hibernate(table, before)

        monkeypatch.setattr(local.server.sessions, "hibernate", unloading)
        await housekeeping.tidy(local.server, 0.0, refresh=False)
        assert seen == ["counter"]
