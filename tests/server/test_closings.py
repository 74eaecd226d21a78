"""Closes and flushes name the position that they stand behind; a detach is durable before it is answered."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statestream import errors
from statestream.v1 import inference_pb2 as pb
from statestream_server.settings import Durability
from tests.support.arrays import u32, u64
from tests.support.calls import Failure, failure_of
from tests.support.counter import numbers, sums
from tests.support.serving import serving
from tests.support.speaker import Opened, Speaker, next_incarnation


async def _closed(speaker: Speaker, *handles: int, **more: object) -> list[tuple[int, str]]:
    await speaker.send(close=pb.CloseFrame(handles=u32(*handles), **more))  # type: ignore[arg-type]
    closed = await speaker.expect("closed")
    refused = [(row.handle, failure_of(row.status).reason) for row in closed.errors]
    done = np.frombuffer(closed.handles, "<u4").tolist()
    assert sorted([*done, *(handle for handle, _ in refused)]) == sorted(handles)
    return refused


async def test_a_close_behind_a_chunk_that_was_refused_leaves_the_session_open(models_dir: Path) -> None:
    async with serving(models_dir) as local, Speaker(local.channel, "counter") as speaker:
        await speaker.open("a", "b")
        await speaker.send_chunk([0, 1], [0, 5], [numbers(1, 2), numbers(3)])  # The second one leaves a gap.
        await speaker.rows(2)
        assert await _closed(speaker, 0, 1, positions=u64(2, 6)) == [(1, "POSITION_GAP")]
        assert sums(await speaker.step(1, 0, numbers(3))) == [3]
        await speaker.send(flush=pb.FlushFrame(handles=u32(1), positions=u64(2)))
        durable = await speaker.expect("durable")
        assert [failure_of(row.status).reason for row in durable.errors] == ["POSITION_GAP"]
        assert await _closed(speaker, 1, positions=u64(1)) == []


async def test_a_delete_spares_an_epoch_above_the_one_that_it_names(models_dir: Path) -> None:
    async with serving(models_dir) as local, Speaker(local.channel, "counter") as speaker:
        opened = await speaker.open_one("a")
        delete = {"action": pb.CLOSE_ACTION_DELETE}
        assert await _closed(speaker, 0, epochs=u64(opened.epoch - 1), **delete) == [(0, "SESSION_MOVED")]
        again = await speaker.open_one("a")
        assert not again.created
        assert await _closed(speaker, 0, epochs=u64(again.epoch), **delete) == []
        assert (await speaker.open_one("a")).created


async def test_a_detach_is_durable_before_it_is_answered(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that hangs holds up the close alone: others step on. One that fails leaves the session open."""
    async with (
        serving(models_dir, store=f"sqlite:{tmp_path / 's.db'}", checkpoint_interval=600.0) as local,
        Speaker(local.channel, "counter") as speaker,
    ):
        await speaker.open("a", "b")
        await speaker.step(0, 0, numbers(1, 2))
        store = local.server.store
        go = asyncio.Event()

        async def hanging(records: object) -> object:
            await go.wait()
            raise errors.StoreUnavailable("the store does not answer")

        with monkeypatch.context() as patch:
            patch.setattr(store, "save", hanging)
            await speaker.send(close=pb.CloseFrame(handles=u32(0), positions=u64(2)))
            for position in range(3):
                await speaker.step(1, position, numbers(1))
            go.set()
            closed = await speaker.expect("closed")
        assert [failure_of(row.status).reason for row in closed.errors] == ["STORE_UNAVAILABLE"]
        assert sums(await speaker.step(0, 2, numbers(4))) == [7]
        assert await _closed(speaker, 0, positions=u64(3)) == []
        (again,) = (await speaker.open("a")).values()
        assert isinstance(again, Opened)
        assert (again.position, again.durable) == (3, 3)


