"""What earlier releases wrote is read by this one: sessions go on with the right outputs, nothing is lost.

The files in tests/server/golden are never written anew; their names have the number of their format.
"""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import session_pb2
from statestream_server.sessions import records
from statestream_server.stores import packed
from statestream_server.stores.base import TENANT, Key, Record
from statestream_server.stores.redis_keys import name_of
from statestream_server.upkeep.archive import Archive, Count
from statestream_server.upkeep.copying import Newer, restore
from tests.server.golden import make
from tests.server.stores.redis_server import redis_server
from tests.support import models
from tests.support.calls import Caller, Failure, failing
from tests.support.serving import Local, serving
from tests.support.speaker import Opened, Speaker

MODEL = make.MODEL


def files(pattern: str) -> list[Path]:
    found = sorted(make.FOLDER.glob(pattern))
    assert found, f"no golden file is called {pattern}"
    return found


def outputs(session: str) -> list[list[float]]:
    """What the chunks of a session answer: sums, in float32 exact."""
    chunks, total, found = make.SESSIONS[session][0], 0.0, []
    for chunk in chunks:
        found.append((total + np.cumsum(chunk)).tolist())
        total = found[-1][-1]
    return found


def column(values: object) -> dict[str, np.ndarray]:
    return {"x": np.asarray(values, np.float32)[:, None]}


def test_every_present_format_has_its_file() -> None:
    missing = [name for name in make.present() if not (make.FOLDER / name).exists()]
    assert not missing, f"{missing} are missing: run python -m tests.server.golden.make, and commit what it makes"


async def goes_on(local: Local) -> None:
    """Sessions as the golden files have them: each is opened, answered from what was kept, and stepped on."""
    async with Speaker(local.channel, MODEL) as speaker:
        older = await speaker.not_opened("read", incarnation=make.INCARNATION - 1)
        assert (older.reason, older.metadata["incarnation"]) == ("SESSION_MOVED", str(make.INCARNATION))
        for handle, session in enumerate(("read", "unread", "new")):
            chunks, acked = make.SESSIONS[session]
            end = sum(map(len, chunks))
            opened = await speaker.open_one(session, handle, mode=pb.OPEN_MODE_RESUME, return_replies=True)
            assert (opened.version, opened.position, opened.durable) == (1, end, end)
            assert opened.epoch > 1
            starts = np.cumsum([0, *map(len, chunks)]).tolist()
            kept = [place for place, start in enumerate(starts[1:]) if start > acked]
            answers = await speaker.answers(len(kept))
            assert [answer.position for answer in answers] == [starts[place] for place in kept]
            assert [answer.outputs["y"].ravel().tolist() for answer in answers] == [outputs(session)[p] for p in kept]
            for place in kept:
                repeated = await speaker.step(handle, starts[place], column(chunks[place]), acked)
                assert repeated.outputs["y"].ravel().tolist() == outputs(session)[place]
            after = await speaker.step(handle, end, column([10, 20]))
            total = sum(map(sum, chunks))
            assert after.outputs["y"].ravel().tolist() == [total + 10, total + 30]
        gone = await speaker.not_opened("deleted", 3, mode=pb.OPEN_MODE_RESUME)
        assert gone.reason == "SESSION_NOT_FOUND"
        anew = await speaker.open_one("deleted", 3)
        assert (anew.position, anew.created) == (0, True)
        assert anew.epoch > 1
        await speaker.flush(0, 1, 2, 3)


async def went_on(local: Local) -> None:
    """The same sessions once this release has written them."""
    async with Speaker(local.channel, MODEL) as speaker:
        found = await speaker.open(*make.SESSIONS)
        positions = [each.position for each in found.values() if isinstance(each, Opened)]
        assert positions == [5, 7, 2, 0]


@pytest.mark.parametrize("file", files("sqlite-*.db"), ids=lambda file: file.stem)
async def test_a_sqlite_file_is_read_and_written_on(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    shutil.copyfile(file, path)
    for check in (goes_on, went_on):
        async with serving(make.MODELS, store=f"sqlite:{path}") as local:
            await check(local)


@pytest.mark.service
@pytest.mark.parametrize("file", files("redis-*.json"), ids=lambda file: file.stem)
async def test_a_redis_is_read_and_written_on(file: Path, tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        make.restore(server.client, json.loads(file.read_text()))
        generation = server.client.get("ss:generation")
        for check in (goes_on, went_on):
            async with serving(make.MODELS, store=server.url) as local:
                await check(local)
        assert server.client.get("ss:generation") == generation


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("redis", marks=pytest.mark.service)])
@pytest.mark.parametrize("file", files("backup-*.bin"), ids=lambda file: file.stem)
async def test_a_backup_is_restored_and_written_on(file: Path, kind: str, tmp_path: Path) -> None:
    with redis_server(tmp_path) if kind == "redis" else nullcontext() as server:
        url = server.patient if server is not None else f"sqlite:{tmp_path / 'sessions.db'}"
        backup = Archive(file)
        assert backup.count == Count(sessions=3, tombstones=1)
        async with make.lasting(url) as store:
            await restore(store, backup, Newer.REFUSE, while_serving=False, told=lambda *_: None)
        for check in (goes_on, went_on):
            async with serving(make.MODELS, store=url) as local:
                await check(local)


