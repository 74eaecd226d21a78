"""A record as one byte string: a fixed header, then the blob. What memory and Redis keep.

The header has 88 bytes, little-endian: format (uint8), flags (uint8), 6 unused, version, epoch, position,
incarnation (uint64 each), the Unix time of the last claim or save (float64), writer (16 bytes), owner (16
bytes of ASCII, zeros behind it), fence (uint64). lua.py reads and writes the same header.
"""

from __future__ import annotations

import struct

from statestream_server.stores.base import Key, Record
from statestream_server.stores.rules import Columns, newer_of, record_of

FORMAT = 1
"""The format of the header that is written; a store that finds an unknown one was written by another release."""
LIVE, EPHEMERAL, BLOB = 1, 2, 4
"""Flags: not a tombstone; ends with its caller; a blob follows (an empty one too)."""
HEADER = struct.Struct("<BB6xQQQQd16s16sQ")


def pack(columns: Columns, blob: bytes | None) -> bytes:
    """Writes columns and blob as one byte string."""
    live, version, epoch, position, writer, incarnation, ephemeral, saved_at, owner, fence = columns
    flags = (LIVE if live else 0) | (EPHEMERAL if ephemeral else 0) | (0 if blob is None else BLOB)
    header = HEADER.pack(FORMAT, flags, version, epoch, position, incarnation, saved_at, writer, owner.encode(), fence)
    return header if not blob else b"".join((header, blob))


def pack_record(record: Record, now: float) -> bytes:
    """Writes a live record as one byte string, saved now, with nothing stored before it."""
    blob = record.blob
    flags = LIVE | (EPHEMERAL if record.ephemeral else 0) | (0 if blob is None else BLOB)
    header = HEADER.pack(
        FORMAT,
        flags,
        record.version,
        record.epoch,
        record.position,
        record.incarnation,
        now,
        record.writer,
        record.owner.encode(),
        record.epoch,
    )
    return header if not blob else b"".join((header, blob))


def is_known(value: bytes) -> bool:
    """Whether bytes are a packed record of a format that is known."""
    return len(value) >= HEADER.size and value[0] == FORMAT


def unpack(value: bytes) -> Columns:
    """Reads the columns of a packed record.

    Raises:
        ValueError: The bytes are no packed record of a known format.
    """
    if not is_known(value):
        found = f"format {value[0]}" if value else "nothing"
        raise ValueError(f"a packed record of format {FORMAT} was expected, {found} in {len(value)} bytes was found")
    _, flags, version, epoch, position, incarnation, saved_at, writer, owner, fence = HEADER.unpack_from(value)
    name = owner.rstrip(b"\0").decode()
    live, ephemeral = bool(flags & LIVE), bool(flags & EPHEMERAL)
    return Columns(live, version, epoch, position, writer, incarnation, ephemeral, saved_at, name, fence)


def unpack_blob(value: bytes) -> bytes | None:
    """The blob of a packed record."""
    return value[HEADER.size :] if value[1] & BLOB else None


def read_record(key: Key, value: bytes | None, *, blob: bool) -> Record | None:
    """The live record that bytes hold, None for a tombstone or nothing; of a later format only that it is there."""
    if value is None:
        return None
    if not is_known(value):
        return newer_of(key)
    columns = unpack(value)
    return record_of(key, columns, unpack_blob(value) if blob else None) if columns.live else None
