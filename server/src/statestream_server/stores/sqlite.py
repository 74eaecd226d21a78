"""The sqlite store: records in one file, shared by the processes of one machine. The default."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from statestream.errors import StoreUnavailable
from statestream_server.stores.base import Claim, Claimed, Key, Record, Survival, Verdict
from statestream_server.stores.rules import (
    NUMBER_LIMIT,
    Columns,
    check_claims,
    check_deletes,
    check_records,
    decide,
    record_of,
)

P = ParamSpec("P")
T = TypeVar("T")

APPLICATION = 0x53545354
"""Marks a file as ours (PRAGMA application_id)."""
SCHEMA = 1
"""The version of the tables (PRAGMA user_version)."""

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE session (
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    id TEXT NOT NULL,
    live INTEGER NOT NULL,
    version INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    position INTEGER NOT NULL,
    writer BLOB NOT NULL,
    incarnation INTEGER NOT NULL,
    ephemeral INTEGER NOT NULL,
    saved_at REAL NOT NULL,
    blob BLOB,
    UNIQUE (tenant, model, id)
)
"""

_COLUMNS = "live, version, epoch, position, writer, incarnation, ephemeral, saved_at"
_KEY = "tenant = ? AND model = ? AND id = ?"
_INSERT = f"INSERT INTO session (tenant, model, id, {_COLUMNS}, blob) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_EXPIRE_ROWS = 10_000
# The rule of saves (rules.may_save) where the row is, so that a save is one statement.
_SAVE = f"""
{_INSERT} ON CONFLICT (tenant, model, id) DO UPDATE SET live = excluded.live, version = excluded.version,
    epoch = excluded.epoch, position = excluded.position, writer = excluded.writer,
    incarnation = excluded.incarnation, ephemeral = excluded.ephemeral, saved_at = excluded.saved_at,
    blob = excluded.blob
WHERE CASE WHEN live THEN epoch = excluded.epoch AND position <= excluded.position ELSE epoch < excluded.epoch END
"""
_UPDATE = """
UPDATE session SET live = ?, version = ?, epoch = ?, position = ?, writer = ?, incarnation = ?, ephemeral = ?,
    saved_at = ?
"""
_DELETE = f"UPDATE session SET live = 0, saved_at = ?, blob = NULL WHERE {_KEY} AND live AND epoch <= ?"

_ADVICE = {
    "SQLITE_BUSY": "another process keeps it locked; stop that process, or raise busy_timeout",
    "SQLITE_CANTOPEN": "give a file that this user may create and write, in a folder",
    "SQLITE_CORRUPT": "the file is damaged; restore a copy or move it away (its sessions are lost)",
    "SQLITE_FULL": "the disk is full; free some space",
    "SQLITE_IOERR": "the disk failed or is full; see the system's log",
    "SQLITE_NOTADB": "the file is damaged or no sqlite database; restore a copy, or move it away and start again",
    "SQLITE_PERM": "give this user the right to write the file and its folder",
    "SQLITE_READONLY": "give this user the right to write the file and its folder, or another path",
}


