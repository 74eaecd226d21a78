"""Complaints: what callers are told of chunks that neither go on from where their session stands nor repeat a reply.

Also of those that were applied and whose replies do not leave any more.
"""

from __future__ import annotations

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Bools, Ints, Positions, some
from statestream_server.sessions.admission.chunks import Chunks

OVERTAKEN = "the chunk was applied; before its reply could leave, a newer writer opened the session"


def tell_overtaken(chunks: Chunks, claims: tuple[Ints, Positions]) -> None:
    """Tells of applied chunks whose replies do not leave, because their sessions are not the caller's any more."""
    table, rows = chunks.table, chunks.rows
    gone = (table.serial[rows] != claims[0]) | (table.epoch[rows] == 0)
    if some(gone):
        left = errors.SessionMoved("the session left this server before the reply to the chunk could leave")
        chunks.receiver.refused(chunks.bare(np.flatnonzero(gone)), left)
    overtaken = np.flatnonzero(~gone & ~table.are_claimed(rows, claims))
    if len(overtaken):
        chunks.receiver.overtaken(chunks.bare(overtaken))


def complain(chunks: Chunks, places: Ints, *, kept: Bools) -> None:
    """Refuses chunks that are neither the next of their session nor such whose reply is kept, and counts them.

    Args:
        chunks: The chunks.
        places: [n] which of them.
        kept: [n] whether another chunk's reply is kept at the same position.
    """
    rows, starts, ends = chunks.rows[places], chunks.starts[places], chunks.ends[places]
    queued, acked = chunks.table.queued[rows], chunks.table.acked[rows]
    gaps = starts > queued
    applied = ~gaps & ~kept & (ends <= acked)
    for kind, which in (
        (errors.PositionGap, gaps),
        (errors.AlreadyApplied, applied),
        (errors.PositionConflict, ~gaps & ~applied),
    ):
        if some(which):
            chunks.table.counts.refuse(kind.reason, int(np.count_nonzero(which)))

    def complaint(place: int) -> errors.StatestreamError:
        start, end, position = int(starts[place]), int(ends[place]), int(queued[place])
        if gaps[place]:
            return errors.PositionGap(
                f"the chunk starts at {start}, the session is at {position}; send from {position}",
                metadata={"expected_position": str(position)},
            )
        if applied[place]:
            return errors.AlreadyApplied(
                f"the chunk {start}…{end} was applied and its reply acknowledged (position {position}); go on from"
                " there",
                metadata={"position": str(position)},
            )
        return errors.PositionConflict(
            f"another chunk was applied at {start} (the session is at {position}): either two callers write to this"
            " session, or this one changed its inputs",
            metadata={"position": str(position)},
        )

    chunks.receiver.refused(chunks.bare(places), complaint)
