"""Kept replies in their stored form, and their scores; records.py says where they are in a record."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Final

import numpy as np

from statestream_server.arrays import Array, Ints
from statestream_server.engine.replies import Reply, ReplyWindow
from statestream_server.sessions.layouts import Layout

REPLY_FIELDS: Final = struct.Struct("<QQQ")
"""Start, steps and digest before the outputs of a reply."""
SCORES: Final = struct.Struct("<I")
"""Their bytes, behind the scores of a record."""
_REPLY = np.dtype([("start", "<u8"), ("steps", "<u8"), ("digest", "<u8")])
_SCORED: Final = 1 << 63


def read_reply(blob: bytes, offset: int) -> tuple[int, int, int, bool]:
    """Start, steps and digest of the reply at an offset, and whether it has scores."""
    start, steps, digest = REPLY_FIELDS.unpack_from(blob, offset)
    return start, steps & ~_SCORED, digest, steps >= _SCORED


def section(layout: Layout, window: ReplyWindow, entries: Ints) -> Array | list[bytes]:
    """Replies [n] in their stored form: as [n, k] uint8 where all have the same steps."""
    starts, steps, digests = window.columns(entries)
    heads = np.zeros(len(entries), _REPLY)
    heads["start"], heads["steps"], heads["digest"] = starts, steps, digests
    blocks, count = window.by_block(entries), len(layout.outputs)
    for at, _, outputs in blocks if layout.scores else ():
        if layout.has_scores(outputs):
            heads["steps"][at] |= np.uint64(_SCORED)
    blocks = [(at, offsets, outputs[:count]) for at, offsets, outputs in blocks] if layout.scores else blocks
    if (steps == steps[0]).all():
        span = np.arange(int(steps[0]))
        parts = [
            (at, [raw_bytes(array[offsets[:, None] + span]) for array in outputs]) for at, offsets, outputs in blocks
        ]
        table = np.empty((len(entries), _REPLY.itemsize + sum(raw.shape[1] for raw in parts[0][1])), np.uint8)
        table[:, : _REPLY.itemsize] = raw_bytes(heads)
        for at, raws in parts:
            table[at, _REPLY.itemsize :] = np.concatenate(raws, axis=1)
        return table
    pieces = pieces_of(raw_bytes(heads))
    for at, offsets, outputs in blocks:
        for place, offset, count in zip(at.tolist(), offsets.tolist(), steps[at].tolist(), strict=True):
            pieces[place] += b"".join(array[offset : offset + count].tobytes() for array in outputs)
    return pieces


def scores_of(layout: Layout, window: ReplyWindow, rounds: Sequence[tuple[Ints, Ints]]) -> dict[int, bytes]:
    """What records have of scores, by their places: of those that have some."""
    found = dict[int, list[bytes]]()
    for places, entries in rounds:
        steps = window.columns(entries)[1]
        for at, offsets, outputs in window.by_block(entries):
            if layout.has_scores(outputs):
                for place, offset, many in zip(places[at].tolist(), offsets.tolist(), steps[at].tolist(), strict=True):
                    parts = [array[offset : offset + many].tobytes() for array in outputs[len(layout.outputs) :]]
                    found.setdefault(place, []).extend(parts)
    scores = {place: b"".join(parts) for place, parts in found.items()}
    return {place: data + SCORES.pack(len(data)) for place, data in scores.items()}


def encoded(layout: Layout, replies: Sequence[Reply]) -> tuple[bytes, bytes]:
    """Replies of one session, and what its record has of their scores."""
    count, parts = len(layout.outputs), list[bytes]()
    for reply in replies:
        parts.append(
            REPLY_FIELDS.pack(reply.start, reply.steps | _SCORED * layout.has_scores(reply.outputs), reply.digest)
        )
        parts += [np.ascontiguousarray(output).tobytes() for output in reply.outputs[:count]]
    scored = any(layout.has_scores(reply.outputs) for reply in replies)
    data = b"".join(np.ascontiguousarray(array).tobytes() for reply in replies for array in reply.outputs[count:])
    return b"".join(parts), data + SCORES.pack(len(data)) if scored else b""


def raw_bytes(array: Array) -> Array:
    """[n, ...] as [n, bytes of one item] uint8; n may be 0."""
    flat = np.ascontiguousarray(array).reshape(len(array), math.prod(array.shape[1:]))
    return flat.view(np.uint8)


def pieces_of(raw: Array) -> list[bytes]:
    """[n, k] uint8 as n byte strings."""
    data, width = raw.tobytes(), raw.shape[1]
    return [data[start : start + width] for start in range(0, len(data), width)]
