"""Bounds of what is kept for sessions: chunks whose replies would be too many, or too large, are refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Ints, some
from statestream_server.engine.table import UNBOUND, Table
from statestream_server.sessions.admission.chunks import Chunks
from statestream_server.settings import Limits

_RETRY_SECONDS = 0.1
_LOOK_SECONDS = 0.05
"""How long it holds which streams have too much: less than those wait who are refused for it."""
_NOBODY: Ints = np.empty(0, np.int64)


class Bounds:
    """What the kept replies of a session, a chunk and a stream may be."""

    def __init__(self, limits: Limits, clock: Callable[[], float], on_crowded: Callable[[Table], None]) -> None:
        """`clock` gives seconds that never go back.

        `on_crowded` hears that replies kept for sessions that nobody has take the room of a table's replies.
        """
        self.most_answer = min(limits.max_answer_bytes, limits.max_kept_bytes)
        """The bytes of one chunk's outputs."""
        self.most_replies = limits.max_replies_bytes
        """The bytes of a table's kept replies before streams are held to their share."""
        self._limits = limits
        self._clock = clock
        self._on_crowded = on_crowded
        self._most_steps = limits.max_chunk_steps * limits.max_unacknowledged_chunks
        self._over: tuple[int, float, Ints] = (0, 0.0, _NOBODY)

    def session(self, chunks: Chunks) -> Chunks:
        """The chunks of sessions with few replies that are not acknowledged, or small ones; the others are refused."""
        table, rows, limits = chunks.table, chunks.rows, self._limits
        full = table.unacknowledged[rows] >= limits.max_unacknowledged_chunks
        if some(full):
            table.unacknowledged[rows] = table.replies.counts(rows) + table.lane.counts(rows)
            full = table.unacknowledged[rows] >= limits.max_unacknowledged_chunks
            error = errors.WindowFull(
                f"{limits.max_unacknowledged_chunks} chunks of the session are not acknowledged; acknowledge replies"
                " before sending more",
                retry_after=_RETRY_SECONDS,
            )
            chunks = chunks.refuse(full, error)
        return self._kept(chunks) if table.output_bytes * self._most_steps > limits.max_kept_bytes else chunks

    def share(self, chunks: Chunks) -> Chunks:
        """The chunks of streams for which not too many replies are kept; those of others are refused.

        The acknowledgements that came with them count, so that whoever is refused has room soon.
        """
        over = np.isin(chunks.table.owner[chunks.rows], self._over_share(chunks.table))
        if some(over):
            error = errors.WindowFull(
                f"more than {self._limits.max_replies_bytes} bytes of replies are not acknowledged, and this stream has"
                " more than its share of them; acknowledge replies before sending more",
                retry_after=_RETRY_SECONDS,
            )
            chunks = chunks.refuse(over, error)
        return chunks

    def _over_share(self, table: Table) -> Ints:
        """The streams that have too much of a table's kept replies, looked at now and then: it is all its rows."""
        known, until, _ = self._over
        if known != id(table) or self._clock() > until:
            had = table.owner > UNBOUND
            owners, index = np.unique(table.owner[had], return_inverse=True)
            steps = (table.position[had] - table.acked[had]).astype(np.float64)
            kept, most = np.bincount(index, steps * table.output_bytes, len(owners)), self._limits.max_replies_bytes
            crowded = kept.sum() > most
            if not crowded:
                self._on_crowded(table)
            over = owners[kept > most / max(1, int(np.count_nonzero(kept)))] if crowded else _NOBODY
            self._over = id(table), self._clock() + _LOOK_SECONDS, over
        return self._over[2]

    def answer(self, chunks: Chunks) -> Chunks:
        """The chunks whose outputs are not too large to be kept and sent; the others are refused."""
        sizes, most = chunks.lengths.column * chunks.table.output_bytes, self.most_answer
        large = sizes > most
        if some(large):
            limit = "--max-answer-bytes" if most == self._limits.max_answer_bytes else "--max-kept-bytes"
            error = too_large(
                f"the outputs of a chunk of model {chunks.table.model.name!r}",
                int(sizes.max()),
                most,
                f"Send fewer steps at a time, or raise {limit}",
            )
            chunks = chunks.refuse(large, error)
        return chunks

    def _kept(self, chunks: Chunks) -> Chunks:
        """The chunks of sessions whose replies have room beside what is kept of them; the others are refused."""
        table, rows, most = chunks.table, chunks.rows, self._limits.max_kept_bytes
        # More than there is, where the caller acknowledged nothing here of what the session had before.
        full = (chunks.ends - table.acked[rows]) * np.uint64(table.output_bytes) > most
        if some(full):
            ahead = (chunks.ends - table.position[rows]).astype(np.int64)
            full &= (ahead + table.replies.steps(rows)) * table.output_bytes > most
            full &= chunks.lengths.column > 0
        if some(full):
            error = errors.WindowFull(
                f"the replies of the session that are not acknowledged, with this one, have more than {most:,} bytes;"
                " acknowledge replies before sending more, or raise --max-kept-bytes",
                retry_after=_RETRY_SECONDS,
            )
            chunks = chunks.refuse(full, error)
        return chunks


def too_large(what: str, size: int, most: int, remedy: str) -> errors.AnswerTooLarge:
    """What is said of an answer that is not made, or not sent."""
    return errors.AnswerTooLarge(
        f"{what} have {size:,} bytes; this server's limit is {most:,}. Nothing was applied. {remedy}",
        metadata={"size": str(size), "limit": str(most)},
    )
