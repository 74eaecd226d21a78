"""Housekeeping and clocks: what is in use stays, whatever the wall clock does; what is deleted is forgotten at last."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statestream.v1 import session_pb2 as sessions
from statestream_server import housekeeping
from statestream_server.housekeeping import Calendar
from statestream_server.stores.base import TENANT, Key
from tests.support.calls import Caller
from tests.support.counter import numbers, sums
from tests.support.serving import Local, serving
from tests.support.speaker import Speaker

MODEL = "counter"
HOURS = 3600.0


def test_a_jump_of_the_clock_counts_only_after_a_while() -> None:
    """Time that passes on both clocks counts at once; a step back is believed, so that nothing expires early."""
    calendar = Calendar(1000.0, 0.0)

    def read(unix: float, seconds: float) -> float:
        return calendar.read(unix, seconds, patience=100.0)

    assert read(1030.0, 30.0) == 1030.0
    assert read(1060.0 + 7200, 60.0) == 1060.0
    assert read(1090.0 + 7200, 90.0) == 1090.0
    assert read(1170.0 + 7200, 170.0) == 1170.0 + 7200
    assert read(1200.0, 200.0) == 1200.0


@pytest.mark.parametrize("asleep", [False, True])
async def test_a_clock_that_jumps_ahead_takes_no_session_from_a_live_stream(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asleep: bool
) -> None:
    """Two hours within a second, and an hour of retention: in memory or hibernated, the session is still there."""
    passed = 0.0
    store = f"sqlite:{tmp_path / 's.db'}"
    async with (
        serving(models_dir, store=store, retention=HOURS, checkpoint_interval=0.05) as local,
        Speaker(local.channel, MODEL) as speaker,
    ):
        local.server.store._clock = lambda: time.time() + passed
        await speaker.open_one("a")
        await speaker.step(0, 0, numbers(1))
        await speaker.flush(0)
        if asleep:
            await local.server.sessions.hibernate(local.table(MODEL), float("inf"))
        passed = 2 * HOURS
        # What the clock shows is believed at once here: what is in use was refreshed before anything expired.
        await housekeeping.tidy(local.server, time.monotonic(), refresh=True, unix=time.time() + passed)
        assert local.table(MODEL).sessions == int(not asleep)
        records = await local.server.store.list("", MODEL, ("", ""), 10)
        assert [record.key.id for record in records] == ["a"]
        assert sums(await speaker.step(0, 1, numbers(1))) == [2]
        assert not speaker.notices


async def test_tombstones_go_although_sessions_stay_for_ever(models_dir: Path, tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 's.db'}"

    async def tombs(local: Local, ids: list[str]) -> list[Any]:
        keys = [Key(TENANT, MODEL, id_) for id_ in ids]
        return [head for head in await local.server.store.heads(keys) if head is not None and not head.live]

    async with serving(models_dir, store=store) as local, Speaker(local.channel, MODEL) as speaker:
        ids = [f"s{number}" for number in range(20)]
        await speaker.open(*ids, ephemeral=True)
        await speaker.close(*range(10), delete=True)
        await Caller(local.channel).sessions.DeleteSession(
            sessions.DeleteSessionRequest(model=MODEL, session_id=ids[10])
        )
        assert len(await tombs(local, ids)) == 11
        now = time.monotonic()
        await housekeeping.tidy(local.server, now, refresh=False, unix=time.time() + 60)
        assert len(await tombs(local, ids)) == 11
        local.table(MODEL).ephemeral[:] = False
        await housekeeping.tidy(local.server, now, refresh=False, unix=time.time() + 2 * HOURS)
        assert not await tombs(local, ids)


async def test_each_model_has_its_retention(models_dir: Path, tmp_path: Path) -> None:
    """What is said of a model goes before what is said of all; 0 is for ever."""
    store, hour = f"sqlite:{tmp_path / 's.db'}", HOURS
    retention = {"retention": 2 * hour, "model_retention": {"counter": hour, "gru": 0.0}}
    async with serving(models_dir, store=store, **retention) as local:
        caller, kept = Caller(local.channel), local.server.store
        for model, size in (("counter", 1), ("gru", 2), ("lstm", 3)):
            await caller.step(model, "a", {"x": np.ones((1, size), np.float32)})
            await local.server.sessions.hibernate(local.table(model), float("inf"))

        async def left(hours: float) -> set[str]:
            """The models of which there are sessions once so many hours have passed."""
            await housekeeping.tidy(local.server, 0.0, refresh=False, unix=time.time() + hours * hour)
            return {record.key.model for record in await kept.list("", "", ("", ""), 10)}

        assert await left(0.9) == {"counter", "gru", "lstm"}
        assert await left(1.1) == {"gru", "lstm"}
        assert await left(2.1) == {"gru"}
        assert await left(1e4) == {"gru"}
