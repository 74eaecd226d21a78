"""The stored form of a session: a fixed, versioned header, the raw bytes of its row, its kept replies.

Written for many rows at once, read one at a time. All numbers are little-endian.

    header   magic "SSR1" · crc32 of the magic and all that follows · digest of the model (16 bytes) ·
             fingerprint of the runtime (8 bytes) · acknowledged position · last request · replies · bytes of
             a row · digests of the row's columns and of the outputs (8 bytes each)
    row      every column of the slab, one after the other, C order
    replies  each: start · steps, 0 for a mark · digest · then every output, one after the other, C order
    tail     cursor · origin · bytes of the cursor (2 bytes)

Most sessions have neither cursor nor origin: the highest bit of the number of replies says whether there is a tail.

Epoch, position and writer are columns of the store's record, because its rules compare them. Every format begins
with magic and crc32, so that a record of a newer release is told from a damaged one. The digests of columns and outputs
let another version of the model read a record whose own version is not there any more.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from statestream.contract import errors
from statestream.contract.signature import numpy_dtype, step_shape
from statestream_server.arrays import Array, Ints, Positions
from statestream_server.engine.replies import Reply, ReplyWindow
from statestream_server.models.model import Model
from statestream_server.models.rows import Column

_FAMILY: Final = b"SSR"
FORMAT: Final = 1
"""The format written and read; CONTRIBUTING.md says what to do when it changes."""
_MAGIC: Final = b"%s%d" % (_FAMILY, FORMAT)
_TAILED: Final = 1 << 31
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
_REPLY = np.dtype([("start", "<u8"), ("steps", "<u8"), ("digest", "<u8")])
# The same for reading one at a time, where NumPy's records cost ten times as much.
_HEADER_FIELDS: Final = struct.Struct("<4sI16sQQQIIQQ")
HEADER_BYTES: Final = _HEADER.itemsize
"""Of a record, before its row."""
REPLY_FIELDS: Final = struct.Struct("<QQQ")
"""Start, steps and digest before the outputs of a reply."""
_STEPS: Final = 256
"""Steps of a chunk, at most by default: what a bound of sizes goes by."""
_SMALL: Final = 1 << 16
"""Bytes of replies that are not counted one by one."""
_CHECKED_FROM: Final = 8
"""The checksum covers the magic and what follows the checksum itself."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the bytes of one model's records mean.

    Attributes:
        model: The first 16 bytes of the model's digest.
        fingerprint: Stands for runtime, provider and hardware: outputs are the same bits where it is equal.
        columns: The columns of its slab.
        outputs: One step of every output.
        columns_digest: Stands for names, dtypes and shapes of the columns.
        outputs_digest: Stands for those of the outputs.
        row_bytes: Bytes of a row.
        step_bytes: Bytes of one step of all outputs.
    """

    model: bytes
    fingerprint: int
    columns: Sequence[Column]
    outputs: Sequence[Column]
    columns_digest: int = field(init=False)
    outputs_digest: int = field(init=False)
    row_bytes: int = field(init=False)
    step_bytes: int = field(init=False)

    @classmethod
    def of(cls, model: Model, columns: Sequence[Column], fingerprint: str) -> Layout:
        """The records of a model's sessions; `fingerprint` names runtime, provider and hardware."""
        outputs = [Column(spec.name, numpy_dtype(spec.dtype), step_shape(spec)) for spec in model.signature.outputs]
        number = int.from_bytes(hashlib.blake2b(fingerprint.encode(), digest_size=8).digest(), "little")
        return cls(model.mark, number, columns, outputs)

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns_digest", digest_of(self.columns))
        object.__setattr__(self, "outputs_digest", digest_of(self.outputs))
        object.__setattr__(self, "row_bytes", _nbytes(self.columns))
        object.__setattr__(self, "step_bytes", _nbytes(self.outputs))


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
) -> list[bytes]:
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
    count = len(rows)
    state = np.concatenate([_raw(array) for array in values], axis=1) if values else np.empty((count, 0), np.uint8)
    header = np.zeros(count, _HEADER)
    header["magic"], header["model"] = _MAGIC, np.void(layout.model)
    header["fingerprint"], header["acked"], header["request"] = layout.fingerprint, acked, requests
    header["columns"], header["outputs"] = layout.columns_digest, layout.outputs_digest
    header["row_bytes"], rounds = state.shape[1], window.rounds(rows) if window is not None else []
    for places, _ in rounds:
        header["replies"][places] += 1
    first, depths, blobs = np.concatenate([_raw(header), state], axis=1), header["replies"], [b""] * count
    for depth in np.flatnonzero(np.bincount(depths)).tolist():
        # Records with as many replies are made together.
        chosen = np.flatnonzero(depths == depth)
        entries = [found[np.searchsorted(places, chosen)] for places, found in rounds[:depth]]
        heads = first if len(chosen) == count else first[chosen]
        made = _records(heads, [_section(window, each) for each in entries] if window is not None else [])
        for place, blob in zip(chosen.tolist(), made, strict=True):
            blobs[place] = blob
    if cursors or (origins is not None and origins.any()):
        begun = origins.tolist() if origins is not None else [0] * len(rows)
        for place, (origin, cursor) in enumerate(zip(begun, cursors or [b""] * len(rows), strict=True)):
            if origin or cursor:
                blobs[place] = _tailed(blobs[place], origin, cursor)
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


