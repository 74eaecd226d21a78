"""Kept replies that an open asks for: as many as it says, whatever becomes of their sessions while nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest

from statestream import aio
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc
from statestream_server.edges.grpc import open_frames
from statestream_server.edges.grpc.caps import Caps
from statestream_server.edges.grpc.readers import Reading
from statestream_server.edges.grpc.stream import Stream
from tests.support import models
from tests.support.arrays import tensor, u32, u64
from tests.support.calls import DEADLINE, failure_of
from tests.support.serving import Local, serving
from tests.support.speaker import Speaker, next_incarnation, rows_of

WIDTH = 100_000
"""Numbers in the answer to one step of "wide": 400 KB."""
SESSIONS, CHUNKS, STEPS = 8, 3, 2


@pytest.fixture(scope="session")
def wide_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_wide(tmp_path_factory.mktemp("wide"), WIDTH)


@pytest.fixture
async def wide(wide_dir: Path, tmp_path: Path) -> AsyncIterator[Local]:
    """A server with a store; of each session three replies are kept that nobody has acknowledged."""
    async with serving(wide_dir, store=f"sqlite:{tmp_path / 's.db'}", checkpoint_interval=600.0) as local:
        await keep(local)
        yield local


async def keep(local: Local) -> None:
    async with Speaker(local.channel, "wide") as speaker:
        await speaker.open(*ids())
        for position in range(0, CHUNKS * STEPS, STEPS):
            for handle in range(SESSIONS):
                await speaker.step(handle, position, {"x": np.ones((STEPS, 1), np.float32)})
        await speaker.flush(*range(SESSIONS))
    await local.until(lambda: not len(local.server.streams))


def ids() -> list[str]:
    return [f"s{number}" for number in range(SESSIONS)]


class Reader:
    """A stream that opens all sessions with their replies, and reads when it is told to."""

    def __init__(self, local: Local) -> None:
        self.call: Any = inference_pb2_grpc.InferenceServiceStub(local.channel).Stream()
        self.opened, self.came, self.gone = dict[int, int](), list[tuple[int, int]](), dict[tuple[int, int], str]()
        self.notices, self.closed = dict[int, str](), list[int]()
        self._frame = 0

    async def send(self, **request: Any) -> None:
        self._frame += 1
        await self.call.write(pb.StreamRequest(frame=self._frame, **request))

    async def open(self) -> None:
        """Asks for all, and reads what is open: nothing of what is kept."""
        frame = pb.OpenFrame(
            model="wide",
            handles=u32(*range(SESSIONS)),
            ids=ids(),
            writer=bytes(16),
            incarnation=next_incarnation(),
            return_replies=True,
        )
        await self.send(open=frame)
        while not self.opened:
            await self.read()

    async def read(self) -> None:
        response: Any = await asyncio.wait_for(self.call.read(), DEADLINE)
        assert response is not grpc.aio.EOF
        kind = response.WhichOneof("response")
        if kind == "opened":
            handles = np.frombuffer(response.opened.handles, "<u4").tolist()
            assert not response.opened.errors, response.opened.errors
            self.opened |= dict(zip(handles, np.frombuffer(response.opened.kept, "<u4").tolist(), strict=True))
        assert kind != "refused", response
        if kind == "part":
            part = response.part
            self.came += [(part.handle, part.position)] * (part.part + 1 == part.parts)
        elif kind == "result":
            rows = rows_of(response.frame, response.result)
            refused = response.result.errors
            self.came += [(row.handle, row.position) for row in rows[: len(rows) - len(refused)]]
            self.gone |= {(row.handle, row.position): failure_of(row.status).reason for row in refused}
        elif kind == "notice":
            self.notices |= {row.handle: failure_of(row.status).reason for row in response.notice.errors}
        elif kind == "closed":
            self.closed += np.frombuffer(response.closed.handles, "<u4").tolist()

    async def read_all(self) -> None:
        """Reads until as many came, or are said to be gone, as the opened frames named."""
        while len(self.opened) < SESSIONS or len(self.came) + len(self.gone) < sum(self.opened.values()):
            await self.read()
        assert set(self.opened.values()) == {CHUNKS}
        assert len(set(self.came)) == len(self.came)
        for handle in range(SESSIONS):
            mine = [position for number, position in self.came if number == handle]
            assert mine == sorted(mine)


async def steps_on(reader: Reader, handle: int) -> None:
    """The session is the stream's: its next chunk is applied."""
    inputs = [tensor("x", np.ones((1, 1), np.float32))]
    position = CHUNKS * STEPS
    await reader.send(chunk=pb.ChunkFrame(handles=u32(handle), positions=u64(position), steps=1, inputs=inputs))
    while (handle, position) not in reader.came:
        assert (handle, position) not in reader.gone, reader.gone
        await reader.read()


async def test_a_session_does_not_leave_memory_while_its_replies_wait_for_a_slow_reader(wide: Local) -> None:
    reader = Reader(wide)
    await reader.open()
    table = wide.table("wide")
    await wide.server.sessions.hibernate(table, float("inf"))
    assert table.sessions == SESSIONS
    await reader.read_all()
    assert not reader.gone
    assert len(reader.came) == SESSIONS * CHUNKS
    await wide.until(lambda: not len(table.rows_returning()))
    await wide.server.sessions.hibernate(table, float("inf"))
    assert table.sessions == 0
    await steps_on(reader, 3)
    reader.call.cancel()


