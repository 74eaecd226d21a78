"""What one OpenFrame asks for: cut from large requests, joined of small ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from statestream.contract.tensors import Array, Ints
from statestream.core.table import Table
from statestream.core.tickets import JoinedTicket, OpenTicket
from statestream.v1.inference_pb2 import OpenMode

FRAME_SESSIONS = 4096
"""The most sessions in one OpenFrame."""

FRAME_BYTES = 1 << 20
"""The most bytes of start values in one, about."""


@dataclass(eq=False, slots=True)
class Opening:
    """Sessions of one OpenFrame.

    Attributes:
        handles: [N] the sessions.
        mode: How they are opened.
        ticket: Who waits; None where the library opens again by itself.
        rows: [N] their rows in the ticket.
        initial: Start values, [N, ...] by state.
        not_before: When it may leave.
        uncertain: It left before, and may have been done: its stream was lost, or the server could not answer.
        done: That it was: what is there now was made by it.
        claims: How often it was tried.
        since: When it was refused for the first time.
        replies: The caller asked for the replies that nobody acknowledged.
        upgrade: The caller wants sessions of other versions moved to the one it names.
        revival: They had failed, and are opened again under their handles.
        apart: It shares no frame, because one that it was in was refused as a whole.
        left: The sessions without an answer.
        faults: How many streams in a row ended by a fault while its replies were on their way.
    """

    handles: Ints
    mode: OpenMode
    ticket: OpenTicket | None = None
    rows: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    initial: dict[str, Array] = field(default_factory=dict)
    not_before: float = 0.0
    uncertain: bool = False
    claims: int = 0
    since: float = 0.0
    replies: bool = False
    upgrade: bool = False
    done: bool = False
    revival: bool = False
    apart: bool = False
    left: set[int] = field(default_factory=set)
    faults: int = 0

    def part(self, rows: Ints) -> Opening:
        """Some of the sessions."""
        return replace(
            self,
            handles=self.handles[rows],
            rows=self.rows[rows] if self.ticket is not None else self.rows,
            initial={name: array[rows] for name, array in self.initial.items()},
            left=set(),
        )


def frames(opening: Opening) -> Iterator[Opening]:
    """A large opening, cut."""
    count = len(opening.handles)
    nbytes = sum(array.nbytes for array in opening.initial.values()) // max(1, count)
    most = max(1, min(FRAME_SESSIONS, FRAME_BYTES // max(1, nbytes)))
    for low in range(0, count, most):
        yield opening.part(np.arange(low, min(low + most, count)))


def joined(openings: Sequence[Opening], table: Table) -> list[Opening]:
    """Single sessions that may share a frame in as few as possible; the other openings as they are."""
    found: list[Opening] = []
    alike: dict[tuple[object, ...], list[tuple[set[str], list[Opening]]]] = {}
    for opening in openings:
        if len(opening.handles) != 1 or opening.initial or opening.replies or opening.apart:
            found.append(opening)
            continue
        handle = int(opening.handles[0])
        kind = (
            int(table.group[handle]),
            opening.mode,
            int(table.incarnation[handle]),
            opening.uncertain,
            opening.claims,
            opening.ticket is None,
            opening.upgrade,
            opening.done,
            opening.revival,
        )
        batches = alike.setdefault(kind, [])
        # An id comes once in a frame: who opens it twice claims it twice.
        if not batches or len(batches[-1][1]) >= FRAME_SESSIONS or table.ids[handle] in batches[-1][0]:
            batches.append((set(), []))
        batches[-1][0].add(table.ids[handle])
        batches[-1][1].append(opening)
    found += [_join(batch) for batches in alike.values() for _, batch in batches]
    return found


def _join(openings: list[Opening]) -> Opening:
    first = openings[0]
    if len(openings) == 1:
        return first
    handles = np.concatenate([opening.handles for opening in openings])
    tickets = [opening.ticket for opening in openings if opening.ticket is not None]
    rows = [int(opening.rows[0]) for opening in openings if opening.ticket is not None]
    ticket = JoinedTicket(handles, tickets, rows) if tickets else None
    whole = Opening(handles, first.mode, ticket, np.arange(len(handles)) if tickets else first.rows)
    whole.uncertain, whole.claims, whole.upgrade = first.uncertain, first.claims, first.upgrade
    whole.done, whole.revival = first.done, first.revival
    whole.since = min((opening.since for opening in openings if opening.since), default=0.0)
    return whole


def indices(handles: Ints, wanted: Ints) -> Ints:
    """Where each of `wanted` stands in `handles`."""
    if len(wanted) == 1:
        return np.flatnonzero(handles == wanted[0])
    if len(handles) == len(wanted) and bool((handles == wanted).all()):
        return np.arange(len(handles))
    order = np.argsort(handles, kind="stable")
    found: Ints = order[np.searchsorted(handles, wanted, sorter=order)]
    return found