def sizes(layout: Layout, window: ReplyWindow, rows: Ints) -> Ints:
    """[n] how many bytes the records of rows have, or a bound where all of them are small."""
    state = _HEADER.itemsize + layout.row_bytes
    counts = window.counts(rows)
    most = int(counts.max(initial=0)) * (_REPLY.itemsize + _STEPS * layout.step_bytes)
    if most <= _SMALL:
        return np.full(len(rows), state + most)
    found = np.full(len(rows), state)
    for places, entries in window.rounds(rows):
        found[places] += _REPLY.itemsize + window.columns(entries)[1] * layout.step_bytes
    return found


def encode_stored(layout: Layout, stored: Stored) -> bytes:
    """The record of one session that was read back, as `layout` has it."""
    state = b"".join(np.ascontiguousarray(value).tobytes() for value in stored.values)
    header = _HEADER_FIELDS.pack(
        _MAGIC,
        0,
        layout.model,
        stored.fingerprint,
        stored.acked,
        stored.request,
        len(stored.replies),
        len(state),
        layout.columns_digest,
        layout.outputs_digest,
    )
    replies = [
        part
        for reply in stored.replies
        for part in (
            REPLY_FIELDS.pack(reply.start, reply.steps, reply.digest),
            *(np.ascontiguousarray(output).tobytes() for output in reply.outputs),
        )
    ]
    blob = _sealed(b"".join([header, state, *replies]))
    return _tailed(blob, stored.origin, stored.cursor) if stored.origin or stored.cursor else blob


def _records(first: Array, sections: Sequence[Array | list[bytes]]) -> list[bytes]:
    """Records [n] from their first parts [n, k] uint8 and their replies, the oldest first."""
    tables = [section for section in sections if isinstance(section, np.ndarray)]
    if len(tables) == len(sections):
        # The replies have the same lengths in every record, so that they are the rows of one table.
        return _sealed_rows(np.concatenate([first, *tables], axis=1))
    pieces = [_pieces(section) if isinstance(section, np.ndarray) else section for section in sections]
    return [_sealed(b"".join(parts)) for parts in zip(_pieces(first), *pieces, strict=True)]


