"""The stored form of a session: a fixed, versioned header, the raw bytes of its row, its kept replies.

Written for many rows at once, read one at a time. All numbers are little-endian.

    header   magic "SSR1" · crc32 of the magic and all that follows · digest of the model (16 bytes) ·
             fingerprint of the runtime (8 bytes) · acknowledged position · last request · replies · bytes of
             a row · digests of the row's columns and of the outputs (8 bytes each)
    row      every column of the slab, one after the other, C order; sparse ones last, and only where one is not zero
    replies  each: start · steps, 0 for a mark · digest · then every output, one after the other, C order
    scores   of each reply that has some, every score, one after the other, C order; then their bytes (4 bytes)
    tail     cursor · origin · bytes of the cursor (2 bytes)

Most sessions have neither cursor nor origin: the highest bit of the number of replies says whether there is a tail. The
next one says whether there are scores, and the highest bit of the steps of a reply that some are of it. The bytes of
the row say whether the sparse columns are there.

Epoch, position and writer are columns of the store's record, because its rules compare them. Every format begins
with magic and crc32, so that a record of a newer release is told from a damaged one. The digests of columns and outputs
let another version of the model read a record whose own version is not there any more.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Bools, Ints, Positions
from statestream_server.engine.replies import Reply, ReplyWindow
from statestream_server.sessions import kept
from statestream_server.sessions.kept import REPLY_FIELDS, SCORES, pieces_of, raw_bytes, read_reply, scores_of
from statestream_server.sessions.layouts import Layout
from statestream_server.stores.batches import Blobs

_FAMILY: Final = b"SSR"
FORMAT: Final = 1
"""The format written and read; CONTRIBUTING.md says what to do when it changes."""
_MAGIC: Final = b"%s%d" % (_FAMILY, FORMAT)
_TAILED: Final = 1 << 31
_WITH_SCORES: Final = 1 << 30
_TAIL: Final = struct.Struct("<QH")
_HEADER = np.dtype(
    [
        ("magic", "S4"),
        ("crc", "<u4"),
        ("model", "V16"),
        ("fingerprint", "<u8"),
        ("acked", "<u8"),
        ("request", "<u8"),
        ("replies", "<u4"),
        ("row_bytes", "<u4"),
        ("columns", "<u8"),
        ("outputs", "<u8"),
    ]
)
_REPLIES_AT: Final = _HEADER.fields["replies"][1] if _HEADER.fields else 0
# The same for reading one at a time, where NumPy's records cost ten times as much.
_HEADER_FIELDS: Final = struct.Struct("<4sI16sQQQIIQQ")
HEADER_BYTES: Final = _HEADER.itemsize
"""Of a record, before its row."""
_STEPS: Final = 256
"""Steps of a chunk, at most by default: what a bound of sizes goes by."""
_SMALL: Final = 1 << 16
"""Bytes of replies that are not counted one by one."""
_CHECKED_FROM: Final = 8
"""The checksum covers the magic and what follows the checksum itself."""


class Header(NamedTuple):
    """What a record says of itself, beside the magic."""

    crc: int
    model: bytes
    fingerprint: int
    acked: int
    request: int
    replies: int
    row_bytes: int
    columns: int
    outputs: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A session read back.

    Attributes:
        values: One array for every column of the slab, without the row axis.
        replies: The kept replies, oldest first.
        acked: The acknowledged position.
        request: Digest of the last request id, 0 for none.
        same_bits: Whether it was written by an equal runtime.
        fingerprint: Stands for the runtime that wrote it.
        origin: The position behind its last reset.
        cursor: The caller's, b"" for none.
    """

    values: list[Array]
    replies: list[Reply]
    acked: int
    request: int
    same_bits: bool
    fingerprint: int
    origin: int = 0
    cursor: bytes = b""


