"""The reader waits for no frame: what has to wait stands aside, and only what names the same stands behind it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statestream.v1 import inference_pb2 as pb
from statestream_server.edges.grpc.parked import Parked
from statestream_server.sessions.admission.accounts import Accounts
from tests.support.arrays import tensor, u32, u64
from tests.support.counter import numbers, sums
from tests.support.serving import Local, serving
from tests.support.speaker import Speaker


def chunk(frame: int, *handles: int) -> pb.StreamRequest:
    return pb.StreamRequest(frame=frame, chunk=pb.ChunkFrame(handles=u32(*handles)))


def opening(frame: int, **ids: int) -> pb.StreamRequest:
    return pb.StreamRequest(frame=frame, open=pb.OpenFrame(ids=list(ids), handles=u32(*ids.values())))


class Frames:
    """Frames that wait until they are let go, and the order in which they were answered."""

    def __init__(self) -> None:
        self.answered: list[int] = []
        self.gates: dict[int, asyncio.Event] = {}
        self.accounts = Accounts(1 << 30, 1 << 30)
        self.parked = Parked(self._now, self._answer, self.accounts.open())

    def _now(self, request: pb.StreamRequest) -> bool:
        self.answered.append(request.frame)
        return True

    async def _answer(self, request: pb.StreamRequest) -> None:
        await self.gates.setdefault(request.frame, asyncio.Event()).wait()
        self.answered.append(request.frame)

    async def let_go(self, *frames: int) -> None:
        for frame in frames:
            self.gates.setdefault(frame, asyncio.Event()).set()
        for _ in range(10):
            await asyncio.sleep(0)


async def test_only_what_names_the_same_waits() -> None:
    frames = Frames()
    frames.parked.take(opening(1, a=1))
    frames.parked.take(chunk(2, 2))
    frames.parked.take(chunk(3, 1, 4))
    frames.parked.take(chunk(4, 4))  # Behind 3, which is behind 1.
    frames.parked.take(opening(5, a=7))  # Handle 4 may be "a".
    frames.parked.take(chunk(6, 8))
    assert frames.answered == [2, 6]
    await frames.let_go(5, 4, 3)
    assert frames.answered == [2, 6]
    await frames.let_go(1)
    assert frames.answered == [2, 6, 1, 3, 4, 5]
    assert not frames.parked.waiting
    assert frames.accounts.held == frames.accounts.active == 0


async def test_a_frame_that_names_what_several_wait_for_waits_for_all_of_them() -> None:
    frames = Frames()
    frames.parked.take(opening(1, a=1))
    frames.parked.take(opening(2, b=2))
    frames.parked.take(chunk(3, 1, 2))
    frames.parked.take(chunk(4, 2))
    await frames.let_go(4, 3, 2)
    assert frames.answered == [2]
    frames.parked.take(opening(5, b=6))
    await frames.let_go(5, 1)
    assert frames.answered == [2, 1, 3, 4, 5]
    assert frames.accounts.held == 0
    frames.parked.take(chunk(6, 1))
    assert frames.answered[-1] == 6


async def test_what_a_stream_leaves_behind_is_not_counted_any_more() -> None:
    frames = Frames()
    for number in range(5):
        frames.parked.take(opening(number + 1, a=number))
    assert frames.accounts.held > 5 * 4096
    frames.parked.cancel()
    await frames.parked.settled()
    assert frames.accounts.held == frames.accounts.active == 0
    assert not frames.answered


async def test_many_frames_about_many_sessions_cost_what_they_name() -> None:
    """Each names a thousand more and the last of the one before: none keeps what all before it name."""
    frames = Frames()
    for number in range(40):
        handles = np.arange(1000 * number, 1000 * (number + 1) + 1, dtype="<u4")
        close = pb.CloseFrame(handles=handles.tobytes())
        frames.parked.take(pb.StreamRequest(frame=number + 1, close=close))
    lines = set(frames.parked._lines.values())
    assert sum(len(line.names) for line in lines) == len(frames.parked._lines) == 40_001
    frames.parked.cancel()
    await frames.parked.settled()
    assert not frames.parked._lines


async def test_a_duplicate_of_a_queued_chunk_holds_up_nobody_else(local: Local) -> None:
    """It gets the answer of the one that is queued; what names its session waits, and nothing else."""
    async with Speaker(local.channel, "counter") as speaker:
        await speaker.open("a", "b", "c")
        await speaker.step(2, 0, numbers(1))
        with local.engine_held():
            for _ in range(3):
                await speaker.send_chunk([0], [0], [numbers(1, 2)])
            await speaker.send_chunk([0], [2], [numbers(5)])
            await speaker.send_ack(2, 1)
            await speaker.send(close=pb.CloseFrame(handles=u32(2)))
            assert np.frombuffer((await speaker.expect("closed")).handles, "<u4").tolist() == [2]
        answers = await speaker.answers(4)
        assert [(answer.position, sums(answer)) for answer in answers] == [*[(0, [1, 3])] * 3, (2, [8])]
        assert sums(await speaker.step(1, 0, numbers(7))) == [7]
        await local.until(lambda: local.server.accounts.held == 0)


@pytest.mark.slow
async def test_a_stream_is_read_on_whatever_waits_for_the_store(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Megabytes of chunks wait behind an open that the store does not answer; another session steps, and is flushed."""
    async with (
        serving(models_dir, store=f"sqlite:{tmp_path / 's.db'}", checkpoint_interval=600.0) as local,
        Speaker(local.channel, "tokens") as speaker,
    ):
        await speaker.open("here", handles=[200])
        go, claim = asyncio.Event(), local.server.store.claim

        async def hanging(*args: Any, **more: Any) -> Any:
            await go.wait()
            return await claim(*args, **more)

        monkeypatch.setattr(local.server.store, "claim", hanging)
        handles, ids = range(100), [f"s{handle}" for handle in range(100)]
        opening = pb.OpenFrame(model="counter", handles=u32(*handles), ids=ids, writer=bytes(16), incarnation=1)
        await speaker.send(open=opening)
        inputs = [tensor("x", np.ones((25_600, 1), np.float32))]
        for position in range(20):
            positions = u64(*[256 * position] * 100)
            await speaker.send(
                chunk=pb.ChunkFrame(handles=u32(*handles), positions=positions, steps=256, inputs=inputs)
            )
        await speaker.step(200, 0, {"token": np.ones(3, np.int64)})
        assert local.server.accounts.held > 2 << 20
        monkeypatch.undo()
        go.set()
        await speaker.expect("opened")
        rows = await speaker.answers(2_000)
        assert sorted((row.handle, row.position) for row in rows) == [(h, 256 * n) for h in handles for n in range(20)]
        assert {float(row.outputs["y"][-1, 0]) for row in rows if row.position == 256 * 19} == {256.0 * 20}
        await local.until(lambda: local.server.accounts.held == 0)
