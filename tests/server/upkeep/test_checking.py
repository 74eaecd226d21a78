"""The check: what is whole has no fault, and every fault is found, told, and the exit status."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from statestream_server.stores.base import Key, Lasting
from statestream_server.stores.redis_keys import index_of, name_of, tombs_of
from tests.server.stores.compliance.asking import replace
from tests.server.upkeep.conftest import Run, fill
from tests.support.counter import numbers
from tests.support.serving import serving
from tests.support.speaker import Speaker

KEY = Key("", "counter", "a")


@pytest.fixture
async def used(models_dir: Path, url: str) -> str:
    """A store with sessions as servers write them: replies of many lengths, marks, cursors, forks, deletions."""
    async with serving(models_dir, store=url) as local, Speaker(local.channel, "counter") as speaker:
        await speaker.open(*"abcdef")
        for handle in range(5):
            position = 0
            for steps in range(1, 2 + handle):
                await speaker.send_chunk([handle], [position], [numbers(*range(steps))])
                await speaker.answers(1)
                position += steps
        await speaker.close(5, delete=True)
        await speaker.flush(*range(5))
    return url


async def test_what_servers_wrote_is_whole(used: str, run: Run, models_dir: Path, tmp_path: Path) -> None:
    """Also with the models at hand, and also in a backup."""
    done = await asyncio.to_thread(run, "check", "--models", models_dir, "--json")
    found = json.loads(done.stdout)
    assert (found["findings"], done.exit_code) == ([], 0)
    (counter,) = (one for one in found["models"] if one["version"])
    assert counter["sessions"] == 5
    assert counter["replies"] == 1 + 2 + 3 + 4 + 5
    assert sum(one["tombstones"] for one in found["models"]) == 1
    file = tmp_path / "backup"
    await asyncio.to_thread(run, "backup", file)
    done = await asyncio.to_thread(run, "check", file, "--json")
    assert json.loads(done.stdout) == found
    shown = await asyncio.to_thread(run, "check")
    assert "no faults" in shown.stdout


async def test_sessions_that_no_model_could_go_on_with_are_told(used: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    done = await asyncio.to_thread(run, "check", "--models", tmp_path / "none", "--json")
    found = json.loads(done.stdout)
    assert (found["count"], done.exit_code) == (5, 1)
    assert all("version 1 is not in the models folder" in text for text in found["findings"])


def _flip(blob: bytes) -> bytes:
    return blob[:-3] + bytes([blob[-3] ^ 1]) + blob[-2:]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda record: replace(record, blob=_flip(record.blob)), "checksum does not match"),
        (lambda record: replace(record, blob=b"nothing"), "does not begin as a record"),
        (lambda record: replace(record, position=record.position + 7), "replies do not fit"),
        (lambda record: replace(record, position=record.position + 7, blob=None), "its state is missing"),
    ],
)
async def test_a_damaged_record_is_found(
    used: str, kept: Lasting, run: Run, change: Callable[[Any], Any], said: str
) -> None:
    (record,) = await kept.load([Key("", "counter", "b")])
    assert await kept.save([change(record)]) == [True]
    done = await asyncio.to_thread(run, "check", "--json")
    found = json.loads(done.stdout)
    assert (found["count"], done.exit_code) == (1, 1)
    assert "session 'b'" in found["findings"][0]
    assert said in found["findings"][0]


@pytest.mark.parametrize("url", ["redis"], indirect=True)
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda client, name: client.delete(name.record), "no record is there"),
        (lambda client, name: client.zrem(index_of(name.bucket), name.member), "is in no index"),
        (lambda client, name: client.zadd(tombs_of(name.bucket), {name.member: 1.0}), "live and the deleted"),
        (lambda client, name: client.setrange(name.record, 0, b"\x09"), "a newer release wrote it"),
        (lambda client, name: client.zadd(index_of(name.bucket), {b"strange": 0.0}), "names no tenant"),
        (lambda client, name: client.zadd(index_of(name.bucket ^ 1), {name.member: 0.0}), "index of another bucket"),
    ],
)
@pytest.mark.service
async def test_what_belongs_to_no_session_is_found(
    used: str, kept: Lasting, run: Run, harm: Callable[..., None], said: str
) -> None:
    client = redis.Redis.from_url(used.partition("?")[0])
    harm(client, name_of(KEY))
    client.close()
    done = await asyncio.to_thread(run, "check", "--json")
    found = json.loads(done.stdout)
    assert (found["count"], done.exit_code) == (1, 1), found
    assert said in found["findings"][0]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_a_damaged_file_is_found(used: str, run: Run, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "sessions.db") as database:
        database.execute("UPDATE session SET head = x'00' WHERE id = 'a'")
    database.close()
    done = await asyncio.to_thread(run, "check", "--json")
    found = json.loads(done.stdout)
    assert (found["count"], done.exit_code) == (1, 1)
    assert "session 'a'" in found["findings"][0]
    assert "its header cannot be read" in found["findings"][0]
    refused = await asyncio.to_thread(run, "backup", tmp_path / "backup")
    assert refused.exit_code == 1
    assert "RECORDS_DAMAGED: session 'a'" in refused.stderr
    assert not (tmp_path / "backup").exists()


async def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from statestream_server.upkeep.commands import store

    for name in ("check", "backup", "erase"):
        more = {"backup": [str(tmp_path / "b")], "erase": ["--everything", "--yes"]}.get(name, [])
        result = await asyncio.to_thread(
            CliRunner().invoke, store, [name, *more, "--store", f"sqlite:{tmp_path / 'typo.db'}"]
        )
        assert result.exit_code == 2
        assert "there is no sqlite store" in result.stderr
    assert not [*tmp_path.iterdir()]


async def test_many_records_are_read_in_pieces(kept: Lasting, run: Run) -> None:
    await fill(kept, *(Key("", "m", str(number)) for number in np.arange(5000)), position=0, blob=b"")
    done = await asyncio.to_thread(run, "check", "--json")
    found = json.loads(done.stdout)
    assert found["models"][0]["sessions"] == 5000
    assert found["count"] == 5000
    assert len(found["findings"]) == 1000