def encode(
    layout: Layout,
    values: Sequence[Array],
    acked: Positions,
    requests: Positions,
    window: ReplyWindow | None,
    rows: Ints,
    *,
    origins: Positions | None = None,
    cursors: Sequence[bytes] = (),
) -> Sequence[bytes]:
    """The records of `rows`.

    Args:
        layout: The model's.
        values: One array [n, ...] for every column of the slab.
        acked: [n] acknowledged positions.
        requests: [n] digests of the last request ids.
        window: The kept replies; None where there are none.
        rows: [n] the rows in that window.
        origins: [n] the positions behind their last resets; None for all 0.
        cursors: [n] the cursors, or no items where none has one.
    """
    if layout.dense < len(layout.columns):
        there = np.zeros(len(rows), np.bool_)
        for value in values[layout.dense :]:
            there |= value.any(axis=tuple(range(1, value.ndim)))
        if there.any() and not there.all():
            return _encode_apart(layout, values, acked, requests, window, rows, origins, cursors, there)
        values = values if there.any() else values[: layout.dense]
    count = len(rows)
    columns = [raw_bytes(array) for array in values]
    state_bytes = sum([column.shape[1] for column in columns])
    header = np.zeros(count, _HEADER)
    header["magic"], header["model"] = _MAGIC, np.void(layout.model)
    header["fingerprint"], header["acked"], header["request"] = layout.fingerprint, acked, requests
    header["columns"], header["outputs"] = layout.columns_digest, layout.outputs_digest
    header["row_bytes"], rounds = state_bytes, window.rounds(rows) if window is not None else []
    for places, _ in rounds:
        header["replies"][places] += 1
    if window is not None and not layout.scores and all(len(places) == count for places, _ in rounds):
        # As many replies each, as where every step is saved.
        sections = [kept.section(layout, window, entries) for _, entries in rounds]
        return _all_tailed(_records([raw_bytes(header), *columns], sections), origins, cursors)
    depths, blobs = header["replies"].copy(), [b""] * count
    scores = scores_of(layout, window, rounds) if window is not None and layout.scores else {}
    header["replies"][[*scores]] |= _WITH_SCORES
    first = np.concatenate([raw_bytes(header), *columns], axis=1)
    for depth in np.flatnonzero(np.bincount(depths)).tolist():
        # Records with as many replies are made together.
        chosen = np.flatnonzero(depths == depth)
        entries = [found[np.searchsorted(places, chosen)] for places, found in rounds[:depth]]
        heads = first if len(chosen) == count else first[chosen]
        sections = [kept.section(layout, window, each) for each in entries] if window is not None else []
        if scores:
            sections.append([scores.get(place, b"") for place in chosen.tolist()])
        made = _records([heads], sections)
        for place, blob in zip(chosen.tolist(), made, strict=True):
            blobs[place] = blob
    return _all_tailed(blobs, origins, cursors)


def _all_tailed(blobs: Sequence[bytes], origins: Positions | None, cursors: Sequence[bytes]) -> Sequence[bytes]:
    """Records with their tails, where they have one."""
    if cursors or (origins is not None and origins.any()):
        blobs = [*blobs]
        begun = origins.tolist() if origins is not None else [0] * len(blobs)
        for place, (origin, cursor) in enumerate(zip(begun, cursors or [b""] * len(blobs), strict=True)):
            if origin or cursor:
                blobs[place] = _tailed(blobs[place], origin, cursor)
    return blobs


def _encode_apart(
    layout: Layout,
    values: Sequence[Array],
    acked: Positions,
    requests: Positions,
    window: ReplyWindow | None,
    rows: Ints,
    origins: Positions | None,
    cursors: Sequence[bytes],
    there: Bools,
) -> Sequence[bytes]:
    """The records of rows of which some, `there` [n], have something in sparse columns."""
    blobs = [b""] * len(rows)
    for places in (np.flatnonzero(there), np.flatnonzero(~there)):
        made = encode(
            layout,
            [value[places] for value in values],
            acked[places],
            requests[places],
            window,
            rows[places],
            origins=None if origins is None else origins[places],
            cursors=[cursors[place] for place in places.tolist()] if cursors else (),
        )
        for place, blob in zip(places.tolist(), made, strict=True):
            blobs[place] = blob
    return blobs