@pytest.mark.parametrize("mode", [Durability.INTERVAL, Durability.SYNC])
async def test_whoever_takes_a_session_over_finds_it_durable(
    models_dir: Path, tmp_path: Path, mode: Durability, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot send again what another caller sent. A caller that opens its own again waits for nothing."""
    async with (
        serving(models_dir, store=f"sqlite:{tmp_path / 's.db'}", checkpoint_interval=600.0, durability=mode) as local,
        Speaker(local.channel, "counter") as first,
        Speaker(local.channel, "counter") as second,
        Speaker(local.channel, "counter") as third,
    ):
        await first.open_one("a")
        await first.step(0, 0, numbers(1, 2))
        table = local.server.registry.get("counter").table
        assert table is not None
        again = await first.open_one("a", replay_positions=u64(0))
        assert (again.position, again.durable) == (2, 2 if mode == Durability.SYNC else 0)
        taken = await second.open_one("a")
        assert (taken.position, taken.durable) == (2, 2)
        await second.step(0, 2, numbers(4))

        async def failing(records: object) -> object:
            raise errors.StoreUnavailable("the store does not answer")

        if mode == Durability.INTERVAL:
            with monkeypatch.context() as patch:
                patch.setattr(local.server.store, "save", failing)
                (refused,) = (await third.open("a")).values()
            assert isinstance(refused, Failure)
            assert refused.reason == "STORE_UNAVAILABLE"
        last = await third.open_one("a")
        assert (last.position, last.durable) == (3, 3)


async def test_a_stream_that_ends_while_what_it_takes_over_is_saved_leaves_the_session_to_nobody(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is claimed by then. Nobody waits for the stream, and what was answered before is in the state."""
    async with (
        serving(models_dir, store=f"sqlite:{tmp_path / 's.db'}", checkpoint_interval=600.0) as local,
        Speaker(local.channel, "counter") as first,
        Speaker(local.channel, "counter") as last,
    ):
        await first.open_one("a")
        await first.step(0, 0, numbers(1, 2))
        table, saving, go = local.table("counter"), asyncio.Event(), asyncio.Event()
        save = local.server.store.save

        async def hanging(*records: Any) -> object:
            saving.set()
            await go.wait()
            return await save(*records)

        monkeypatch.setattr(local.server.store, "save", hanging)
        async with Speaker(local.channel, "counter") as second:
            await second.send(
                open=pb.OpenFrame(
                    model="counter", handles=u32(0), ids=["a"], writer=second.writer, incarnation=next_incarnation()
                )
            )
            await asyncio.wait_for(saving.wait(), 10)
        await local.until(lambda: len(local.server.streams) == 2)
        assert int(table.owner[table.rows_of("")["a"]]) == 0
        go.set()
        taken = await last.open_one("a")
        assert (taken.position, taken.durable) == (2, 2)
        assert sums(await last.step(0, 2, numbers(4))) == [7]


async def test_acknowledgements_pass_by_frames_that_wait_for_the_store(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept replies are freed while an open, and a close of the session itself, wait for a store that hangs."""
    async with (
        serving(models_dir, store=f"sqlite:{tmp_path / 's.db'}", checkpoint_interval=600.0) as local,
        Speaker(local.channel, "counter") as speaker,
    ):
        await speaker.open("a", "b")
        await speaker.step(0, 0, numbers(1))
        await speaker.step(1, 0, numbers(1))
        go = asyncio.Event()

        async def hanging(records: object) -> object:
            await go.wait()
            raise errors.StoreUnavailable("the store does not answer")

        monkeypatch.setattr(local.server.store, "save", hanging)
        await speaker.send(close=pb.CloseFrame(handles=u32(0)))
        await speaker.send(ack=pb.AckFrame(handles=u32(0, 1), acked_positions=u64(1, 1)))
        await speaker.step(1, 1, numbers(1), acked=1)
        (table,) = (table for table in local.server.checkpointer.tables() if table.model.name == "counter")
        assert sorted(table.acked[table.position > 0].tolist()) == [1, 1]
        go.set()
        await speaker.expect("closed")
        monkeypatch.undo()