async def test_they_come_where_memory_has_room_for_few_of_the_sessions(
    wide_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions whose replies were read make room for the next."""
    monkeypatch.setattr(open_frames, "_OPENED", 4)
    store = f"sqlite:{tmp_path / 's.db'}"
    async with serving(wide_dir, store=store, checkpoint_interval=600.0) as before:
        await keep(before)
    async with serving(wide_dir, store=store, checkpoint_interval=600.0, limits={"max_sessions": 4}) as local:
        reader = Reader(local)
        await reader.open()
        await reader.read_all()
        assert not reader.gone
        assert len(reader.came) == SESSIONS * CHUNKS
        await steps_on(reader, 0)
        reader.call.cancel()


async def test_another_claim_ends_the_wait_by_a_notice(wide: Local) -> None:
    """Of that session what was not drawn is said to have moved; of the others all comes."""
    reader = Reader(wide)
    await reader.open()
    async with Speaker(wide.channel, "wide") as other:
        assert (await other.open_one("s7")).position == CHUNKS * STEPS
    await reader.read_all()
    assert reader.notices == {7: "SESSION_MOVED"}
    assert {handle for handle, _ in reader.gone} == {7}
    assert set(reader.gone.values()) == {"SESSION_MOVED"}
    await steps_on(reader, 0)
    reader.call.cancel()


async def test_a_close_meanwhile_is_answered_behind_them(wide: Local) -> None:
    reader = Reader(wide)
    await reader.open()
    await reader.send(close=pb.CloseFrame(handles=u32(*range(SESSIONS))))
    while not reader.closed:
        await reader.read()
    assert len(reader.came) + len(reader.gone) == SESSIONS * CHUNKS
    assert sorted(reader.closed) == [*range(SESSIONS)]
    reader.call.cancel()


async def test_a_reader_that_leaves_keeps_nothing_in_memory(wide: Local) -> None:
    reader = Reader(wide)
    await reader.open()
    table = wide.table("wide")
    assert len(table.rows_returning()) == SESSIONS
    reader.call.cancel()
    await wide.until(lambda: not len(wide.server.streams) and not len(table.rows_returning()))
    await wide.server.sessions.hibernate(table, float("inf"))
    assert table.sessions == 0


async def test_a_repeated_chunk_is_answered_though_its_session_could_sleep(wide: Local) -> None:
    """What answers duplicates waits for the reader like the rest, and its session is still the stream's."""
    reader = Reader(wide)
    await reader.open()
    await reader.read_all()
    table = wide.table("wide")
    await wide.until(lambda: not len(table.rows_returning()))
    reader.came.clear()
    inputs = [tensor("x", np.ones((STEPS * SESSIONS, 1), np.float32))]
    handles = u32(*range(SESSIONS))
    for position in range(0, CHUNKS * STEPS, STEPS):
        positions = u64(*[position] * SESSIONS)
        await reader.send(chunk=pb.ChunkFrame(handles=handles, positions=positions, steps=STEPS, inputs=inputs))
    await wide.until(lambda: len(table.rows_returning()) >= SESSIONS)
    await wide.server.sessions.hibernate(table, float("inf"))
    while len(reader.came) < SESSIONS * CHUNKS:
        await reader.read()
        assert not reader.gone
    reader.call.cancel()


async def test_an_open_that_is_cancelled_lets_the_sessions_go(wide: Local) -> None:
    """Whoever asks next has them with all that is kept."""
    async with await aio.connect(wide.address) as client:
        opening = asyncio.ensure_future(_pool(client))
        await wide.until(lambda: len(wide.server.streams) == 1 and wide.table("wide").owner.any())
        opening.cancel()
        await asyncio.wait([opening])
        await wide.until(lambda: not wide.table("wide").owner.any())
    reader = Reader(wide)
    await reader.open()
    await reader.read_all()
    assert not reader.gone
    reader.call.cancel()


async def _pool(client: Any) -> Any:
    return await client.sessions("wide", ids=ids(), return_replies=True)


class _Silent:
    """A call of which nothing comes, and to which nothing can be written."""

    async def send_initial_metadata(self, metadata: Any) -> None:
        pass

    async def read(self) -> Any:
        await asyncio.Event().wait()

    async def write(self, message: Any) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize("turns", range(5))
async def test_a_call_that_is_cancelled_twice_keeps_nothing(wide: Local, turns: int) -> None:
    """gRPC cancels one whose client left, and again when the port ends; wherever it is then."""
    silent: Any = _Silent()
    reading = Reading(cast("asyncio.Task[object]", asyncio.current_task()))
    stream = Stream(wide.server, silent, reading, Caps(wide.server.settings.limits))
    serving = asyncio.ensure_future(stream.serve())
    await wide.until(lambda: any(task.get_name() == "stream-writer" for task in asyncio.all_tasks()))
    serving.cancel()
    for _ in range(turns):
        await asyncio.sleep(0)
    serving.cancel()
    await asyncio.wait([serving])
    assert stream.ended.is_set()
    assert not len(wide.server.streams)
