"""Erasure: what is asked for is gone with all that is kept of it, also where servers have it open."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from statestream_server.stores.base import Key, Lasting
from tests.server.upkeep.conftest import Run, fill
from tests.support.calls import connected
from tests.support.counter import numbers, sums
from tests.support.serving import processes, serving
from tests.support.speaker import Opened, Refusal, Speaker

KEYS = [Key(tenant, model, id_) for tenant in ("", "t") for model in ("m", "n") for id_ in ("a-1", "a-2", "b-1")]


async def left(store: Lasting) -> dict[Key, bool]:
    """What the store knows of, and whether it is live."""
    return {record.key: record.live async for piece in store.upkeep().scan() for _, record, _ in piece if record}


@pytest.mark.parametrize(
    ("asked", "goes"),
    [
        (("--model", "m"), lambda key: key.model == "m"),
        (("--tenant", "t"), lambda key: key.tenant == "t"),
        (("--prefix", "a-"), lambda key: key.id.startswith("a-")),
        (("--tenant", "", "--model", "n", "--prefix", "b"), lambda key: key == Key("", "n", "b-1")),
        (("--everything",), lambda key: True),
    ],
)
async def test_nothing_is_left_of_what_is_erased(kept: Lasting, run: Run, asked: tuple[str, ...], goes: object) -> None:
    """Neither records nor ids: the tombstones of what was deleted before go along."""
    assert callable(goes)
    records = await fill(kept, *KEYS)
    old = next(record for record in records if goes(record.key))
    await kept.delete([old.key], [old.epoch], [old.incarnation])
    count = sum(map(goes, KEYS))
    done = await asyncio.to_thread(run, "erase", *asked, "--yes", "--json")
    assert json.loads(done.stdout) == {"sessions": count - 1, "tombstones": count, "remembered": 0, "servers": []}
    assert await left(kept) == {key: True for key in KEYS if not goes(key)}


async def test_nothing_is_erased_unasked(kept: Lasting, run: Run) -> None:
    await fill(kept, *KEYS)
    assert (await asyncio.to_thread(run, "erase")).exit_code == 2
    assert (await asyncio.to_thread(run, "erase", "--everything", "--model", "m")).exit_code == 2
    assert (await asyncio.to_thread(run, "erase", "--model", "m")).exit_code == 1  # Nobody says yes.
    assert await left(kept) == dict.fromkeys(KEYS, True)


async def test_bytes_of_erased_sessions_are_not_in_the_file(tmp_path: Path) -> None:
    """Of sqlite, which would otherwise leave them where they lay."""
    from click.testing import CliRunner

    from statestream_server.stores.sqlite import SqliteStore
    from statestream_server.upkeep.commands import store as command

    path, secret = tmp_path / "sessions.db", b"a state that nobody is to read" * 300
    store = SqliteStore(path)
    await store.start()
    await fill(store, Key("", "m", "somebody"), blob=secret)
    await fill(store, Key("", "n", "else"))
    await store.close()
    done = await asyncio.to_thread(
        CliRunner().invoke, command, ["erase", "--model", "m", "--yes", "--store", f"sqlite:{path}"]
    )
    assert done.exit_code == 0
    for file in tmp_path.iterdir():
        assert secret[:30] not in file.read_bytes()
        assert b"somebody" not in file.read_bytes()


async def test_sessions_that_servers_have_open_end_with_their_erasure(
    models_dir: Path, url: str, run: Run, kept: Lasting
) -> None:
    """Two server processes, a session on each that is erased and one that is not. No reply leaves, nothing is saved."""
    with processes(models_dir, "--store", url, "--checkpoint-interval", "0.2", count=2) as servers:
        for server in servers:
            async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
                name = server.address
                await speaker.open(f"x-{name}", f"y-{name}")
                await speaker.send_chunk([0, 1], [0, 0], [numbers(1)] * 2)
                await speaker.answers(2)
                await speaker.flush(0, 1)
                done = json.loads((await asyncio.to_thread(run, "erase", "--prefix", "x-", "--yes", "--json")).stdout)
                assert done["sessions"] == 1
                assert sorted(done["servers"]) == sorted(one.address for one in servers)
                await speaker.unasked(lambda: bool(speaker.notices))
                assert speaker.notices[0].failure.reason == "SESSION_NOT_FOUND"
                await speaker.send_chunk([0, 1], [1, 1], [numbers(1)] * 2)
                answers = await speaker.rows(2)
                assert {type(answer) for answer in answers if answer.handle == 0} == {Refusal}
                assert [sums(answer) for answer in answers if not isinstance(answer, Refusal)] == [[2]]
                assert await asyncio.to_thread(server.wait_for, "erased in the store")
                assert "emptied" not in server.output
        found = await left(kept)
        assert {key.id for key, live in found.items() if live} == {f"y-{one.address}" for one in servers}
        assert {key.id for key, live in found.items() if not live} == {f"x-{one.address}" for one in servers}


@pytest.mark.slow
async def test_ids_that_are_remembered_go_once_no_server_lives(
    models_dir: Path, url: str, run: Run, kept: Lasting
) -> None:
    async with serving(models_dir, store=url) as local, Speaker(local.channel, "counter") as speaker:
        assert isinstance(await speaker.open_one("a"), Opened)
        done = json.loads((await asyncio.to_thread(run, "erase", "--everything", "--yes", "--json")).stdout)
        assert (done["sessions"], done["tombstones"], done["remembered"]) == (1, 0, 1)
    done = json.loads((await asyncio.to_thread(run, "erase", "--everything", "--yes", "--json")).stdout)
    assert (done["sessions"], done["tombstones"], done["remembered"]) == (0, 1, 0)
    assert not await left(kept)
