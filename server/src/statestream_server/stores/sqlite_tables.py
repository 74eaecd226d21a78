"""The tables of the sqlite store, and what is done on them in a transaction. No thread and no file lives here."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from statestream.errors import StoreUnavailable
from statestream_server.stores.base import Claim, Claimed, Key, Record, Verdict
from statestream_server.stores.rules import NUMBER_LIMIT, Columns, decide, record_of

APPLICATION = 0x53545354
"""Marks a file as ours (PRAGMA application_id)."""
SCHEMA = 2
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
# What brings a file of each schema to the next one.
_UPGRADES = {
    1: (
        "ALTER TABLE session ADD COLUMN owner TEXT NOT NULL DEFAULT ''",
        "CREATE TABLE server (owner TEXT PRIMARY KEY, address TEXT NOT NULL, until REAL NOT NULL) WITHOUT ROWID",
    ),
}

_COLUMNS = "live, version, epoch, position, writer, incarnation, ephemeral, saved_at, owner"
_KEY = "tenant = ? AND model = ? AND id = ?"
_INSERT = f"INSERT INTO session (tenant, model, id, {_COLUMNS}, blob) VALUES ({', '.join('?' * 13)})"
EXPIRE_ROWS = 10_000
"""How many rows one transaction of an expiry looks at."""
# The rule of saves (rules.may_save) where the row is, so that a save is one statement.
_SAVE = f"""
{_INSERT} ON CONFLICT (tenant, model, id) DO UPDATE SET live = excluded.live, version = excluded.version,
    epoch = excluded.epoch, position = excluded.position, writer = excluded.writer,
    incarnation = excluded.incarnation, ephemeral = excluded.ephemeral, saved_at = excluded.saved_at,
    owner = excluded.owner, blob = excluded.blob
WHERE epoch < excluded.epoch OR (live AND epoch = excluded.epoch AND position <= excluded.position)
"""
_UPDATE = """
UPDATE session SET live = ?, version = ?, epoch = ?, position = ?, writer = ?, incarnation = ?, ephemeral = ?,
    saved_at = ?, owner = ?
