"""The stored form of a session: a fixed, versioned header, the raw bytes of its row, its kept replies.

Written for many rows at once, read one at a time. All numbers are little-endian.

    header   magic "SSR1" · crc32 of all that follows · digest of the model (16 bytes) · fingerprint of
             the runtime (8 bytes) · acknowledged position · last request · replies · bytes of a row
    row      every column of the slab, one after the other, C order
    replies  each: start · steps · digest · then every output, one after the other, C order

Epoch, position and writer are columns of the store's record, because its rules compare them.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from statestream import errors
from statestream_server.arrays import Array, Ints, Positions
from statestream_server.engine.replies import Reply, ReplyWindow
from statestream_server.models.rows import Column

_MAGIC: Final = b"SSR1"
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
    ]
)
_REPLY = np.dtype([("start", "<u8"), ("steps", "<u8"), ("digest", "<u8")])
# The same for reading one at a time, where NumPy's records cost ten times as much.
_HEADER_FIELDS: Final = struct.Struct("<4sI16sQQQII")
_REPLY_FIELDS: Final = struct.Struct("<QQQ")
_CHECKED_FROM: Final = 8
"""The checksum covers what follows it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the bytes of one model's records mean.

    Attributes:
        model: The first 16 bytes of the model's digest.
        fingerprint: Stands for runtime, provider and processor: outputs are the same bits where it is equal.
        columns: The columns of its slab.
        outputs: Dtype and shape of one step of every output.
    """

    model: bytes
    fingerprint: int
    columns: Sequence[Column]
    outputs: Sequence[tuple[np.dtype[np.generic], tuple[int, ...]]]


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
    """

    values: list[Array]
    replies: list[Reply]
    acked: int
    request: int
    same_bits: bool
    fingerprint: int


def encode(
    layout: Layout, values: Sequence[Array], acked: Positions, requests: Positions, window: ReplyWindow, rows: Ints
) -> list[bytes]:
    """The records of `rows`.

    Args:
        layout: The model's.
        values: One array [n, ...] for every column of the slab.
        acked: [n] acknowledged positions.
        requests: [n] digests of the last request ids.
        window: The kept replies.
        rows: [n] the rows in that window.
    """
    count = len(rows)
    state = np.concatenate([_raw(array) for array in values], axis=1) if values else np.empty((count, 0), np.uint8)
    header = np.zeros(count, _HEADER)
    header["magic"], header["model"] = _MAGIC, np.void(layout.model)
    header["fingerprint"], header["acked"], header["request"] = layout.fingerprint, acked, requests
    header["replies"], header["row_bytes"] = window.count[rows], state.shape[1]
    parts = [[piece] for piece in _pieces(np.concatenate([_raw(header), state], axis=1))]
    for places, entries in window.rounds(rows):
        starts, steps, digests = window.columns(entries)
        heads = np.zeros(len(entries), _REPLY)
        heads["start"], heads["steps"], heads["digest"] = starts, steps, digests
        raw_heads = _raw(heads)
        for at, offsets, outputs in window.by_block(entries):
            for place, piece in zip(
                places[at].tolist(), _reply_pieces(raw_heads[at], offsets, steps[at], outputs), strict=True
            ):
                parts[place].append(piece)
    return [_sealed(b"".join(pieces)) for pieces in parts]


def decode(layout: Layout, blob: bytes, *, what: str) -> Stored:
    """Reads a record.

    Args:
        layout: The model's.
        blob: What `encode` wrote.
        what: Names the session in errors.

    Raises:
        StateLost: The record is damaged.
        ModelChanged: It is of another model.
    """
    if len(blob) < _HEADER.itemsize or blob[:4] != _MAGIC:
        raise errors.StateLost(f"the record of {what} is damaged: it does not begin as a record of this format")
    _, crc, model, fingerprint, acked, request, count, _ = _HEADER_FIELDS.unpack_from(blob)
    if zlib.crc32(memoryview(blob)[_CHECKED_FROM:]) != crc:
        raise errors.StateLost(f"the record of {what} is damaged: its checksum does not match")
    if model != layout.model:
        raise errors.ModelChanged(
            f"{what} was saved by a model with digest {model.hex()}…, this one has"
            f" {layout.model.hex()}…; serve that version again, or start the session anew"
        )
    offset, values = _HEADER.itemsize, list[Array]()
    for column in layout.columns:
        array, offset = _take(blob, offset, column.dtype, column.shape)
        values.append(array)
    replies = list[Reply]()
    for _ in range(count):
        (start, steps, digest), offset = _REPLY_FIELDS.unpack_from(blob, offset), offset + _REPLY.itemsize
        outputs = list[Array]()
        for dtype, shape in layout.outputs:
            array, offset = _take(blob, offset, dtype, (steps, *shape))
            outputs.append(array)
        replies.append(Reply(start, steps, digest, outputs))
    return Stored(values, replies, acked, request, fingerprint == layout.fingerprint, fingerprint)


def _raw(array: Array) -> Array:
    """[n, ...] as [n, bytes of one item] uint8."""
    return np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8).reshape(len(array), -1)


def _pieces(raw: Array) -> list[bytes]:
    """[n, k] uint8 as n byte strings."""
    data, width = raw.tobytes(), raw.shape[1]
    return [data[start : start + width] for start in range(0, len(data), width)]


def _reply_pieces(heads: Array, offsets: Ints, steps: Ints, outputs: Sequence[Array]) -> list[bytes]:
    """The bytes of replies whose outputs are in the same packed arrays."""
    if (steps == steps[0]).all():
        index = offsets[:, None] + np.arange(int(steps[0]))
        return _pieces(np.concatenate([heads, *(_raw(array[index]) for array in outputs)], axis=1))
    return [
        head.tobytes() + b"".join(array[offset : offset + count].tobytes() for array in outputs)
        for head, offset, count in zip(heads, offsets.tolist(), steps.tolist(), strict=True)
    ]


def _sealed(blob: bytes) -> bytes:
    crc = zlib.crc32(memoryview(blob)[_CHECKED_FROM:])
    return b"".join([blob[:4], crc.to_bytes(4, "little"), blob[_CHECKED_FROM:]])


def _take(blob: bytes, offset: int, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> tuple[Array, int]:
    count = math.prod(shape)
    return np.frombuffer(blob, dtype, count, offset).reshape(shape), offset + count * dtype.itemsize
