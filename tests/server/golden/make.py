"""Makes the golden files: what this release writes, for later releases to read. `python -m tests.server.golden.make`

A file's name has the number of its format. Files that are there stay: they are what earlier releases wrote.
CONTRIBUTING.md says when to run this.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from statestream.v1 import session_pb2
from statestream_server.sessions import records
from statestream_server.sessions.admin import snapshots
from statestream_server.settings import Durability
from statestream_server.stores import open_store, packed, sqlite_tables
from statestream_server.stores.base import TENANT, Key, Lasting
from statestream_server.upkeep import archive, copying
from tests.server.stores.redis_server import redis_server
from tests.support import models
from tests.support.calls import Caller
from tests.support.serving import Local, serving
from tests.support.speaker import Speaker

FOLDER: Final = Path(__file__).parent
MODELS: Final = FOLDER / "models"
"""The model is kept as well: a record names the digest of its file."""
MODEL: Final = "counter"
INCARNATION: Final = 1_700_000_000_000_000

SESSIONS: Final[Mapping[str, tuple[Sequence[Sequence[float]], int]]] = {
    "read": (((1, 2), (3,)), 3),
    "unread": (((5,), (1, 2), (3, 4)), 1),
    "new": ((), 0),
    "deleted": (((1,),), 1),
}
"""Chunks of each session, and the position up to which its replies were acknowledged."""


def present() -> dict[str, Callable[[Path], Awaitable[None]]]:
    """The files of the present formats, and what makes each."""
    return {
        f"record-{records.FORMAT}.bin": _record,
        f"sqlite-{sqlite_tables.SCHEMA}.db": _sqlite,
        f"redis-{packed.FORMAT}.json": _redis,
        f"{snapshots.FORMAT}.safetensors": _snapshot,
        # What is in it has formats of its own.
        f"backup-{archive.FORMAT}-{packed.FORMAT}-{records.FORMAT}.bin": _backup,
    }


async def _write(local: Local) -> None:
    """The sessions, by one caller with one claim each."""
    async with Speaker(local.channel, MODEL, writer=bytes(range(16))) as speaker:
        for handle, (session, (chunks, acked)) in enumerate(SESSIONS.items()):
            await speaker.open_one(session, handle, incarnation=INCARNATION)
            position = 0
            for chunk in chunks:
                await speaker.step(
                    handle, position, {"x": np.asarray(chunk, np.float32)[:, None]}, min(acked, position)
                )
                await speaker.send_ack(handle, min(acked, position + len(chunk)))
                position += len(chunk)
            if session != "new":
                await speaker.flush(handle)
        await speaker.close(list(SESSIONS).index("deleted"), delete=True)


async def _sqlite(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sessions.db"
        async with serving(MODELS, store=f"sqlite:{file}") as local:
            await _write(local)
        shutil.copyfile(file, path)


async def _backup(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:{Path(folder) / 'sessions.db'}"
        async with serving(MODELS, store=url) as local:
            await _write(local)
        async with lasting(url) as store:
            await copying.backup(store, path, lambda *_: None)


@asynccontextmanager
async def lasting(url: str) -> AsyncIterator[Lasting]:
    """A store of which no server serves."""
    store = open_store(url)
    await store.start()
    try:
        yield cast("Lasting", store)
    finally:
        await store.close()


async def _record(path: Path) -> None:
    async with serving(MODELS, store="memory", durability=Durability.INTERVAL) as local:
        await _write(local)
        (record,) = await local.server.store.load([Key(TENANT, MODEL, "unread")])
        layout = local.server.checkpointer.layout(local.table(MODEL))
        stored = records.decode(layout, record.blob or b"", what="it")
        path.write_bytes(records.encode_stored(layout, replace(stored, origin=1, cursor=b"golden")))


async def _snapshot(path: Path) -> None:
    async with serving(MODELS) as local:
        await _write(local)
        request = session_pb2.SnapshotSessionRequest(model=MODEL, session_id="unread")
        path.write_bytes((await Caller(local.channel).sessions.SnapshotSession(request)).snapshot)


async def _redis(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as server:
        async with serving(MODELS, store=server.url) as local:
            await _write(local)
        path.write_text(json.dumps(dump(server.client), indent=1, sort_keys=True) + "\n")


def dump(client: Any) -> dict[str, Any]:
    """All keys that last: strings in base64, sorted sets as members in base64 and scores."""
    found: dict[str, Any] = {}
    for key in client.scan_iter("ss:*"):
        if client.ttl(key) >= 0:
            continue  # A server's beat.
        if client.type(key) == b"string":
            found[key.decode()] = _text(client.get(key))
        else:
            found[key.decode()] = [
                [_text(member), score] for member, score in client.zrange(key, 0, -1, withscores=True)
            ]
    return found


def restore(client: Any, dumped: Mapping[str, Any]) -> None:
    """Puts back what `dump` read."""
    for key, value in dumped.items():
        if isinstance(value, str):
            client.set(key, base64.b64decode(value))
        else:
            client.zadd(key, {base64.b64decode(member): score for member, score in value})


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def make() -> None:
    """Makes the files of the present formats that are not there yet."""
    if not MODELS.exists():
        models.write(MODELS, MODEL)
    for name, write in present().items():
        if not (FOLDER / name).exists():
            await write(FOLDER / name)
            print(f"wrote {name}, {(FOLDER / name).stat().st_size} bytes")


if __name__ == "__main__":
    asyncio.run(make())
