"""Windows: who keeps the bytes under way that the open told is never refused for load; who exceeds them is."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import statestream
from statestream.contract import errors
from statestream.settings import Settings
from statestream.v1 import inference_pb2 as pb
from statestream_server.edges.grpc.outbox import Outbox
from tests.support.arrays import u32
from tests.support.calls import DEADLINE
from tests.support.counter import numbers
from tests.support.serving import serving
from tests.support.speaker import Refusal, Speaker, fresh_id

WINDOW = 8_000


def frame_bytes(steps: int) -> int:
    """What a frame with so many steps of "counter" counts: float32 in, float32 out."""
    return 512 + steps * 8


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reasons of all rows that the servers of this process refuse."""
    reasons: list[str] = []
    refusals = Outbox._refusals

    def noted(self: Any, *args: Any) -> pb.StreamResponse:
        response = refusals(self, *args)
        reasons.extend(errors.from_status(row.status).reason for row in response.result.errors)
        return response

    monkeypatch.setattr(Outbox, "_refusals", noted)
    return reasons


async def test_the_open_tells_the_windows(models_dir: Path) -> None:
    limits = {"max_window_bytes": WINDOW, "max_kept_bytes": 5_000}
    async with serving(models_dir, limits=limits) as local, Speaker(local.channel, "counter") as speaker:
        opening = pb.OpenFrame(model="counter", handles=u32(0), ids=["a"], writer=speaker.writer, incarnation=1)
        await speaker.send(open=opening)
        opened = await speaker.expect("opened")
        assert (opened.window_bytes, opened.kept_window_bytes) == (WINDOW, 5_000)


async def test_who_keeps_a_window_is_not_refused_and_who_exceeds_it_is(models_dir: Path) -> None:
    """It costs nobody else anything, nor the stream itself another model's window; what was refused goes later."""
    async with (
        serving(models_dir, limits={"max_window_bytes": 4 * frame_bytes(100)}) as local,
        Speaker(local.channel, "counter") as speaker,
        Speaker(local.channel, "counter") as other,
    ):
        await speaker.open(*(fresh_id() for _ in range(8)))
        await other.open(*(fresh_id() for _ in range(4)))
        with local.engine_held():
            for handle in range(8):
                await speaker.send_chunk([handle], [0], [numbers(*[1] * 100)])
            refused = await speaker.rows(4)
            for handle in range(4):
                await other.send_chunk([handle], [0], [numbers(*[1] * 100)])
            await local.until(lambda: local.server.engine.queued == 8)
        assert all(isinstance(row, Refusal) and row.failure.reason == "OVERLOADED" for row in refused)
        assert all(isinstance(row, Refusal) and row.failure.retry_after for row in refused)
        assert sorted(row.handle for row in refused) == [4, 5, 6, 7]
        assert len(await other.answers(4)) == len(await speaker.answers(4)) == 4
        for handle in range(4, 8):
            await speaker.send_chunk([handle], [0], [numbers(*[1] * 100)])
        assert len(await speaker.answers(4)) == 4
        await local.until(lambda: local.server.accounts.held == local.server.accounts.active == 0)


async def test_acknowledgements_of_what_is_refused_count(models_dir: Path) -> None:
    """Else a client that is refused could never free what is kept for it."""
    limits = {"max_window_bytes": frame_bytes(100)}
    async with serving(models_dir, limits=limits) as local, Speaker(local.channel, "counter") as speaker:
        await speaker.open("a", "b")
        await speaker.step(0, 0, numbers(*[1] * 50))
        with local.engine_held():
            await speaker.send_chunk([1], [0], [numbers(*[1] * 100)])
            await speaker.send_chunk([0], [50], [numbers(1)], [50])
            (refused,) = await speaker.rows(1)
            assert isinstance(refused, Refusal)
            assert refused.failure.reason == "OVERLOADED"
            table = local.table("counter")
            assert int(table.acked[table.rows_of("")["a"]]) == 50
        await speaker.answers(1)