class SqliteStore:
    """Records in one sqlite file, written by one thread a process.

    Every call is one transaction, and returns after it is on the disk (WAL, synchronous=FULL): records
    survive a killed process and a power cut. Processes share the file through sqlite's locks; a
    call waits up to `busy_timeout` seconds for another process' transaction. A cancelled call may still be done.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: bool = True,
        busy_timeout: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Names the file; `start` opens it.

        Args:
            path: The file; it and its folders are made where they are missing, for this user only.
            synchronous: Whether a call waits until the disk has its transaction. Without it a power
                cut can take the last transactions, a killed process cannot.
            busy_timeout: Seconds to wait for other processes.
            clock: Gives Unix time.
        """
        self.path = Path(path).expanduser().absolute()
        self._synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="statestream-sqlite")
        self._database: sqlite3.Connection | None = None
        self._inode = (0, 0)
        self._closed = False

    @property
    def kind(self) -> str:
        """Which store it is: "sqlite"."""
        return "sqlite"

    @property
    def survives(self) -> Survival:
        """A killed process; a power cut where `synchronous`; not the loss of the machine."""
        return Survival(process_kill=True, power_loss=self._synchronous, failover=False)

    async def start(self) -> None:
        """Opens the file, makes what is missing, and checks that it can be written.

        Raises:
            StoreUnavailable: It cannot be opened or written, is damaged, is another program's or a
                newer release's; the message names the path and what to do.
        """
        await self._run(_check_writable)

    async def close(self) -> None:
        """Closes the file after the pending calls."""
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown(wait=False)

    async def generation(self) -> str:
        """Stands for the file's contents: random, drawn when it was made.

        Raises:
            StoreUnavailable: The file cannot be read.
        """
        return await self._run(_generation)

    async def claim(self, claims: Sequence[Claim]) -> list[Claimed]:
        """Decides every claim in one transaction; see `base.Store.claim`.

        Raises:
            StoreUnavailable: The file cannot be written; no claim was done.
            ValueError: A number or writer that no store could keep.
        """
        check_claims(claims)
        return await self._run(_claim, list(claims), self._clock) if claims else []

    async def save(self, records: Sequence[Record]) -> list[bool]:
        """Writes the records that are not fenced in one transaction; see `base.Store.save`.

        Raises:
            StoreUnavailable: The file cannot be written; no record was.
            ValueError: A number or writer that no store could keep.
        """
        check_records(records)
        return await self._run(_save, list(records), self._clock) if records else []

    async def load(self, keys: Sequence[Key]) -> list[Record | None]:
        """Reads live records, blobs included.

        Raises:
            StoreUnavailable: The file cannot be read.
        """
        return await self._run(_load, list(keys))

    async def delete(self, keys: Sequence[Key], epochs: Sequence[int]) -> list[bool]:
        """Replaces records by tombstones in one transaction; see `base.Store.delete`.

        Raises:
            StoreUnavailable: The file cannot be written; nothing was deleted.
            ValueError: There are not as many epochs as keys.
        """
        check_deletes(keys, epochs)
        return await self._run(_delete, list(keys), list(epochs), self._clock) if keys else []

    async def list(self, tenant: str, model: str, after: tuple[str, str], limit: int) -> list[Record]:
        """Live records without blobs, by (model, id), by the index of the keys.

        Raises:
            StoreUnavailable: The file cannot be read.
        """
        return await self._run(_list, tenant, model, after, limit)

    async def expire(self, before: float, *, ephemeral_before: float) -> int:
        """Deletes old records and tombstones; how many.

        Reads the whole file, in pieces of one transaction each, so that other calls get their turn.

        Raises:
            StoreUnavailable: The file cannot be written; what was deleted until then is.
        """
        count, last = 0, await self._run(_last_row)
        for start in range(0, last, _EXPIRE_ROWS):
            count += await self._run(_expire, start, before, ephemeral_before)
        return count

    async def _run(self, task: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise StoreUnavailable(f"the sqlite store {self.path} is closed; open it again")

        def work() -> T:
            try:
                database = self._connect()
                with database:  # commits, or rolls back
                    return task(database, *args, **kwargs)
            except (sqlite3.Error, OSError) as error:
                raise self._unavailable(error) from error

        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _connect(self) -> sqlite3.Connection:
        if self._database is not None:
            # sqlite would go on writing into a file that was removed, and everything would be lost silently.
            if _inode(self.path) == self._inode:
                return self._database
            self._disconnect()
            raise StoreUnavailable(
                f"the sqlite store {self.path} was removed or replaced while in use; the next call opens what is there"
            )
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # sqlite gives its side files (-wal, -shm) the mode of this one.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._inode = _inode(self.path)
        database = sqlite3.connect(self.path, timeout=self._busy_timeout, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(database)
        except BaseException:
            database.close()
            raise
        self._database = database
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        self._use_wal(database)
        database.execute(f"PRAGMA synchronous = {'FULL' if self._synchronous else 'NORMAL'}")
        database.execute("PRAGMA journal_size_limit = 67108864")
        database.execute("BEGIN IMMEDIATE")
        with database:
            self._prepare_tables(database)

    def _prepare_tables(self, database: sqlite3.Connection) -> None:
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (schema,) = database.execute("PRAGMA user_version").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION and (application or schema or tables):
            raise StoreUnavailable(
                f"{self.path} is another program's sqlite database; give a path of its own to the sqlite store"
            )
        if schema > SCHEMA:
            raise StoreUnavailable(
                f"the sqlite store {self.path} has schema {schema}, this release reads up to {SCHEMA}; "
                "use the newer release, or another path"
            )
        if schema == SCHEMA:
            return
        for statement in _TABLES.split(";\n"):
            database.execute(statement)
        database.execute("INSERT INTO meta VALUES ('generation', ?)", (uuid.uuid4().hex,))
        database.execute(f"PRAGMA application_id = {APPLICATION}")
        database.execute(f"PRAGMA user_version = {SCHEMA}")

    def _use_wal(self, database: sqlite3.Connection) -> None:
        # Two processes that make the file at once can both ask for WAL; sqlite then answers one of them
        # "locked" without waiting.
        deadline = time.monotonic() + self._busy_timeout
        while True:
            try:
                database.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if not _name(error).startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _disconnect(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _unavailable(self, error: sqlite3.Error | OSError) -> StoreUnavailable:
        if isinstance(error, OSError):
            what, advice = error.strerror or str(error), _ADVICE["SQLITE_CANTOPEN"]
        else:
            name = _name(error)
            what = f"{error} ({name})" if name else str(error)
            advice = next((text for start, text in _ADVICE.items() if name.startswith(start)), "see sqlite.org/rescode")
        return StoreUnavailable(f"the sqlite store {self.path} cannot be used: {what}; {advice}")


def _name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", "")


def _inode(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (status.st_dev, status.st_ino)


def _check_writable(database: sqlite3.Connection) -> None:
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO meta VALUES ('opened', '') ON CONFLICT (name) DO UPDATE SET value = ''")


def _generation(database: sqlite3.Connection) -> str:
    (value,) = database.execute("SELECT value FROM meta WHERE name = 'generation'").fetchone()
    return str(value)


_FIELDS = attrgetter("key", "version", "epoch", "position", "writer", "incarnation", "ephemeral", "blob")


def _columns(row: Sequence[Any]) -> Columns:
    live, version, epoch, position, writer, incarnation, ephemeral, saved_at = row
    return Columns(bool(live), version, epoch, position, writer, incarnation, bool(ephemeral), saved_at)


def _claim(database: sqlite3.Connection, claims: Sequence[Claim], clock: Callable[[], float]) -> list[Claimed]:
    database.execute("BEGIN IMMEDIATE")
    now, answers = clock(), []
    for claim in claims:
        row = database.execute(f"SELECT rowid, {_COLUMNS} FROM session WHERE {_KEY}", claim.key).fetchone()
        verdict, columns, write = decide(claim, None if row is None else _columns(row[1:]), now)
        blob = None
        if write and columns is not None:
            if row is None:
                database.execute(_INSERT, (*claim.key, *columns, None))
            elif verdict is Verdict.CREATED:
                database.execute(f"{_UPDATE}, blob = NULL WHERE rowid = ?", (*columns, row[0]))
            else:
                database.execute(f"{_UPDATE} WHERE rowid = ?", (*columns, row[0]))
            if verdict is Verdict.TAKEN:
                (blob,) = database.execute("SELECT blob FROM session WHERE rowid = ?", row[:1]).fetchone()
        answers.append(Claimed(verdict, None if columns is None else record_of(claim.key, columns, blob)))
    return answers


def _save(database: sqlite3.Connection, records: Sequence[Record], clock: Callable[[], float]) -> list[bool]:
    database.execute("BEGIN IMMEDIATE")
    now, answers = clock(), []
    for key, version, epoch, position, writer, incarnation, ephemeral, blob in map(_FIELDS, records):
        values = (*key, True, version, epoch, position, writer, incarnation, ephemeral, now, blob)
        answers.append(database.execute(_SAVE, values).rowcount == 1)
    return answers


def _load(database: sqlite3.Connection, keys: Sequence[Key]) -> list[Record | None]:
    database.execute("BEGIN")
    found: list[Record | None] = []
    for key in keys:
        row = database.execute(f"SELECT blob, {_COLUMNS} FROM session WHERE {_KEY} AND live", key).fetchone()
        found.append(None if row is None else record_of(key, _columns(row[1:]), row[0]))
    return found


def _delete(
    database: sqlite3.Connection, keys: Sequence[Key], epochs: Sequence[int], clock: Callable[[], float]
) -> list[bool]:
    database.execute("BEGIN IMMEDIATE")
    now = clock()
    return [
        database.execute(_DELETE, (now, *key, min(epoch, NUMBER_LIMIT))).rowcount == 1
        for key, epoch in zip(keys, epochs, strict=True)
    ]


def _list(database: sqlite3.Connection, tenant: str, model: str, after: tuple[str, str], limit: int) -> list[Record]:
    rows = database.execute(
        f"SELECT model, id, {_COLUMNS} FROM session WHERE tenant = ? AND (model, id) > (?, ?) AND live"
        f"{' AND model = ?' if model else ''} ORDER BY model, id LIMIT ?",
        (tenant, *after, *([model] if model else []), limit),
    )
    return [record_of(Key(tenant, name, id_), _columns(columns)) for name, id_, *columns in rows]


def _last_row(database: sqlite3.Connection) -> int:
    (last,) = database.execute("SELECT coalesce(max(rowid), 0) FROM session").fetchone()
    return int(last)


def _expire(database: sqlite3.Connection, start: int, before: float, ephemeral_before: float) -> int:
    return database.execute(
        "DELETE FROM session WHERE rowid > ? AND rowid <= ? "
        "AND saved_at < CASE WHEN live AND ephemeral THEN ? ELSE ? END",
        (start, start + _EXPIRE_ROWS, ephemeral_before, before),
    ).rowcount
