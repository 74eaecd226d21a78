"""The tables of the sqlite store, and what is done on them in a transaction. No thread and no file lives here.

What comes in bulk is one statement over a JSON list of ids and a byte string in which every item has its place: the
interpreter is called once for thousands of sessions, and its lock stays with the loop.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from statestream.contract.errors import StoreUnavailable
from statestream_server.stores import sqlite_servers
from statestream_server.stores.base import Claim, Claimed, Key, Record, Verdict
from statestream_server.stores.rules import Columns, Decision, bury, decide, record_of

APPLICATION = 0x53545354
"""Marks a file as ours (PRAGMA application_id)."""
SCHEMA = 1
"""The version of the tables (PRAGMA user_version)."""

_META = "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
_SESSION = """
CREATE TABLE session (
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    id TEXT NOT NULL,
    live INTEGER NOT NULL,
    ephemeral INTEGER NOT NULL,
    saved_at REAL NOT NULL,
    head BLOB NOT NULL,
    blob BLOB,
    UNIQUE (tenant, model, id)
)
"""
HEAD = struct.Struct(">QQQQ16s16sQ")
"""Epoch, position, incarnation, version, writer, owner, fence. Big-endian: numbers compare as their bytes do."""
_FENCE = HEAD.size - 7
"""Where the fence begins, as substr counts."""
COLUMNS = "live, ephemeral, saved_at, head"
EXPIRE_ROWS = 10_000
"""How many rows one transaction of an expiry looks at."""
MOST_BYTES = 16 << 20
"""The most bytes of blobs in one statement, about."""

# Statements in bulk are about sessions of one tenant (?1) and model (?2): a list of ids in JSON (?3), in which NULL
# stands for the one id (?4) that JSON cannot carry.
_EACH = "json_each(?3) each"
_FOUND = f"{_EACH} CROSS JOIN session ON tenant = ?1 AND model = ?2 AND session.id = coalesce(each.value, ?4)"
_FIND = f"SELECT each.key, {COLUMNS} FROM {_FOUND}"
_READ = f"SELECT each.key, {COLUMNS}, blob FROM {_FOUND}"
# Then: ephemeral (?5), time (?6), heads (?7), blobs (?8) and the bytes of each (?9).
_WRITE = f"""
INSERT INTO session (tenant, model, id, {COLUMNS}, blob)
SELECT ?1, ?2, coalesce(each.value, ?4),
    {{live}}, ?5, ?6, substr(?7, 1 + {HEAD.size} * each.key, {HEAD.size}), {{blob}}
FROM {_EACH} WHERE true
ON CONFLICT (tenant, model, id) DO UPDATE SET
    live = excluded.live, ephemeral = excluded.ephemeral, saved_at = excluded.saved_at, head = {{head}}
"""
_GO_ON = _WRITE.format(live=1, blob="NULL", head="excluded.head")
_BEGIN = f"{_GO_ON}, blob = NULL"
_BURY = f"{_WRITE.format(live=0, blob='NULL', head='excluded.head')}, blob = NULL"
_BLOB = "substr(?8, 1 + ?9 * each.key, ?9)"
_CARRY = f"{_WRITE.format(live=1, blob=_BLOB, head='excluded.head')}, blob = excluded.blob"
# The rule of saves (rules.saved) where the row is, so that a save is one statement.
_HEAD_OF_SAVE = f"""CASE
    WHEN NOT live OR substr(head, 1, 8) < substr(excluded.head, 1, 8) THEN excluded.head
    WHEN substr(head, 1, 8) = substr(excluded.head, 1, 8)
        THEN CAST(substr(excluded.head, 1, {_FENCE - 1}) || substr(head, {_FENCE}) AS BLOB)
    ELSE CAST(substr(head, 1, 8) || substr(excluded.head, 9, 8) || substr(head, 17, 8) || substr(excluded.head, 25, 8)
        || substr(head, 33) AS BLOB) END"""
SAVE = f"""
{_WRITE.format(live=1, blob=_BLOB, head=_HEAD_OF_SAVE)}, blob = excluded.blob
WHERE CASE
    WHEN NOT live THEN substr(head, 1, 8) < substr(excluded.head, 1, 8)
    WHEN substr(head, 1, 8) <= substr(excluded.head, 1, 8) THEN substr(head, 1, 16) <= substr(excluded.head, 1, 16)
    ELSE substr(head, {_FENCE}) <= substr(excluded.head, 1, 8) AND substr(head, 9, 8) <= substr(excluded.head, 9, 8) END
