"""Who notes what runs, outside the process, so that what ended it is known to the next one. No files here."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from statestream_server.arrays import Array, Bools

_ENDS = 4096
"""Bytes of the begin and the end of an input that its tag is made of."""


class Notes(Protocol):
    """Where the engine notes what runs, one run at a time."""

    def enter(self, model: bytes, tags: Array, at: Array | int = 0, what: str = "") -> None:
        """Work of a model (16 bytes) runs from now on: tags [n] uint64.

        `at` says where each begins: the position of a session, else 0; `what` what it is, where it is one thing.
        """

    def leave(self) -> None:
        """It ended, however it did."""


class Watch(Protocol):
    """What the engine tells of its runs, and what it is told of them."""

    @property
    def notes(self) -> Notes:
        """Where runs are noted."""

    @property
    def wary(self) -> bool:
        """Whether anything at all is suspected or may not run."""

    def suspected(self, model: bytes, tags: Array) -> Bools | None:
        """Which of the tags [n] are to run apart, or not at all: `check` says; None for none of them."""

    def survived(self, model: bytes, tags: Array, at: Array | int = 0) -> None:
        """Work that is to run apart went well, from where it began."""

    def check(self, model: bytes, tag: int, at: int | None = None) -> None:
        """Checks that work may run: all of it, or from `at` on.

        Raises:
            Quarantined: It may not.
        """


def tag_of(*parts: str | bytes) -> int:
    """A number that stands for a session or a call in every process, never 0.

    Checksums, because every session that is opened needs one: two with the same tag share a suspicion, no more.
    """
    total, length = 0, 0
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total = zlib.crc32(data, total ^ len(data))
        length += len(data)
    return (length & 0xFFFFFFFF) << 32 | total or 1


def tags_of(first: Iterable[str], names: Iterable[str]) -> list[int]:
    """`tag_of(*first, name)` of every name: what they have in common is looked at once."""
    total, length = 0, 0
    for data in map(str.encode, first):
        total = zlib.crc32(data, total ^ len(data))
        length += len(data)
    return [
        ((length + len(name)) & 0xFFFFFFFF) << 32 | zlib.crc32(name, total ^ len(name)) or 1
        for name in map(str.encode, names)
    ]


def tag_of_arrays(arrays: Sequence[Array]) -> int:
    """The tag of a call by its inputs: by their ends, where they are large."""
    return tags_of_calls(arrays, [len(array) if array.ndim else 1 for array in arrays[:1]], ())[0]


def tags_of_calls(arrays: Sequence[Array], rows: Sequence[int], axes: Sequence[int]) -> list[int]:
    """The tags of calls whose inputs lie one behind the other along `axes`; without axes of the only call."""
    totals, lengths = [0] * len(rows), [0] * len(rows)
    for number, array in enumerate(arrays):
        axis = axes[number] if len(rows) > 1 else 0
        moved = np.ascontiguousarray(array if not axis else np.moveaxis(array, axis, 0))
        data = moved.reshape(-1).view(np.uint8).data
        each = moved.nbytes // max(1, sum(rows)) if len(rows) > 1 else moved.nbytes
        seed = zlib.crc32(str(moved.shape[1:]).encode())
        low = 0
        for place, count in enumerate(rows):
            high = low + (each * count if len(rows) > 1 else each)
            total = totals[place] ^ seed ^ (high - low)
            if high - low <= 2 * _ENDS:
                total = zlib.crc32(data[low:high], total)
            else:
                total = zlib.crc32(data[high - _ENDS : high], zlib.crc32(data[low : low + _ENDS], total))
            totals[place], low = total, high
            lengths[place] += count
    return [(length & 0xFFFFFFFF) << 32 | total or 1 for length, total in zip(lengths, totals, strict=True)]