async def test_a_stream_that_has_most_under_way_is_not_read_while_all_have_too_much(models_dir: Path) -> None:
    """Nobody is refused for load: what comes later waits on the wire, and other streams go on."""
    async with (
        serving(models_dir, limits={"max_queued_bytes": 3_000}) as local,
        Speaker(local.channel, "counter") as speaker,
        Speaker(local.channel, "counter") as other,
    ):
        await speaker.open(fresh_id())
        await other.open(fresh_id())
        engine = local.server.engine
        with local.engine_held():
            for chunk in range(10):
                await speaker.send_chunk([0], [200 * chunk], [numbers(*[1] * 200)])
            await local.until(lambda: local.server.accounts.held > 3_000)
            await other.send_chunk([0], [0], [numbers(1)])
            await local.until(lambda: local.table("counter").queued.max() and engine.queued >= 2)
            await asyncio.gather(*(asyncio.sleep(0) for _ in range(100)))
            assert engine.queued < 10
        assert [answer.end for answer in await speaker.answers(10)] == [200 * (chunk + 1) for chunk in range(10)]
        await other.answers(1)
        await local.until(lambda: local.server.accounts.held == 0)
        assert local.server.accounts.active == 0


async def test_kept_replies_never_stop_the_reading_of_what_frees_them(models_dir: Path) -> None:
    """Replies of far more bytes than streams may have under way are kept, and each acknowledgement is read."""
    limits = {"max_queued_bytes": 1_000, "max_window_bytes": 1_000}
    async with serving(models_dir, limits=limits) as local, Speaker(local.channel, "counter") as speaker:
        await speaker.open(*(fresh_id() for _ in range(20)))
        for handle in range(20):
            await speaker.step(handle, 0, numbers(*[1] * 250))
        table = local.table("counter")
        assert table.replies.entries == 20
        for handle in range(20):
            await speaker.send_ack(handle, 250)
        await local.until(lambda: not table.replies.entries)


@pytest.mark.parametrize("seed", range(3))
async def test_a_client_with_random_frames_never_hears_of_load(models_dir: Path, heard: list[str], seed: int) -> None:
    """The library keeps the windows of all models, whatever is asked of it, also over breaks of its stream."""
    draw = random.Random(seed)
    limits = {"max_window_bytes": draw.choice([600, 4_000, WINDOW, 60_000]), "max_kept_bytes": 20_000}
    limits["max_queued_bytes"] = draw.choice([2_000, 1 << 20])
    async with serving(models_dir, limits=limits) as local:
        async with statestream.aio.connect(local.address, settings=Settings(shards=draw.choice([1, 2]))) as client:

            async def counts(ids: list[str]) -> None:
                pool = await client.sessions("counter", ids=ids)
                sums = np.zeros(len(ids))
                for _ in range(6):  # In the smallest windows nearly every step is a run of its own.
                    lengths = [draw.randrange(0, 200) for _ in ids]
                    x = np.ones((len(ids), max(1, *lengths), 1), np.float32)
                    outputs = await pool.step(x, lengths=lengths)
                    sums += lengths
                    ends = [outputs[row, length - 1].sum() for row, length in enumerate(lengths) if length]
                    assert ends == [one for one, length in zip(sums, lengths, strict=True) if length]

            async def alone(number: int) -> None:
                session = await client.session("counter", f"alone {number}")
                for position in range(20):
                    assert float((await session.step(np.ones(1, np.float32)))[0]) == position + 1

            async def breaks() -> None:
                for _ in range(3):
                    await asyncio.sleep(0.02)
                    await asyncio.gather(*(link.renew(link.state.streams) for link in client._shards.links))

            pools = [counts([f"{pool} {row}" for row in range(draw.randrange(1, 20))]) for pool in range(4)]
            async with asyncio.timeout(DEADLINE):
                await asyncio.gather(*pools, *(alone(number) for number in range(30)), breaks())
            assert all(link.core.log.windows.held == 0 for link in client._shards.links)
        await local.until(lambda: local.server.accounts.held == local.server.accounts.active == 0)
    assert not {"OVERLOADED", "WINDOW_FULL"} & {*heard}