"""
# Then: time (?5), epochs (?6).
_TOUCH = f"""
UPDATE session SET saved_at = ?5 FROM {_EACH}
WHERE tenant = ?1 AND model = ?2 AND session.id = coalesce(each.value, ?4) AND live
    AND substr(head, {_FENCE}) <= substr(?6, 1 + 8 * each.key, 8)
"""


def check(database: sqlite3.Connection, path: Path) -> int:
    """Refuses what is not ours, or a newer release's; the schema found, 0 for an empty file.

    Reads several times: the caller holds a transaction.

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
    """Makes the tables where they are missing.

    Raises:
        StoreUnavailable: It cannot be used.
    """
    schema = check(database, path)
    database.execute(sqlite_servers.LOAD)
    if schema == SCHEMA:
        return
    for statement in (_META, sqlite_servers.SERVER, _SESSION):
        database.execute(statement)
    database.execute("INSERT INTO meta VALUES ('generation', ?)", (uuid.uuid4().hex,))
    database.execute(f"PRAGMA application_id = {APPLICATION}")
    database.execute(f"PRAGMA user_version = {SCHEMA}")


def check_writable(database: sqlite3.Connection) -> None:
    """Writes something, so that a file that cannot be written is found at the start."""
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO meta VALUES ('opened', '') ON CONFLICT (name) DO UPDATE SET value = ''")


def generation(database: sqlite3.Connection) -> str:
    """What was drawn when the tables were made."""
    (value,) = database.execute("SELECT value FROM meta WHERE name = 'generation'").fetchone()
    return str(value)


def columns_of(row: Sequence[Any]) -> Columns:
    """What a row of `COLUMNS` says."""
    live, ephemeral, saved_at, head = row
    epoch, position, incarnation, version, writer, owner, fence = HEAD.unpack(head)
    name = owner.rstrip(b"\0").decode()
    return Columns(bool(live), version, epoch, position, writer, incarnation, bool(ephemeral), saved_at, name, fence)


def _head(columns: Columns) -> bytes:
    _, version, epoch, position, writer, incarnation, _, _, owner, fence = columns
    return HEAD.pack(epoch, position, incarnation, version, writer, owner.encode(), fence)


def _parts(keys: Sequence[Key], kinds: Sequence[object]) -> Iterator[list[int]]:
    """Cuts a batch into what one statement can be about: sessions of one tenant, model and kind, each once.

    What comes several times for one session keeps its order.
    """
    tenants, models, ids = zip(*keys, strict=True) if keys else ((), (), ())
    if len({*tenants}) == len({*models}) == len({*kinds}) == 1 and len({*ids}) == len(ids) and "\0" not in "".join(ids):
        return iter(([*range(len(keys))],))  # As most are.
    turns: list[int] = [0] * len(keys)
    if len(set(keys)) < len(keys):
        seen = Counter[Key]()
        for place, key in enumerate(keys):
            turns[place], seen[key] = seen[key], seen[key] + 1
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, (key, kind, turn) in enumerate(zip(keys, kinds, turns, strict=True)):
        odd = key.id if "\0" in key.id else ""
        groups.setdefault((turn, key.tenant, key.model, kind, odd), []).append(place)
    return (groups[group] for group in sorted(groups, key=itemgetter(0)))


def _names(keys: Sequence[Key]) -> tuple[str, str, str, str]:
    """The first parameters of statements in bulk."""
    tenant, model, first = keys[0]
    if "\0" in first:
        return tenant, model, "[null]", first
    return names_of(tenant, model, [key.id for key in keys])


def names_of(tenant: str, model: str, ids: Sequence[str]) -> tuple[str, str, str, str]:
    """The same for ids that JSON can carry."""
    return tenant, model, json.dumps(ids, ensure_ascii=False), ""


def find(database: sqlite3.Connection, keys: Sequence[Key]) -> dict[int, Columns]:
    """What is stored, tombstones too, by place; the keys are those of a part."""
    return {place: columns_of(row) for place, *row in database.execute(_FIND, _names(keys))}


