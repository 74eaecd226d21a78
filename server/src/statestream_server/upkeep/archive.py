"""The file of a backup: written in one pass, read whole or refused.

    file     magic "STSTBKP" and the format, 1 byte · blocks, the last of kind 3
    block    kind · bytes of what follows · crc32 of it (4 bytes each, little-endian) · what follows
    kind 1   about: JSON; the first block
    kind 2   records: each as bytes of the name (4 bytes), bytes of the record (4 bytes), name, record
    kind 3   end: JSON; how many there are of each kind, and the SHA-256 of all bytes before this block

A name is tenant, model and id in UTF-8, zero bytes between them. A record is packed as in Redis (stores/packed.py), a
tombstone is one that is not live.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, NamedTuple

from statestream_server.stores.base import Key, Record
from statestream_server.stores.packed import pack, unpack, unpack_blob
from statestream_server.stores.rules import Columns, record_of
from statestream_server.upkeep.problems import BackupExists, BackupInvalid

FORMAT: Final = 1
"""The format written and read; CONTRIBUTING.md says what to do when it changes."""
_FAMILY: Final = b"STSTBKP"
_MAGIC: Final = _FAMILY + bytes([FORMAT])
_BLOCK: Final = struct.Struct("<III")
_LENGTHS: Final = struct.Struct("<II")
_ABOUT, _RECORDS, _END = 1, 2, 3
_MOST: Final = 1 << 30
"""A block has at most so many bytes: one record is at most 64 MiB, and begins a block of its own beyond a few."""


class About(NamedTuple):
    """What a backup says of itself.

    Attributes:
        store: The kind of store that it was made of: "sqlite", "redis".
        generation: That store's contents by name.
        release: Of the program that wrote it.
        began: Unix time.
    """

    store: str
    generation: str
    release: str
    began: float


class Count(NamedTuple):
    """How much is in a backup.

    Attributes:
        sessions: Records of sessions.
        tombstones: Of deleted ones.
    """

    sessions: int
    tombstones: int


class Writer:
    """Writes a backup; under its name the file is there once it is whole and on the disk."""

    def __init__(self, path: Path, about: About) -> None:
        """Begins a file beside `path`.

        Raises:
            BackupExists: There is a file.
            OSError: It cannot be written.
        """
        if path.exists():
            raise BackupExists(f"{path} is there already; give another name, or move it away")
        self._path, self._part = path, path.with_name(f"{path.name}.part")
        descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._file: BinaryIO = os.fdopen(descriptor, "wb")
        self._sum = hashlib.sha256()
        self._sessions = self._tombstones = 0
        self._write(_MAGIC)
        self._block(_ABOUT, json.dumps(about._asdict()).encode())

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)

    def add(self, records: Sequence[Record]) -> None:
        """Writes records and tombstones."""
        parts = list[bytes]()
        for record in records:
            name, value = "\0".join(record.key).encode(), pack(_columns(record), record.blob)
            parts += (_LENGTHS.pack(len(name), len(value)), name, value)
            self._sessions += record.live
            self._tombstones += not record.live
        if parts:
            self._block(_RECORDS, b"".join(parts))

    def finish(self) -> Count:
        """Ends the file and gives it its name; how much is in it."""
        count = Count(self._sessions, self._tombstones)
        self._block(_END, json.dumps({**count._asdict(), "sha256": self._sum.hexdigest()}).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        try:
            os.link(self._part, self._path)  # Unlike a rename it never takes the place of another file.
        except FileExistsError:
            raise BackupExists(f"{self._path} has come meanwhile; give another name, or move it away") from None
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return count

    def _block(self, kind: int, payload: bytes) -> None:
        self._write(_BLOCK.pack(kind, len(payload), zlib.crc32(payload)))
        self._write(payload)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sum.update(data)


class Archive:
    """A backup that was read from end to end and found whole."""

    def __init__(self, path: Path) -> None:
        """Reads all of a file.

        Raises:
            BackupInvalid: It is damaged, cut off, of a later format, or no backup.
            OSError: It cannot be read.
        """
        self._path = path
        for kind, found in self._blocks():
            if kind == _ABOUT:
                self.about = About(*(found[name] for name in About._fields))
            elif kind == _END:
                self.count = Count(found["sessions"], found["tombstones"])

    def records(self) -> Iterator[list[Record]]:
        """All records and tombstones, in pieces.

        Raises:
            BackupInvalid: It was changed since it was found whole.
        """
        return (found for kind, found in self._blocks() if kind == _RECORDS)

    def _blocks(self) -> Iterator[tuple[int, Any]]:
        with self._path.open("rb") as file:
            start, total, at, sessions, tombstones = file.read(len(_MAGIC)), hashlib.sha256(), len(_MAGIC), 0, 0
            if start != _MAGIC:
                raise self._strange(start)
            total.update(start)
            kind = 0
            while kind != _END:
                head = file.read(_BLOCK.size)
                if len(head) < _BLOCK.size:
                    raise self._damaged(at, "it is cut off: its last block is missing")
                kind, size, crc = _BLOCK.unpack(head)
                payload = file.read(size) if size <= _MOST else b""
                if len(payload) < size or zlib.crc32(payload) != crc or (kind == _ABOUT) != (at == len(_MAGIC)):
                    raise self._damaged(at, f"a block of {size} bytes is cut off, or its checksum does not match")
                try:
                    found: Any = _records(payload) if kind == _RECORDS else json.loads(payload)
                    if kind == _RECORDS:
                        live = sum(record.live for record in found)
                        sessions, tombstones = sessions + live, tombstones + len(found) - live
                    elif kind == _END:
                        said = found["sessions"], found["tombstones"], found["sha256"]
                        if said != (sessions, tombstones, total.hexdigest()) or file.read(1):
                            raise ValueError("the end does not fit what is before or behind it")
                    elif kind != _ABOUT:
                        raise ValueError(f"a block is of kind {kind}; expected 1 to 3")
                except (ValueError, KeyError, TypeError, struct.error) as error:
                    raise self._damaged(at, str(error)) from error
                total.update(head)
                total.update(payload)
                at += len(head) + len(payload)
                yield kind, found

    def _strange(self, start: bytes) -> BackupInvalid:
        if start.startswith(_FAMILY):
            return BackupInvalid(
                f"{self._path} is a backup of format {start[-1]}, this release reads format {FORMAT}; use the release"
                " that wrote it, or a newer one"
            )
        return BackupInvalid(f"{self._path} is no backup: it begins with {start!r}; expected {_MAGIC!r}")

    def _damaged(self, at: int, why: str) -> BackupInvalid:
        return BackupInvalid(f"the backup {self._path} is damaged at byte {at}: {why}; use another one")


def _columns(record: Record) -> Columns:
    return Columns(
        record.live,
        record.version,
        record.epoch,
        record.position,
        record.writer,
        record.incarnation,
        record.ephemeral,
        record.saved_at,
        record.owner,
        record.fence,
    )


def _records(payload: bytes) -> list[Record]:
    found, at = list[Record](), 0
    while at < len(payload):
        of_name, of_value = _LENGTHS.unpack_from(payload, at)
        at += _LENGTHS.size
        name, value = payload[at : at + of_name], payload[at + of_name : at + of_name + of_value]
        at += of_name + of_value
        if at > len(payload):
            raise ValueError("a record is cut off")
        tenant, model, id_ = name.decode().split("\0", 2)
        found.append(record_of(Key(tenant, model, id_), unpack(value), unpack_blob(value)))
    return found