"""
_DELETE = f"UPDATE session SET live = 0, saved_at = ?, blob = NULL WHERE {_KEY} AND live AND epoch <= ?"


def check(database: sqlite3.Connection, path: Path) -> int:
    """Refuses what is not ours, or a newer release's; the schema found, 0 for an empty file.

    Raises:
        StoreUnavailable: It cannot be used.
    """
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (schema,) = database.execute("PRAGMA user_version").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION and (application or schema or tables):
        raise StoreUnavailable(
            f"{path} is another program's sqlite database; give a path of its own to the sqlite store"
        )
    if schema > SCHEMA:
        raise StoreUnavailable(
            f"the sqlite store {path} has schema {schema}, this release reads up to {SCHEMA}; "
            "use the newer release, or another path"
        )
    return int(schema)


def create(database: sqlite3.Connection, path: Path) -> None:
    """Makes the tables where they are missing, and brings those of an earlier schema up to date.

    Raises:
        StoreUnavailable: It cannot be used.
    """
    schema = check(database, path)
    if schema == SCHEMA:
        return
    if not schema:
        for statement in _TABLES.split(";\n"):
            database.execute(statement)
        database.execute("INSERT INTO meta VALUES ('generation', ?)", (uuid.uuid4().hex,))
        database.execute(f"PRAGMA application_id = {APPLICATION}")
    for older in range(schema or 1, SCHEMA):
        for statement in _UPGRADES[older]:
            database.execute(statement)
    database.execute(f"PRAGMA user_version = {SCHEMA}")


def check_writable(database: sqlite3.Connection) -> None:
    """Writes something, so that a file that cannot be written is found at the start."""
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO meta VALUES ('opened', '') ON CONFLICT (name) DO UPDATE SET value = ''")


def generation(database: sqlite3.Connection) -> str:
    """What was drawn when the tables were made."""
    (value,) = database.execute("SELECT value FROM meta WHERE name = 'generation'").fetchone()
    return str(value)


_FIELDS = attrgetter("key", "version", "epoch", "position", "writer", "incarnation", "ephemeral", "owner", "blob")


def _columns(row: Sequence[Any]) -> Columns:
    live, version, epoch, position, writer, incarnation, ephemeral, saved_at, owner = row
    return Columns(bool(live), version, epoch, position, writer, incarnation, bool(ephemeral), saved_at, owner)


def claim(database: sqlite3.Connection, claims: Sequence[Claim], clock: Callable[[], float]) -> list[Claimed]:
    """Decides every claim; see `base.Store.claim`."""
    database.execute("BEGIN IMMEDIATE")
    now, answers = clock(), []
    for claim in claims:
        row = database.execute(f"SELECT rowid, {_COLUMNS} FROM session WHERE {_KEY}", claim.key).fetchone()
        verdict, columns, write, keeps = decide(claim, None if row is None else _columns(row[1:]), now)
        blob = None
        if write and columns is not None:
            if row is None:
                database.execute(_INSERT, (*claim.key, *columns, None))
            elif not keeps:
                database.execute(f"{_UPDATE}, blob = NULL WHERE rowid = ?", (*columns, row[0]))
            else:
                database.execute(f"{_UPDATE} WHERE rowid = ?", (*columns, row[0]))
            if verdict is Verdict.TAKEN:
                (blob,) = database.execute("SELECT blob FROM session WHERE rowid = ?", row[:1]).fetchone()
        answers.append(Claimed(verdict, None if columns is None else record_of(claim.key, columns, blob)))
    return answers


def save(database: sqlite3.Connection, records: Sequence[Record], clock: Callable[[], float]) -> list[bool]:
    """Writes the records that are not fenced; see `base.Store.save`."""
    database.execute("BEGIN IMMEDIATE")
    now, answers = clock(), []
    for key, version, epoch, position, writer, incarnation, ephemeral, owner, blob in map(_FIELDS, records):
        values = (*key, True, version, epoch, position, writer, incarnation, ephemeral, now, owner, blob)
        answers.append(database.execute(_SAVE, values).rowcount == 1)
    return answers


def load(database: sqlite3.Connection, keys: Sequence[Key]) -> list[Record | None]:
    """Reads live records, blobs included."""
    database.execute("BEGIN")
    found: list[Record | None] = []
    for key in keys:
        row = database.execute(f"SELECT blob, {_COLUMNS} FROM session WHERE {_KEY} AND live", key).fetchone()
        found.append(None if row is None else record_of(key, _columns(row[1:]), row[0]))
    return found


def epochs(database: sqlite3.Connection, keys: Sequence[Key]) -> list[int]:
    """Stored epochs, of tombstones too; 0 where nothing is stored."""
    database.execute("BEGIN")
    rows = (database.execute(f"SELECT epoch FROM session WHERE {_KEY}", key).fetchone() for key in keys)
    return [0 if row is None else int(row[0]) for row in rows]


def delete(
    database: sqlite3.Connection, keys: Sequence[Key], epochs: Sequence[int], clock: Callable[[], float]
) -> list[bool]:
    """Replaces records by tombstones; see `base.Store.delete`."""
    database.execute("BEGIN IMMEDIATE")
    now = clock()
    return [
        database.execute(_DELETE, (now, *key, min(epoch, NUMBER_LIMIT))).rowcount == 1
        for key, epoch in zip(keys, epochs, strict=True)
    ]


def select(database: sqlite3.Connection, tenant: str, model: str, after: tuple[str, str], limit: int) -> list[Record]:
    """Live records without blobs, by (model, id)."""
    rows = database.execute(
        f"SELECT model, id, {_COLUMNS} FROM session WHERE tenant = ? AND (model, id) > (?, ?) AND live"
        f"{' AND model = ?' if model else ''} ORDER BY model, id LIMIT ?",
        (tenant, *after, *([model] if model else []), limit),
    )
    return [record_of(Key(tenant, name, id_), _columns(columns)) for name, id_, *columns in rows]


def last_row(database: sqlite3.Connection) -> int:
    """The highest row number."""
    (last,) = database.execute("SELECT coalesce(max(rowid), 0) FROM session").fetchone()
    return int(last)


def expire(database: sqlite3.Connection, start: int, before: float, ephemeral_before: float) -> int:
    """Deletes what is old among `EXPIRE_ROWS` rows after `start`; how many."""
    return database.execute(
        "DELETE FROM session WHERE rowid > ? AND rowid <= ? "
        "AND saved_at < CASE WHEN live AND ephemeral THEN ? ELSE ? END",
        (start, start + EXPIRE_ROWS, ephemeral_before, before),
    ).rowcount


def beat(database: sqlite3.Connection, owner: str, address: str, ttl: float, clock: Callable[[], float]) -> None:
    """Notes that a server process lives; forgets those whose last beat is over."""
    database.execute("BEGIN IMMEDIATE")
    now = clock()
    database.execute("DELETE FROM server WHERE until <= ?", (now,))
    database.execute("INSERT OR REPLACE INTO server VALUES (?, ?, ?)", (owner, address, now + ttl))


def leave(database: sqlite3.Connection, owner: str) -> None:
    """Notes that a server process is gone."""
    database.execute("BEGIN IMMEDIATE")
    database.execute("DELETE FROM server WHERE owner = ?", (owner,))


def address_of(database: sqlite3.Connection, owner: str, clock: Callable[[], float]) -> str | None:
    """Where a server process is reached; None where it is gone."""
    row = database.execute("SELECT address FROM server WHERE owner = ? AND until > ?", (owner, clock())).fetchone()
    return None if row is None else str(row[0])
