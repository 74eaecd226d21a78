"""Digests of chunks, column-wise: whether two chunks at one position are the same bytes.

Multilinear hashing modulo 2^64 (Lemire and Kaser, "Strongly universal string hashing is fast", 2014): the
words of a chunk times fixed odd random numbers, summed. It tells accidents apart, not forgeries; the
numbers are fixed because digests are stored and compared after a restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from statestream_server.arrays import Array, Ints, Positions, counting
from statestream_server.engine.lengths import Lengths

_WORD = np.dtype("<u8")


class _Multipliers:
    """The random numbers, made as far as they are needed."""

    def __init__(self) -> None:
        self._numbers = np.empty(0, np.uint64)

    def first(self, count: int) -> Positions:
        if count > len(self._numbers):
            size = max(1024, 2 * count)
            stream = np.random.Generator(np.random.Philox(key=0x5353_4431)).integers(0, 2**64, size, np.uint64)
            self._numbers = stream | np.uint64(1)
        return self._numbers[:count]


_multipliers = _Multipliers()


def of_chunks(lengths: Lengths, inputs: Sequence[Array]) -> Positions:
    """One digest for every chunk.

    Args:
        lengths: The steps of each of n chunks.
        inputs: One packed array for every input, [S, ...one step].

    Returns:
        [n] uint64.
    """
    digests = lengths.column.astype(np.uint64)
    for array in inputs:
        per_step = _of_items(array)
        if lengths.each == 1:
            digests = _mix(digests) + per_step * _multipliers.first(1)
            continue
        # The digest of a chunk is the multilinear hash of the digests of its steps.
        if lengths.each:
            weighted = per_step.reshape(lengths.count, lengths.each) * _multipliers.first(lengths.each)
            digests = _mix(digests) + weighted.sum(axis=1, dtype=np.uint64)
            continue
        steps, offsets = lengths.column, lengths.offsets
        weighted = per_step * _multipliers.first(int(steps.max(initial=0)))[_places(steps, offsets)]
        sums = np.zeros(len(weighted) + 1, np.uint64)
        np.cumsum(weighted, out=sums[1:])
        digests = _mix(digests) + sums[offsets + steps] - sums[offsets]
    return digests


OLDER: Final = np.uint64(~1 & (1 << 64) - 1)
"""What is left of the digest of a session's last request that had an id, once one without came behind it."""


def of_text(text: str) -> int:
    """The digest of a request id; odd, so never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") | 1


def _mix(digests: Positions) -> Positions:
    return digests * np.uint64(0x9E37_79B9_7F4A_7C15)


def _places(steps: Ints, offsets: Ints) -> Ints:
    """[S] the number of each packed step within its chunk."""
    return counting(int(steps.sum())) - np.repeat(offsets, steps)


def _of_items(array: Array) -> Positions:
    """[S] the hash of each item along axis 0."""
    raw = np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8).reshape(len(array), -1)
    spare = -raw.shape[1] % 8
    if spare:
        raw = np.pad(raw, ((0, 0), (0, spare)))
    words = raw.view(_WORD)
    return np.asarray((words * _multipliers.first(words.shape[1])).sum(axis=1, dtype=np.uint64), np.uint64)