def _tailed(blob: bytes, origin: int, cursor: bytes) -> bytes:
    said = (_replies(blob) | _TAILED).to_bytes(4, "little")
    head, rest = blob[:_REPLIES_AT], blob[_REPLIES_AT + 4 :]
    return _sealed(b"".join([head, said, rest, cursor, _TAIL.pack(origin, len(cursor))]))


def _replies(blob: bytes) -> int:
    return int.from_bytes(blob[_REPLIES_AT : _REPLIES_AT + 4], "little")


def tail(blob: bytes) -> tuple[int, bytes]:
    """The origin and the cursor in a record that is whole."""
    if not _replies(blob) & _TAILED:
        return 0, b""
    origin, length = _TAIL.unpack_from(blob, len(blob) - _TAIL.size)
    end = len(blob) - _TAIL.size
    return origin, blob[end - length : end]


def sizes(layout: Layout, window: ReplyWindow, rows: Ints, positions: Positions | None = None) -> Ints:
    """[n] how many bytes the records of rows have, or a bound where all of them are small.

    Where the sessions stand, at `positions` [n], says the same quicker: each reply that is kept ends above what is
    acknowledged, and at an end of its own.
    """
    state, each = _HEADER.itemsize + layout.row_bytes, REPLY_FIELDS.size + _STEPS * layout.step_bytes
    if positions is not None and len(rows) and (most := int((positions - window.acked[rows]).max()) * each) <= _SMALL:
        return np.full(len(rows), state + most)
    most = int(window.counts(rows).max(initial=0)) * each
    if most <= _SMALL:
        return np.full(len(rows), state + most)
    found = np.full(len(rows), state)
    for places, entries in window.rounds(rows):
        found[places] += REPLY_FIELDS.size + window.columns(entries)[1] * layout.step_bytes
    return found


def encode_stored(layout: Layout, stored: Stored) -> bytes:
    """The record of one session that was read back, as `layout` has it."""
    sparse = any(value.any() for value in stored.values[layout.dense :])
    values = stored.values if sparse else stored.values[: layout.dense]
    state = b"".join(np.ascontiguousarray(value).tobytes() for value in values)
    replies, scores = kept.encoded(layout, stored.replies)
    header = _HEADER_FIELDS.pack(
        _MAGIC,
        0,
        layout.model,
        stored.fingerprint,
        stored.acked,
        stored.request,
        len(stored.replies) | _WITH_SCORES * bool(scores),
        len(state),
        layout.columns_digest,
        layout.outputs_digest,
    )
    blob = _sealed(b"".join([header, state, replies, scores]))
    return _tailed(blob, stored.origin, stored.cursor) if stored.origin or stored.cursor else blob


def _records(first: Sequence[Array], sections: Sequence[Array | list[bytes]]) -> Sequence[bytes]:
    """Records [n] from their first parts, [n, k] uint8 each, and their replies, the oldest first."""
    tables = [section for section in sections if isinstance(section, np.ndarray)]
    if len(tables) == len(sections):
        # The replies have the same lengths in every record, so that they are the rows of one table.
        return _sealed_rows(np.concatenate([*first, *tables], axis=1))
    pieces = [pieces_of(section) if isinstance(section, np.ndarray) else section for section in sections]
    parts = [pieces_of(part) for part in first]
    return [_sealed(b"".join(some)) for some in zip(*parts, *pieces, strict=True)]


def tail_bytes(blob: bytes) -> int:
    """How many bytes a whole record has behind its replies: their scores, and its tail."""
    size = _TAIL.size + len(tail(blob)[1]) if _replies(blob) & _TAILED else 0
    if _replies(blob) & _WITH_SCORES:
        at = len(blob) - size - SCORES.size
        size += SCORES.size + (SCORES.unpack_from(blob, at)[0] if at >= 0 else 0)
    return size


