"""The servers of the sqlite store: which live, where each is reached, and how many sessions it has."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from statestream_server.stores.base import Peer

SERVER = "CREATE TABLE server (owner TEXT PRIMARY KEY, address TEXT NOT NULL, until REAL NOT NULL) WITHOUT ROWID"
LOAD = "CREATE TABLE IF NOT EXISTS load (owner TEXT PRIMARY KEY, sessions INTEGER NOT NULL) WITHOUT ROWID"
"""Beside `server`, which other releases write without it."""


def beat(
    database: sqlite3.Connection, owner: str, address: str, ttl: float, sessions: int, clock: Callable[[], float]
) -> None:
    """Notes that a server process lives; forgets those whose last beat is over."""
    database.execute("BEGIN IMMEDIATE")
    now = clock()
    database.execute("DELETE FROM server WHERE until <= ?", (now,))
    database.execute("INSERT OR REPLACE INTO server VALUES (?, ?, ?)", (owner, address, now + ttl))
    database.execute("DELETE FROM load WHERE owner NOT IN (SELECT owner FROM server)")
    database.execute("INSERT OR REPLACE INTO load VALUES (?, ?)", (owner, sessions))


def leave(database: sqlite3.Connection, owner: str) -> None:
    """Notes that a server process is gone."""
    database.execute("BEGIN IMMEDIATE")
    database.execute("DELETE FROM server WHERE owner = ?", (owner,))


def address_of(database: sqlite3.Connection, owner: str, clock: Callable[[], float]) -> str | None:
    """Where a server process is reached; None where it is gone."""
    row = database.execute("SELECT address FROM server WHERE owner = ? AND until > ?", (owner, clock())).fetchone()
    return None if row is None else str(row[0])


def peers(database: sqlite3.Connection, clock: Callable[[], float]) -> list[Peer]:
    """The living server processes."""
    found = database.execute(
        "SELECT owner, address, coalesce(sessions, 0) FROM server LEFT JOIN load USING (owner) WHERE until > ?"
        " ORDER BY owner",
        (clock(),),
    )
    return [Peer(str(owner), str(address), int(sessions)) for owner, address, sessions in found]
