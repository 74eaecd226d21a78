"""Backup and restore: consistent beside writers, whole or refused, and never over something newer unless told."""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
from pathlib import Path

import pytest

from statestream_server.stores.base import Key, Lasting, Record
from statestream_server.upkeep import archive, copying
from statestream_server.upkeep.archive import Archive
from statestream_server.upkeep.problems import BackupInvalid
from tests.server.stores.compliance.asking import replace
from tests.server.upkeep.conftest import Run, fill

IDS = ["a", "b", "nul\0inside", "ü—🙂"]
KEYS = [Key(tenant, model, id_) for tenant in ("", "t") for model in ("m", "n") for id_ in IDS]


def quiet(done: int, total: int) -> None:
    assert 0 < done <= total


async def everything(store: Lasting) -> dict[Key, Record]:
    """All records and tombstones, but for when they were saved and by whom."""
    return {
        record.key: replace(record, saved_at=0.0, owner="")
        async for piece in store.upkeep().scan()
        for _, record, fault in piece
        if record is not None and not fault
    }


async def empty(store: Lasting) -> None:
    await store.expire(1e12, ephemeral_before=1e12)
    assert not await everything(store)


async def test_a_restored_backup_is_what_was_backed_up(kept: Lasting, run: Run, tmp_path: Path) -> None:
    """Sessions of all tenants, kept deletions, sessions without a state; another generation, so that servers look."""
    records = await fill(kept, *KEYS, position=7)
    dead = records[3]
    assert await kept.delete([dead.key], [dead.epoch], [dead.incarnation]) == [True]
    before, generation, file = await everything(kept), await kept.generation(), tmp_path / "backup"
    done = await asyncio.to_thread(run, "backup", file, "--json")
    assert json.loads(done.stdout) == {"sessions": 15, "tombstones": 1, "bytes": file.stat().st_size}
    assert file.stat().st_mode & 0o777 == 0o600
    await empty(kept)
    done = await asyncio.to_thread(run, "restore", file, "--json")
    assert json.loads(done.stdout) == {"sessions": 15, "tombstones": 1, "kept": 0, "overwritten": 0}
    after = await everything(kept)
    assert {key: record for key, record in after.items() if record.live} == {
        key: record for key, record in before.items() if record.live
    }
    assert (after[dead.key].live, after[dead.key].epoch) == (False, before[dead.key].epoch)
    assert await kept.generation() != generation


async def test_a_backup_goes_into_a_store_of_the_other_kind(kept: Lasting, run: Run, tmp_path: Path) -> None:
    await fill(kept, *KEYS, position=3)
    assert (await asyncio.to_thread(run, "backup", tmp_path / "backup")).exit_code == 0
    from statestream_server.stores.sqlite import SqliteStore

    other = SqliteStore(tmp_path / "other.db")
    await other.start()
    found = await copying.restore(
        other, Archive(tmp_path / "backup"), copying.Newer.REFUSE, while_serving=False, told=quiet
    )
    assert found.sessions == len(KEYS)
    assert await everything(other) == await everything(kept)
    await other.close()


async def test_a_record_that_is_written_meanwhile_is_in_the_backup_at_one_version(
    kept: Lasting, tmp_path: Path
) -> None:
    """Position and state belong together, whatever is saved while the backup runs."""
    keys = [Key("", "m", f"{number:05}") for number in range(3000)]
    records = await fill(kept, *keys, blob=struct.pack("<Q", 1))

    async def write() -> None:
        for position in itertools.count(2):
            changed = [replace(record, position=position, blob=struct.pack("<Q", position)) for record in records]
            assert all(await kept.save(changed))

    writing = asyncio.create_task(write())
    await asyncio.sleep(0)
    await copying.backup(kept, tmp_path / "backup", quiet)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    found = [record for piece in Archive(tmp_path / "backup").records() for record in piece]
    assert sorted(record.key for record in found) == keys
    assert all(record.blob == struct.pack("<Q", record.position) for record in found)
    if kept.kind == "sqlite":
        assert len({record.position for record in found}) == 1, "all of it is of one instant"