def claim(database: sqlite3.Connection, claims: Sequence[Claim], clock: Callable[[], float]) -> list[Claimed]:
    """Decides every claim; see `base.Store.claim`."""
    database.execute("BEGIN IMMEDIATE")
    now, answers = clock(), [Claimed(Verdict.MISSING, None)] * len(claims)
    for part in _parts([claim.key for claim in claims], [0] * len(claims)):
        decided = _claim(database, [claims[place] for place in part], now)
        for place, answer in zip(part, decided, strict=True):
            answers[place] = answer
    return answers


def _claim(database: sqlite3.Connection, claims: Sequence[Claim], now: float) -> list[Claimed]:
    keys = [claim.key for claim in claims]
    stored = find(database, keys)
    # Claims of sessions that are new differ in key and state alone: they are decided once.
    new: dict[tuple[object, ...], Decision] = {}
    decisions = list[Decision]()
    for place, claim in enumerate(claims):
        found, asked = stored.get(place), claim[1:-1]
        decision = new.get(asked) if found is None else decide(claim, found, now)
        if decision is None:
            decision = new[asked] = decide(claim, None, now)
        decisions.append(decision)
    writes: dict[tuple[bool, bool, int | None], list[tuple[Key, bytes, bytes]]] = {}
    packed = dict[int, bytes]()  # By identity: new sessions share what was decided, and so what is written.
    for claim, (_, columns, write, keeps, carries) in zip(claims, decisions, strict=True):
        if write and columns is not None:
            blob = claim.blob if carries else None
            kind = keeps, columns.ephemeral, None if blob is None else len(blob)
            head = packed.get(id(columns))
            if head is None:
                head = packed[id(columns)] = _head(columns)
            writes.setdefault(kind, []).append((claim.key, head, blob or b""))
    for (keeps, ephemeral, size), rows in writes.items():
        most = max(1, MOST_BYTES // max(1, size or 0))
        for start in range(0, len(rows), most):
            part = rows[start : start + most]
            given = (*_names([key for key, _, _ in part]), ephemeral, now, b"".join(head for _, head, _ in part))
            if size is None:
                database.execute(_GO_ON if keeps else _BEGIN, given)
            else:
                database.execute(_CARRY, (*given, b"".join(blob for _, _, blob in part) or b"\0", size))
    blobs = _taken(database, [key for key, made in zip(keys, decisions, strict=True) if made.verdict is Verdict.TAKEN])
    return [
        Claimed(verdict, None if columns is None else record_of(key, columns, blobs.get(key)))
        for key, (verdict, columns, *_) in zip(keys, decisions, strict=True)
    ]


def _taken(database: sqlite3.Connection, keys: Sequence[Key]) -> dict[Key, bytes | None]:
    """The blobs of sessions that are there."""
    if not keys:
        return {}
    return {keys[place]: blob for place, *_, blob in database.execute(_READ, _names(keys))}


def save(database: sqlite3.Connection, records: Sequence[Record], clock: Callable[[], float]) -> list[bool]:
    """Writes the records that are not fenced; see `base.Store.save`."""
    database.execute("BEGIN IMMEDIATE")
    now, answers = clock(), [True] * len(records)
    kinds = [(record.ephemeral, None if record.blob is None else len(record.blob)) for record in records]
    for part in _parts([record.key for record in records], kinds):
        _, size = kinds[part[0]]
        most = max(1, MOST_BYTES // max(1, size or 0))
        for start in range(0, len(part), most):
            places = part[start : start + most]
            for place in _fenced(database, [records[place] for place in places], now):
                answers[places[place]] = False
    return answers


def _fenced(database: sqlite3.Connection, records: Sequence[Record], now: float) -> list[int]:
    """Writes records whose blobs are of one length; the places of those that were refused."""
    keys, versions, epochs, positions, writers, incarnations, (ephemeral, *_), blobs, _, owners, _, _ = zip(
        *records, strict=True
    )
    owned = map(str.encode, owners)
    heads = b"".join(map(HEAD.pack, epochs, positions, incarnations, versions, writers, owned, epochs))
    size = None if blobs[0] is None else len(blobs[0])
    # Of an empty byte string, sqlite takes NULL for a part.
    data = None if size is None else b"".join(blobs) or b"\0"
    names = _names(keys)
    if database.execute(SAVE, (*names, ephemeral, now, heads, data, size)).rowcount == len(records):
        return []
    return sorted(are_refused(find(database, keys), epochs, positions))


def are_refused(found: Mapping[int, Columns], epochs: Sequence[int], positions: Sequence[int]) -> set[int]:
    """The places of saved records that are not what is `found` behind them.

    What a save is fenced by is above it, or a tombstone: where it stands now, it was written.
    """
    return {
        place
        for place, (epoch, position) in enumerate(zip(epochs, positions, strict=True))
        if (one := found.get(place)) is None or not one.live or one.fence > epoch or one.position != position
    }


def load(database: sqlite3.Connection, keys: Sequence[Key]) -> list[Record | None]:
    """Reads live records, blobs included."""
    database.execute("BEGIN")
    found: list[Record | None] = [None] * len(keys)
    for part in _parts(keys, [0] * len(keys)):
        for place, *row, blob in database.execute(_READ, _names([keys[place] for place in part])):
            columns = columns_of(row)
            found[part[place]] = record_of(keys[part[place]], columns, blob) if columns.live else None
    return found


def heads(database: sqlite3.Connection, keys: Sequence[Key]) -> list[Record | None]:
    """Records without blobs, tombstones too; None where nothing is stored."""
    database.execute("BEGIN")
    found: list[Record | None] = [None] * len(keys)
    for part in _parts(keys, [0] * len(keys)):
        for place, columns in find(database, [keys[place] for place in part]).items():
            found[part[place]] = record_of(keys[part[place]], columns)
    return found


def touch(database: sqlite3.Connection, keys: Sequence[Key], epochs: Sequence[int], clock: Callable[[], float]) -> None:
    """Takes records for used now; see `base.Store.touch`."""
    database.execute("BEGIN IMMEDIATE")
    now = clock()
    for part in _parts(keys, [0] * len(keys)):
        packed = b"".join(epochs[place].to_bytes(8, "big") for place in part)
        database.execute(_TOUCH, (*_names([keys[place] for place in part]), now, packed))


def delete(
    database: sqlite3.Connection, asked: Sequence[tuple[Key, int, int]], clock: Callable[[], float]
) -> list[bool]:
    """Replaces records by tombstones; see `base.Store.delete`."""
    database.execute("BEGIN IMMEDIATE")
    now, answers, keys = clock(), [False] * len(asked), [key for key, _, _ in asked]
    for part in _parts(keys, [0] * len(keys)):
        found = find(database, [keys[place] for place in part])
        buried = list[tuple[Key, bytes]]()
        for index, place in enumerate(part):
            key, epoch, incarnation = asked[place]
            answers[place], tombstone = bury(found.get(index), epoch, incarnation, now)
            if tombstone is not None:
                buried.append((key, _head(tombstone)))
        if buried:
            heads = b"".join(head for _, head in buried)
            database.execute(_BURY, (*_names([key for key, _ in buried]), False, now, heads))
    return answers


def select(database: sqlite3.Connection, tenant: str, model: str, after: tuple[str, str], limit: int) -> list[Record]:
    """Live records without blobs, by (model, id)."""
    if model and after[0] > model:
        return []
    # Of one model by its ids alone: what compares pairs, too, would have SQLite sort all of them for each page.
    which, order, asked = "(model, id) > (?, ?)", "model, id", after
    if model:
        which, order, asked = "model = ? AND id > ?", "id", (model, after[1])
        if after[0] < model:
            which, asked = "model = ? AND id >= ?", (model, "")
    rows = database.execute(
        f"SELECT model, id, {COLUMNS} FROM session WHERE tenant = ? AND {which} AND live ORDER BY {order} LIMIT ?",
        (tenant, *asked, limit),
    )
    return [record_of(Key(tenant, name, id_), columns_of(columns)) for name, id_, *columns in rows]


def last_row(database: sqlite3.Connection) -> int:
    """The highest row number."""
    (last,) = database.execute("SELECT coalesce(max(rowid), 0) FROM session").fetchone()
    return int(last)


def expire(
    database: sqlite3.Connection,
    start: int,
    before: float,
    ephemeral_before: float,
    tombs_before: float,
    by_model: Mapping[str, float],
) -> int:
    """Deletes what is old among `EXPIRE_ROWS` rows after `start`; how many."""
    models = "".join(" WHEN model = ? THEN ?" for _ in by_model)
    times = (value for pair in by_model.items() for value in pair)
    return database.execute(
        "DELETE FROM session WHERE rowid > ? AND rowid <= ? "
        f"AND saved_at < CASE WHEN NOT live THEN ? WHEN ephemeral THEN ?{models} ELSE ? END",
        (start, start + EXPIRE_ROWS, tombs_before, ephemeral_before, *times, before),
    ).rowcount