def tail_bytes(blob: bytes) -> int:
    """How many bytes the tail of a whole record has."""
    return _TAIL.size + len(tail(blob)[1]) if _replies(blob) & _TAILED else 0


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
    return header._replace(replies=header.replies & ~_TAILED)


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
    for column in layout.columns:
        array, offset = _take(blob, offset, column.dtype, column.shape)
        values.append(array)
    replies = list[Reply]()
    for _ in range(header.replies if header.outputs == layout.outputs_digest else 0):
        (start, steps, digest), offset = REPLY_FIELDS.unpack_from(blob, offset), offset + _REPLY.itemsize
        outputs = list[Array]()
        for _, dtype, shape in layout.outputs:
            array, offset = _take(blob, offset, dtype, (steps, *shape))
            outputs.append(array)
        replies.append(Reply(start, steps, digest, outputs))
    same_bits = header.fingerprint == layout.fingerprint
    return Stored(values, replies, header.acked, header.request, same_bits, header.fingerprint, *tail(blob))


def _nbytes(columns: Sequence[Column]) -> int:
    return sum(abs(math.prod(shape)) * dtype.itemsize for _, dtype, shape in columns)


def digest_of(columns: Sequence[Column]) -> int:
    """What a header says of the columns of a row, or of the outputs."""
    text = "\n".join(f"{name} {dtype.str} {list(shape)}" for name, dtype, shape in columns)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _checksum(blob: bytes) -> int:
    return zlib.crc32(memoryview(blob)[_CHECKED_FROM:], zlib.crc32(blob[:4]))


def _raw(array: Array) -> Array:
    """[n, ...] as [n, bytes of one item] uint8; n may be 0."""
    flat = np.ascontiguousarray(array).reshape(len(array), math.prod(array.shape[1:]))
    return flat.view(np.uint8)


def _pieces(raw: Array) -> list[bytes]:
    """[n, k] uint8 as n byte strings."""
    data, width = raw.tobytes(), raw.shape[1]
    return [data[start : start + width] for start in range(0, len(data), width)]


def _section(window: ReplyWindow, entries: Ints) -> Array | list[bytes]:
    """Replies [n] in their stored form: as [n, k] uint8 where all have the same steps."""
    starts, steps, digests = window.columns(entries)
    heads = np.zeros(len(entries), _REPLY)
    heads["start"], heads["steps"], heads["digest"] = starts, steps, digests
    blocks = window.by_block(entries)
    if (steps == steps[0]).all():
        span = np.arange(int(steps[0]))
        parts = [(at, [_raw(array[offsets[:, None] + span]) for array in outputs]) for at, offsets, outputs in blocks]
        table = np.empty((len(entries), _REPLY.itemsize + sum(raw.shape[1] for raw in parts[0][1])), np.uint8)
        table[:, : _REPLY.itemsize] = _raw(heads)
        for at, raws in parts:
            table[at, _REPLY.itemsize :] = np.concatenate(raws, axis=1)
        return table
    pieces = _pieces(_raw(heads))
    for at, offsets, outputs in blocks:
        for place, offset, count in zip(at.tolist(), offsets.tolist(), steps[at].tolist(), strict=True):
            pieces[place] += b"".join(array[offset : offset + count].tobytes() for array in outputs)
    return pieces


def _sealed_rows(table: Array) -> list[bytes]:
    """Records [n, k] uint8 with their checksums."""
    count, width = table.shape
    data, after, crc32 = table.reshape(-1).data, zlib.crc32(_MAGIC), zlib.crc32
    ends = range(width, count * width + 1, width)
    sums = [crc32(data[end - width + _CHECKED_FROM : end], after) for end in ends]
    table[:, 4:_CHECKED_FROM] = np.asarray(sums, "<u4")[:, None].view(np.uint8)
    return _pieces(table)


def _sealed(blob: bytes) -> bytes:
    return b"".join([blob[:4], _checksum(blob).to_bytes(4, "little"), blob[_CHECKED_FROM:]])


def _take(blob: bytes, offset: int, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> tuple[Array, int]:
    count = math.prod(shape)
    return np.frombuffer(blob, dtype, count, offset).reshape(shape), offset + count * dtype.itemsize