@pytest.mark.parametrize("file", files("record-*.bin"), ids=lambda file: file.stem)
async def test_a_record_is_read(file: Path) -> None:
    async with serving(make.MODELS) as local:
        layout = local.server.checkpointer.layout(local.table(MODEL))
        stored = records.decode(layout, file.read_bytes(), what="it")
    chunks, acked = make.SESSIONS["unread"]
    assert [array.tolist() for array in stored.values] == [[sum(map(sum, chunks))]]
    assert (stored.acked, stored.request) == (acked, 0)
    assert (stored.origin, stored.cursor) == (1, b"golden")
    assert [(reply.start, reply.steps) for reply in stored.replies] == [(1, 2), (3, 2)]
    assert [reply.outputs[0].ravel().tolist() for reply in stored.replies] == outputs("unread")[1:]


@pytest.mark.parametrize("file", files("statestream-snapshot-*.safetensors"), ids=lambda file: file.stem)
async def test_a_snapshot_is_restored(file: Path) -> None:
    async with serving(make.MODELS) as local, Speaker(local.channel, MODEL) as speaker:
        request = session_pb2.RestoreSessionRequest(model=MODEL, session_id="a", snapshot=file.read_bytes())
        made = (await Caller(local.channel).sessions.RestoreSession(request)).session
        assert (made.version, made.position) == (1, 5)
        await speaker.open_one("a")
        assert (await speaker.step(0, 5, column([1]))).outputs["y"].ravel().tolist() == [16]


async def test_an_older_releases_session_moves_to_another_version(tmp_path: Path) -> None:
    """What a record says of itself is enough: its model's version is not in the folder any more."""
    shutil.copyfile(files("sqlite-*.db")[0], tmp_path / "sessions.db")
    folder = models.write_counter(tmp_path / "models", 2, factor=10)
    async with (
        serving(folder, store=f"sqlite:{tmp_path / 'sessions.db'}") as local,
        Speaker(local.channel, MODEL) as speaker,
    ):
        moved = await speaker.open_one("unread", upgrade=True)
        assert (moved.version, moved.position) == (2, 5)
        assert (await speaker.step(0, 5, column([1]))).outputs["y"].ravel().tolist() == [25]


def newer(blob: bytes) -> bytes:
    """A record of a format that is not known yet; magic and checksum stay where they are."""
    magic, rest = b"SSR9", b"what later releases know" + blob[8:]
    return magic + zlib.crc32(rest, zlib.crc32(magic)).to_bytes(4, "little") + rest


@asynccontextmanager
async def with_a_newer_record(tmp_path: Path) -> AsyncIterator[Local]:
    shutil.copyfile(files("sqlite-*.db")[-1], tmp_path / "sessions.db")
    async with serving(make.MODELS, store=f"sqlite:{tmp_path / 'sessions.db'}") as local:
        key = Key(TENANT, MODEL, "read")
        (record,) = await local.server.store.load([key])
        blob = newer(record.blob)
        await local.server.store.save(
            [Record(key, 1, record.epoch, record.position, record.writer, record.incarnation, blob=blob)]
        )
        yield local
        assert (await local.server.store.load([key]))[0].blob == blob


async def test_a_newer_releases_record_is_named_and_left_alone(tmp_path: Path) -> None:
    """The session that a later release took is refused here, the others in the frame are open; nothing is lost."""
    async with with_a_newer_record(tmp_path) as local, Speaker(local.channel, MODEL) as speaker:
        for upgrade in (False, True):
            found = await speaker.open("read", "unread", upgrade=upgrade)
            refused, opened = found[0], found[1]
            assert isinstance(refused, Failure)
            assert (refused.code, refused.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
            assert "session 'read' is of format 9, this release reads format" in refused.message
            assert isinstance(opened, Opened)
            assert opened.position == 5


@pytest.mark.service
async def test_what_a_newer_release_took_from_this_one_costs_only_that_session(tmp_path: Path) -> None:
    """In the middle of a rolling upgrade: a replica of the next release has opened a session that is in memory here."""
    with redis_server(tmp_path) as server:
        async with (
            serving(make.MODELS, store=server.url, checkpoint_interval=0.05) as local,
            Speaker(local.channel, MODEL) as speaker,
        ):
            await speaker.open("a", "b")
            name = name_of(Key(TENANT, MODEL, "a")).record
            theirs = b"\x09 whatever a later release makes of it"
            server.client.set(name, theirs)
            await speaker.send_chunk([0, 1], [0, 0], [column([1]), column([2])])
            await speaker.answers(2)
            await speaker.unasked(lambda: speaker.notices and speaker.pushed.get(1) == 1)
            assert [(each.handle, each.failure.reason) for each in speaker.notices] == [(0, "SESSION_MOVED")]
            found = await speaker.open("a", "b", handles=[2, 3])
            refused, opened = found[2], found[3]
            assert isinstance(refused, Failure)
            assert refused.reason == "STORE_UNAVAILABLE"
            assert "session 'a' of model 'counter' is of a format that this release does not know" in refused.message
            assert isinstance(opened, Opened)
            assert opened.position == 1
            request = session_pb2.SnapshotSessionRequest(model=MODEL, session_id="a")
            failure = await failing(Caller(local.channel).sessions.SnapshotSession(request))
            assert failure.reason == "STORE_UNAVAILABLE"
            assert server.client.get(name) == theirs


@pytest.mark.parametrize("file", files("redis-*.json"), ids=lambda file: file.stem)
def test_a_packed_record_is_read_without_redis(file: Path) -> None:
    stored = json.loads(file.read_text())
    key = name_of(Key(TENANT, MODEL, "unread")).record.decode()
    value = base64.b64decode(stored[key])
    columns = packed.unpack(value)
    assert (columns.live, columns.version, columns.position) == (True, 1, 5)
    assert columns.fence == columns.epoch in (1, make.INCARNATION)
    assert (columns.writer, columns.incarnation) == (bytes(range(16)), make.INCARNATION)