async def test_what_is_newer_is_refused_kept_or_set_back(kept: Lasting, run: Run, tmp_path: Path) -> None:
    """Refused as a whole: nothing is written then. What was deleted since counts as newer, too."""
    stays, moved, deleted, lost = (Key("", "m", id_) for id_ in ("stays", "moved", "deleted", "lost"))
    records = {record.key: record for record in await fill(kept, stays, moved, deleted, lost, position=5)}
    file = tmp_path / "backup"
    await asyncio.to_thread(run, "backup", file)
    assert await kept.save([replace(records[moved], position=9, blob=b"new")]) == [True]
    old = records[deleted]
    assert await kept.delete([deleted], [old.epoch], [old.incarnation]) == [True]
    before = await everything(kept)

    refused = await asyncio.to_thread(run, "restore", file)
    assert refused.exit_code == 1
    assert "NEWER_RECORDS: the store has 2 sessions in a newer state" in refused.stderr
    assert "m/moved" in refused.stderr
    assert await everything(kept) == before

    done = await asyncio.to_thread(run, "restore", file, "--newer", "keep", "--json")
    assert json.loads(done.stdout)["kept"] == 2
    assert await everything(kept) == before

    done = await asyncio.to_thread(run, "restore", file, "--newer", "overwrite", "--json")
    assert json.loads(done.stdout) == {"sessions": 4, "tombstones": 0, "kept": 0, "overwritten": 2}
    after = await everything(kept)
    assert {key: (record.live, record.position, record.blob) for key, record in after.items()} == dict.fromkeys(
        (stays, moved, deleted, lost), (True, 5, b"x")
    )
    assert after[moved].epoch > before[moved].epoch, "whoever has it open is fenced"
    assert after[deleted].epoch > before[deleted].epoch


async def test_servers_that_live_are_told_of_and_nothing_is_restored(kept: Lasting, run: Run, tmp_path: Path) -> None:
    await fill(kept, *KEYS)
    file = tmp_path / "backup"
    await asyncio.to_thread(run, "backup", file)
    await empty(kept)
    await kept.beat("one", "10.0.0.1:8001", 60.0)
    refused = await asyncio.to_thread(run, "restore", file)
    assert refused.exit_code == 1
    assert "STORE_IN_USE: 1 servers use the store: 10.0.0.1:8001" in refused.stderr
    assert not await everything(kept)
    assert (await asyncio.to_thread(run, "restore", file, "--while-serving")).exit_code == 0
    assert len(await everything(kept)) == len(KEYS)


async def test_a_backup_takes_no_files_place(kept: Lasting, run: Run, tmp_path: Path) -> None:
    await fill(kept, *KEYS)
    file = tmp_path / "backup"
    file.write_bytes(b"mine")
    refused = await asyncio.to_thread(run, "backup", file)
    assert refused.exit_code == 1
    assert "BACKUP_EXISTS" in refused.stderr
    assert file.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir() if "backup" in path.name] == ["backup"]


async def test_a_damaged_backup_is_refused_before_anything_is_written(kept: Lasting, run: Run, tmp_path: Path) -> None:
    """Wherever a bit is wrong or the end is missing."""
    await fill(kept, *KEYS)
    file = tmp_path / "backup"
    await asyncio.to_thread(run, "backup", file)
    whole = file.read_bytes()
    await empty(kept)
    for at in range(0, len(whole), 41):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(BackupInvalid):
            Archive(file)
        file.write_bytes(whole[:at])
        with pytest.raises(BackupInvalid):
            Archive(file)
    file.write_bytes(whole + b"more")
    refused = await asyncio.to_thread(run, "restore", file)
    assert refused.exit_code == 1
    assert "BACKUP_INVALID" in refused.stderr
    file.write_bytes(whole[:7] + bytes([archive.FORMAT + 1]) + whole[8:])
    refused = await asyncio.to_thread(run, "restore", file)
    assert f"format {archive.FORMAT + 1}, this release reads format {archive.FORMAT}" in refused.stderr
    assert not await everything(kept)
