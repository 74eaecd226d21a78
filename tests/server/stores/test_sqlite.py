from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import sqlite3
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from statestream.errors import StoreUnavailable
from statestream_server.stores import sqlite_tables
from statestream_server.stores.base import Key, Record, Store, Survival, Verdict
from statestream_server.stores.sqlite import SqliteStore
from statestream_server.stores.sqlite_tables import SCHEMA
from tests.server.stores.compliance import StoreCompliance
from tests.server.stores.compliance.asking import (
    KEY,
    A,
    claim,
    claim_of,
    created_and_saved,
    loaded,
    replace,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "in folder" / "sessions.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    store = SqliteStore(path)
    await store.start()
    yield store
    await store.close()


class TestSqliteStore(StoreCompliance):
    pass


def test_it_says_what_it_survives(path: Path) -> None:
    assert SqliteStore(path).kind == "sqlite"
    assert SqliteStore(path).survives == Survival(process_kill=True, power_loss=True, failover=False)
    assert SqliteStore(path, synchronous=False).survives == Survival(True, False, False)


async def test_records_and_generation_survive_a_restart(path: Path) -> None:
    store = SqliteStore(path)
    saved = await created_and_saved(store)
    generation = await store.generation()
    await store.close()
    store = SqliteStore(path)
    await store.start()
    assert replace(await loaded(store), saved_at=0.0) == replace(saved, saved_at=0.0)
    assert await store.generation() == generation
    await store.close()


@pytest.mark.parametrize("synchronous", [True, False])
async def test_every_call_waits_for_the_disk_where_it_says_so(path: Path, synchronous: bool) -> None:
    store = SqliteStore(path, synchronous=synchronous)
    await store.start()
    modes = await store._run(
        lambda database: [database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")]
    )
    assert modes == [2 if synchronous else 1, "wal"]
    await store.close()


async def test_the_files_are_for_their_user_only(store: Store, path: Path) -> None:
    await created_and_saved(store)
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["sessions.db", "sessions.db-shm", "sessions.db-wal"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def _refused(path: Path, *words: str) -> None:
    store = SqliteStore(path)
    with pytest.raises(StoreUnavailable) as caught:
        await store.start()
    for word in (str(path), *words):
        assert word in caught.value.message
    await store.close()


async def test_a_newer_schema_is_refused(path: Path) -> None:
    store = SqliteStore(path)
    await store.start()
    await store.close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    database.close()
    await _refused(path, f"schema {SCHEMA + 1}", "use the newer release")


async def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE theirs (x)")
    database.close()
    await _refused(path, "another program's")
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    database.close()


async def test_a_corrupt_header_is_refused(path: Path) -> None:
    store = SqliteStore(path)
    await created_and_saved(store)
    await store.close()
    content = path.read_bytes()
    path.write_bytes(b"not a database! " + content[16:])
    await _refused(path, "damaged", "restore a copy")
    assert path.read_bytes()[16:] == content[16:]


async def test_a_file_with_damaged_pages_is_an_error_and_no_record(path: Path) -> None:
    store = SqliteStore(path)
    await store.save([Record(Key("t", "m", str(number)), 1, 1, 1, A, 1, blob=bytes(900)) for number in range(200)])
    await store.close()
    content = bytearray(path.read_bytes())
    for page in range(8192, len(content), 4096):
        content[page : page + 64] = b"\xff" * 64
    path.write_bytes(content)
    store = SqliteStore(path)
    with pytest.raises(StoreUnavailable, match="damaged; restore a copy"):
        await store.load([Key("t", "m", str(number)) for number in range(200)])
    await store.close()


async def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    await _refused(tmp_path, "Is a directory", "may create and write")


async def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    await _refused(tmp_path / "file" / "sessions.db", "may create and write")


async def test_a_file_that_may_not_be_written_is_refused(path: Path) -> None:
    store = SqliteStore(path)
    await created_and_saved(store)
    # What sqlite says of a read-only file system, which even the superuser may not write.
    await store._run(lambda database: database.execute("PRAGMA query_only = 1"))
    with pytest.raises(StoreUnavailable, match="give this user the right to write") as caught:
        await created_and_saved(store, Key("t", "m", "other"))
    assert str(path) in caught.value.message
    assert (await loaded(store)).position == 5
    await store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def test_a_read_only_file_system_is_refused(small_disk: Path) -> None:
    path = small_disk / "sessions.db"
    store = SqliteStore(path)
    await created_and_saved(store)
    await store.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    await _refused(path, "Read-only file system", "may create and write")


async def test_a_full_file_system_is_an_error_and_nothing_is_half_written(small_disk: Path) -> None:
    await _fill(SqliteStore(small_disk / "sessions.db"), lambda: (small_disk / "ballast").unlink(), small_disk)


async def test_a_full_disk_is_an_error_and_nothing_is_half_written(path: Path) -> None:
    store = SqliteStore(path)
    await store.start()
    database = store._database
    assert database is not None
    database.execute("PRAGMA max_page_count = 100")
    await _fill(store, lambda: database.execute("PRAGMA max_page_count = 100000"), path)


async def _fill(store: SqliteStore, free_some_space: Callable[[], object], shown: Path) -> None:
    await created_and_saved(store)
    if shown.is_dir():
        (shown / "ballast").write_bytes(bytes(500_000))
    batch = [Record(Key("t", "m", str(number)), 1, 1, 1, A, 1, blob=bytes(1000)) for number in range(500)]
    with pytest.raises(StoreUnavailable, match=r"full; free some space|failed or is full") as caught:
        await store.save(batch)
    assert str(shown) in caught.value.message
    assert await store.load([KEY, batch[0].key]) == [await loaded(store), None]
    free_some_space()
    assert all(await store.save(batch[:100]))
    await store.close()


async def test_a_removed_file_is_noticed(store: Store, path: Path) -> None:
    saved = await created_and_saved(store)
    generation = await store.generation()
    path.unlink()
    with pytest.raises(StoreUnavailable, match="removed or replaced"):
        await store.save([saved])
    # The next call starts an empty file; that its generation is another one tells the server to save everything.
    assert await store.save([saved]) == [True]
    assert await store.generation() != generation
    assert (await loaded(store)).position == 5


async def test_expire_reaches_every_piece_of_the_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_tables, "EXPIRE_ROWS", 3)
    records = [Record(Key("t", "m", str(number)), 1, 1, 1, A, 1, ephemeral=number % 2 == 0) for number in range(10)]
    assert all(await store.save(records))
    assert await store.expire(0, ephemeral_before=1e12) == 5
    assert await store.expire(1e12, ephemeral_before=0) == 5
    assert await store.list("t", "", ("", ""), 10) == []


async def test_a_page_of_a_model_is_read_in_the_order_of_the_index(store: Store, path: Path) -> None:
    """Sorted, a page would cost as much as the model has sessions."""
    keys = [Key("t", model, id_) for model in "abc" for id_ in ("1", "2", "\ud7ff", "\U0001f600")]
    assert all(await store.save([Record(key, 1, 1, 1, A, 1) for key in keys]))
    for after in [("", ""), ("a", "2"), ("b", ""), ("b", "1"), ("b", "9"), ("bb", ""), ("c", "1")]:
        found = await store.list("t", "b", after, 2)
        assert [each.key for each in found] == [key for key in keys if key.model == "b" and key[1:] > after][:2]
    asked = list[str]()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.set_trace_callback(asked.append)
        for model in ("", "b"):
            sqlite_tables.select(database, "t", model, ("b", "1"), 2)
        database.set_trace_callback(None)
        plans = [str(database.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()) for query in asked]
    assert len(plans) == 2
    assert not [plan for plan in plans if "TEMP B-TREE" in plan]


async def test_a_lock_held_too_long_is_an_error(path: Path) -> None:
    store = SqliteStore(path, busy_timeout=0.05)
    await created_and_saved(store)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="another process keeps it locked"):
        await claim(store)
    assert (await loaded(store)).position == 5
    other.execute("ROLLBACK")
    other.close()
    assert (await claim(store)).verdict is Verdict.TAKEN
    await store.close()


async def test_close_waits_for_what_is_pending_and_ends_the_store(path: Path) -> None:
    store = SqliteStore(path)
    await store.start()
    pending = [asyncio.ensure_future(claim(store)) for _ in range(10)]
    await asyncio.sleep(0)
    await store.close()
    await store.close()
    assert sorted(answer.record.epoch for answer in await asyncio.gather(*pending) if answer.record) == [*range(10, 20)]
    with pytest.raises(StoreUnavailable, match="is closed"):
        await claim(store)
    assert [file.name for file in path.parent.iterdir()] == ["sessions.db"]


async def test_a_file_that_another_process_makes_meanwhile_is_not_another_programs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, made = sqlite3.connect, list[str]()

    def make(statement: str) -> None:
        """Before this process reads on, another one tries to make the tables."""
        if "user_version" in statement and not made:
            made.append(statement)
            other = connect(path, timeout=0, isolation_level=None)
            with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(other), other:
                other.execute("BEGIN IMMEDIATE")
                sqlite_tables.create(other, path)

    def traced(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        database = connect(*args, **kwargs)
        database.set_trace_callback(make)
        return database

    monkeypatch.setattr(sqlite3, "connect", traced)
    store = SqliteStore(path)
    await store.start()
    assert made
    assert (await claim(store)).verdict is Verdict.CREATED
    await store.close()


def _claim_and_save(path: Path, rounds: int, start: object, report: object) -> None:
    """One of several processes: takes every session over and moves it on from where it is, again and again."""

    async def main() -> list[tuple[int, int, int]]:
        store = SqliteStore(path, busy_timeout=30.0)
        await store.start()
        start.wait(timeout=30)  # type: ignore[attr-defined]
        done = []
        keys = [Key("t", "m", str(number)) for number in range(10)]
        for _ in range(rounds):
            answers = await store.claim([claim_of(key) for key in keys])
            records = [answer.record for answer in answers if answer.record is not None]
            assert len(records) == len(keys)
            for record in records:
                assert record.blob is None or int(record.blob) == record.position
            moved = [replace(r, position=r.position + 1, blob=b"%d" % (r.position + 1)) for r in records]
            saved = await store.save(moved)
            done += [(int(r.key.id), r.epoch, r.position) for r, ok in zip(moved, saved, strict=True) if ok]
        await store.close()
        return done

    report.put(asyncio.run(main()))  # type: ignore[attr-defined]


async def test_processes_that_share_the_file_write_one_history(path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    start, report, rounds = spawn.Barrier(2), spawn.Queue(), 40
    processes = [spawn.Process(target=_claim_and_save, args=(path, rounds, start, report)) for _ in range(2)]
    try:
        for process in processes:
            process.start()
        done = [*report.get(timeout=50), *report.get(timeout=50)]
        for process in processes:
            process.join(timeout=10)
            assert process.exitcode == 0
    finally:
        # One that waits for the other must not outlive a test that has failed.
        for left in multiprocessing.active_children():
            left.kill()
    store = SqliteStore(path)
    for number in range(10):
        history = sorted((epoch, position) for name, epoch, position in done if name == number)
        # Every save that was accepted is there once, none was overtaken, and the positions have no gap.
        assert [position for _, position in history] == list(range(1, len(history) + 1))
        assert len({epoch for epoch, _ in history}) == len(history)
        record = await loaded(store, Key("t", "m", str(number)))
        assert (record.position, record.epoch) == (len(history), 9 + 2 * rounds)
    await store.close()


@contextlib.contextmanager
def _busy(store: SqliteStore) -> Iterator[None]:
    """The store's thread does nothing of what is asked meanwhile."""
    free = threading.Event()
    store._thread.submit(free.wait)
    try:
        yield
    finally:
        free.set()


def _counted(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> list[int]:
    """How many claims each transaction has; the first may fail."""
    counts, decide = list[int](), sqlite_tables.claim

    def counting(database: Any, claims: Any, clock: Any) -> Any:
        counts.append(len(claims))
        if error is not None and len(counts) == 1:
            raise error
        return decide(database, claims, clock)

    monkeypatch.setattr(sqlite_tables, "claim", counting)
    return counts


async def test_claims_that_wait_are_one_transaction_and_each_hears_of_its_own(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = _counted(monkeypatch)
    with _busy(store):
        asked = [["a"], ["b", "c"], ["a"], [str(n) for n in range(100)], ["d"]]
        claims = [[claim_of(KEY._replace(id=id), incarnation=10 + n) for id in ids] for n, ids in enumerate(asked)]
        calls = [asyncio.create_task(store.claim(each)) for each in claims]
        await asyncio.sleep(0)
    answers = await asyncio.gather(*calls)
    assert [[each.record.key.id for each in found if each.record] for found in answers] == asked
    assert [answers[place][0].verdict for place in (0, 2)] == [Verdict.CREATED, Verdict.TAKEN]
    assert sorted(counts) == [5, 100], "only what asks for much goes alone"


async def test_claims_that_fail_together_are_told_each_and_the_next_are_decided(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = _counted(monkeypatch, sqlite3.OperationalError("database or disk is full"))
    with _busy(store):
        calls = [asyncio.create_task(claim(store, KEY._replace(id=id))) for id in "abc"]
        await asyncio.sleep(0)
    failed = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(each, StoreUnavailable) and "disk is full" in str(each) for each in failed)
    assert (await claim(store, KEY._replace(id="a"))).verdict is Verdict.CREATED
    assert counts == [3, 1]


async def test_a_claim_that_is_cancelled_before_it_is_begun_is_never_done(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = _counted(monkeypatch)
    with _busy(store):
        gone, stays = (asyncio.create_task(claim(store, KEY._replace(id=id))) for id in ("gone", "stays"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
    assert (await stays).verdict is Verdict.CREATED
    assert counts == [1]
    assert await store.heads([KEY._replace(id="gone")]) == [None]