def read_header(blob: bytes, *, what: str) -> Header:
    """Reads what a record says of itself, and checks that it is whole.

    Args:
        blob: What `encode` wrote.
        what: Names the session in errors.

    Raises:
        StateLost: The record is damaged.
        StoreUnavailable: It is of a format that this release does not know.
    """
    if len(blob) < _CHECKED_FROM or not blob.startswith(_FAMILY):
        raise errors.StateLost(f"the record of {what} is damaged: it does not begin as a record")
    if _checksum(blob) != int.from_bytes(blob[4:_CHECKED_FROM], "little"):
        raise errors.StateLost(f"the record of {what} is damaged: its checksum does not match")
    if blob[:4] != _MAGIC:
        raise errors.StoreUnavailable(
            f"the record of {what} is of format {chr(blob[3])}, this release reads format {FORMAT}; nothing is lost:"
            " open the session on a server of the release that wrote it"
        )
    _, *fields = _HEADER_FIELDS.unpack_from(blob)
    header = Header(*fields)
    return header._replace(replies=header.replies & ~_TAILED & ~_WITH_SCORES)


def decode(layout: Layout, blob: bytes, *, what: str, moving: bool = False) -> Stored:
    """Reads a record.

    Args:
        layout: The model's.
        blob: What `encode` wrote.
        what: Names the session in errors.
        moving: Whether the record may be of another model whose columns are the same. Replies with other
            outputs are left out then.

    Raises:
        StateLost: The record is damaged.
        StoreUnavailable: It is of a format that this release does not know.
        ModelChanged: It is of another model.
    """
    header = read_header(blob, what=what)
    if header.model != layout.model and not (moving and header.columns == layout.columns_digest):
        raise errors.ModelChanged(
            f"{what} was saved by a model with digest {header.model.hex()}…, this one has"
            f" {layout.model.hex()}…; serve that version again, or start the session anew"
        )
    offset, values = _HEADER.itemsize, list[Array]()
    sparse = header.row_bytes == layout.row_bytes
    for column in layout.columns:
        if column.sparse and not sparse:
            values.append(np.zeros(column.shape, column.dtype))
            continue
        array, offset = _take(blob, offset, column.dtype, column.shape)
        values.append(array)
    replies, scored = list[Reply](), list[Reply]()
    for _ in range(header.replies if header.outputs == layout.outputs_digest else 0):
        (start, steps, digest, has_scores), offset = read_reply(blob, offset), offset + REPLY_FIELDS.size
        outputs = list[Array]()
        for column in layout.outputs:
            array, offset = _take(blob, offset, column.dtype, (steps, *column.shape))
            outputs.append(array)
        replies.append(Reply(start, steps, digest, outputs))
        if has_scores:
            scored.append(replies[-1])
    for reply in scored:
        for column in layout.scores:
            array, offset = _take(blob, offset, column.dtype, (reply.steps, *column.shape))
            reply.outputs.append(array)
    same_bits = header.fingerprint == layout.fingerprint
    return Stored(values, replies, header.acked, header.request, same_bits, header.fingerprint, *tail(blob))


def _checksum(blob: bytes) -> int:
    return zlib.crc32(memoryview(blob)[_CHECKED_FROM:], zlib.crc32(blob[:4]))


def _sealed_rows(table: Array) -> Blobs:
    """Records [n, k] uint8 with their checksums."""
    count, width = table.shape
    data, after, crc32 = table.reshape(-1).data, zlib.crc32(_MAGIC), zlib.crc32
    ends = range(width, count * width + 1, width)
    sums = [crc32(data[end - width + _CHECKED_FROM : end], after) for end in ends]
    table[:, 4:_CHECKED_FROM] = np.asarray(sums, "<u4")[:, None].view(np.uint8)
    return Blobs(table.tobytes(), width)


def _sealed(blob: bytes) -> bytes:
    return b"".join([blob[:4], _checksum(blob).to_bytes(4, "little"), blob[_CHECKED_FROM:]])


def _take(blob: bytes, offset: int, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> tuple[Array, int]:
    count = math.prod(shape)
    return np.frombuffer(blob, dtype, count, offset).reshape(shape), offset + count * dtype.itemsize
