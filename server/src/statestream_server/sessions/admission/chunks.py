"""Chunks as they came, in columns, and who hears what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Bools, Ints, Positions, some, span
from statestream_server.engine import digests
from statestream_server.engine.table import Table
from statestream_server.engine.work import Work

Refusal = errors.StatestreamError | Callable[[int], errors.StatestreamError]
"""Why chunks were not applied: one error for all, or what makes the error of each by its place when it is written.

It is written when its turn has come and not before, so that a frame of very many chunks that are refused holds the loop
up no longer than one of few.
"""


class Receiver(Protocol):
    """Who gets the replies to chunks; called on the loop. Each chunk ends once, by one of these."""

    def results(self, chunks: Chunks, outputs: Sequence[Array]) -> None:
        """Chunks that were applied, and one packed array for every output."""

    def repeated(self, chunks: Chunks, entries: Ints) -> None:
        """Chunks that had been applied: [n] where their replies are kept, to be taken from there as they are sent."""

    def refused(self, chunks: Chunks, refusal: Refusal) -> None:
        """Chunks that were not applied."""

    def overtaken(self, chunks: Chunks) -> None:
        """Chunks were applied and get no reply: while it waited, the caller's sessions were claimed anew here."""


@dataclass(slots=True, eq=False)
class Chunks(Work):
    """N chunks of sessions of one table: a work, and what their callers say and hear of it.

    Attributes:
        table: The table.
        handles: [N] what the caller calls the sessions.
        starts: [N] the position at which each starts.
        ends: [N] the position at which each ends.
        acked: [N] the position up to which the caller has the replies.
        receiver: Who gets the replies.
        requests: [N] digests of the callers' request ids, 0 for none; None where none has one.
    """

    table: Table = field(kw_only=True)
    handles: Array = field(kw_only=True)
    starts: Positions = field(kw_only=True)
    ends: Positions = field(kw_only=True)
    acked: Positions = field(kw_only=True)
    receiver: Receiver = field(kw_only=True)
    requests: Positions | None = field(default=None, kw_only=True)

    def take(self, places: Ints, *, bare: bool = False) -> Chunks:
        """Some of the chunks (ascending), packed anew, `bare` without inputs; these themselves where that is all."""
        if len(places) == len(self.rows):
            return self
        cut = span(places)
        return Chunks(
            self.rows[cut],
            self.lengths.take(places),
            () if bare else self.lengths.pack(self.inputs, places),
            marks=self.marks.take(places) if self.marks is not None else None,
            table=self.table,
            handles=self.handles[cut],
            starts=self.starts[cut],
            ends=self.ends[cut],
            acked=self.acked[cut],
            receiver=self.receiver,
            requests=self.requests[cut] if self.requests is not None else None,
        )

    def bare(self, places: Ints) -> Chunks:
        """Some of the chunks (ascending) without their inputs."""
        return self.take(places, bare=True)

    def refuse(self, which: Bools, refusal: errors.StatestreamError) -> Chunks:
        """Refuses those of a mask [N]; returns the others."""
        if some(which):
            self.table.counts.refuse(refusal.reason, int(np.count_nonzero(which)))
            self.receiver.refused(self.bare(np.flatnonzero(which)), refusal)
        return self.take(np.flatnonzero(~which))

    def digests(self) -> Positions:
        """[N] what tells them from other chunks at the same positions."""
        if self.marks is not None:
            return self.marks.digests(self.lengths, self.inputs)
        return digests.of_chunks(self.lengths, self.inputs)


def error_at(refusal: Refusal, place: int) -> errors.StatestreamError:
    """Why the chunk at a place was not applied."""
    return refusal if isinstance(refusal, errors.StatestreamError) else refusal(place)
