"""What is done to a sqlite store beside its servers: it is read whole, looked over, and told that it changed."""

from __future__ import annotations

import asyncio
import sqlite3
import struct
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from statestream.contract.errors import StoreUnavailable
from statestream_server.stores import sqlite_tables
from statestream_server.stores.base import Key, Scanned
from statestream_server.stores.rules import erased, record_of

_PIECE_ROWS, _PIECE_BYTES = 1024, 4 << 20
_ALL = f"SELECT tenant, model, id, {sqlite_tables.COLUMNS}, blob FROM session ORDER BY rowid"


class SqliteUpkeep:
    """See `base.Upkeep`. A scan is one read transaction: all of it is of one instant, and nobody waits for it."""

    def __init__(
        self,
        path: Path,
        run: Callable[..., Awaitable[Any]],
        unavailable: Callable[[sqlite3.Error], StoreUnavailable],
    ) -> None:
        """Of a file; `run` does something in a transaction on the store's own connection."""
        self._path = path
        self._run = run
        self._unavailable = unavailable

    async def count(self) -> int:
        """How many records and tombstones there are."""
        return int(await self._run(_count))

    async def scan(self) -> AsyncIterator[Sequence[Scanned]]:
        """Every record and tombstone as they were when it began; see `base.Upkeep.scan`."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "statestream-scan") as thread:
            database = await loop.run_in_executor(thread, self._open)
            try:
                rows = await loop.run_in_executor(thread, database.execute, _ALL)
                while piece := await loop.run_in_executor(thread, partial(self._piece, rows)):
                    yield piece
            finally:
                await loop.run_in_executor(thread, database.close)

    async def orphans(self) -> Sequence[str]:
        """What sqlite itself finds wrong with the file. It reads all of it."""
        return [str(text) for text in await self._run(_integrity) if text != "ok"]

    async def renew(self) -> None:
        """Draws a new generation."""
        await self._run(_set_generation, lambda _: uuid.uuid4().hex)

    async def recheck(self) -> None:
        """Counts the generation up."""
        await self._run(_set_generation, erased)
        await self._run(_truncate)

    async def overwrite(self) -> None:
        """Has sqlite write zeros over what is deleted through this store from now on."""
        await self._run(_overwrite)

    async def forget(self, keys: Sequence[Key]) -> int:
        """Removes the tombstones of sessions; how many."""
        return int(await self._run(_forget, keys))

    def _open(self) -> sqlite3.Connection:
        try:
            database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            database.execute("BEGIN")
            return database
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    def _piece(self, rows: sqlite3.Cursor) -> list[Scanned]:
        piece, size = list[Scanned](), 0
        try:
            while len(piece) < _PIECE_ROWS and size < _PIECE_BYTES:
                row = rows.fetchone()
                if row is None:
                    break
                piece.append(_scanned(row))
                size += len(row[-1] or b"")
        except sqlite3.Error as error:
            raise self._unavailable(error) from error
        return piece


def _scanned(row: Sequence[Any]) -> Scanned:
    tenant, model, id_, *columns, blob = row
    what = f"session {id_!r} of model {model!r}" + (f" and tenant {tenant!r}" if tenant else "")
    try:
        record = record_of(Key(tenant, model, id_), sqlite_tables.columns_of(columns), blob)
    except (struct.error, UnicodeDecodeError, TypeError) as error:
        return Scanned(what, None, f"its header cannot be read: {error}")
    return Scanned(what, record, "" if record.live or blob is None else "it is deleted, and its state is still there")


def _count(database: sqlite3.Connection) -> int:
    (count,) = database.execute("SELECT count(*) FROM session").fetchone()
    return int(count)


def _integrity(database: sqlite3.Connection) -> list[str]:
    return [text for (text,) in database.execute("PRAGMA integrity_check")]


def _set_generation(database: sqlite3.Connection, change: Callable[[str], str]) -> None:
    database.execute("BEGIN IMMEDIATE")
    fresh = change(sqlite_tables.generation(database))
    database.execute("UPDATE meta SET value = ? WHERE name = 'generation'", (fresh,))


def _overwrite(database: sqlite3.Connection) -> None:
    database.execute("PRAGMA secure_delete = ON").fetchall()


def _truncate(database: sqlite3.Connection) -> None:
    """Empties the log of what was written, where nobody reads it; old records may stand in it."""
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _forget(database: sqlite3.Connection, keys: Sequence[Key]) -> int:
    database.execute("BEGIN IMMEDIATE")
    statement = "DELETE FROM session WHERE tenant = ? AND model = ? AND id = ? AND NOT live"
    return sum(database.execute(statement, key).rowcount for key in keys)
