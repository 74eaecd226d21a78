"""The rows of a pool by shard: what is divided among the shards, and their answers put together. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from statestream.contract.errors import AlreadyOpen, StatestreamError
from statestream.contract.tensors import Array, Ints
from statestream.core import ControlTicket, Group, OpenTicket, PoolTicket, StreamCore
from statestream.core.tickets import again
from statestream.layout import Layout
from statestream.shards import L
from statestream.v1.inference_pb2 import OpenMode

T = TypeVar("T")


@dataclass(frozen=True, eq=False, slots=True)
class Part(Generic[L]):
    """The sessions of a pool that belong to one shard.

    Attributes:
        link: The shard's link.
        rows: [n] their rows in the pool, ascending.
        handles: [n] what stands for them in the shard's core.
    """

    link: L
    rows: Ints
    handles: Ints

    def by_row(self, errors: Mapping[int, StatestreamError]) -> dict[int, StatestreamError]:
        """Errors by handle, by row."""
        if not errors:
            return {}
        rows = dict(zip(self.handles.tolist(), self.rows.tolist(), strict=True))
        return {rows[handle]: error for handle, error in errors.items()}


def gathered(parts: Sequence[Part[L]], read: Callable[[Part[L]], Ints]) -> Ints:
    """One number for every row of a pool, of what each part has for its rows."""
    if len(parts) == 1:
        return read(parts[0])
    found = np.zeros(sum(len(part.rows) for part in parts), np.int64)
    for part in parts:
        found[part.rows] = read(part)
    return found


class Openings(Generic[L]):
    """What each shard's core is to open for one call, and how all of that is let go where nobody will have it.

    Args:
        asked: The shards' links, each with the rows of `ids`, and of the start values, that are its own.
        group: What the sessions have in common.
        ids: Their ids.
        mode: How they are opened.
        initial: Start values, [N, ...] by state.
        replies: Bring the replies that nobody acknowledged.
        upgrade: Move those of other versions.
        anew: The server has just made them anew.
    """

    def __init__(
        self,
        asked: Sequence[tuple[L, Ints]],
        group: Group,
        ids: Sequence[str],
        mode: OpenMode,
        initial: Mapping[str, Array],
        *,
        replies: bool,
        upgrade: bool,
        anew: bool = False,
    ) -> None:
        self._tickets: dict[int, OpenTicket] = {}
        self.links = [link for link, _ in asked]
        self._makes: list[Callable[[], OpenTicket]] = []
        for number, (link, rows) in enumerate(asked):
            alone = len(asked) == 1
            own = list(ids) if alone else [ids[row] for row in rows.tolist()]
            values = dict(initial) if alone else {name: array[rows] for name, array in initial.items()}
            make = partial(link.core.open, group, own, mode, values, replies=replies, upgrade=upgrade, anew=anew)
            self._makes.append(partial(self._make, number, make))

    def take(self) -> list[Callable[[], OpenTicket]]:
        """What makes the tickets, once: it has the start values, which nobody needs afterwards."""
        makes, self._makes = self._makes, []
        return makes

    def let_go(self) -> None:
        """Lets go of what was, or is being, opened; at any moment, and more than once."""
        self._tell(lambda core, ticket: core.cancel(ticket))

    def disown(self) -> None:
        """Tells that nobody has the sessions any more: see `Sharing.disown`."""
        self._tell(lambda core, ticket: core.sharing.disown(ticket))

    def _tell(self, end: Callable[[StreamCore, OpenTicket], None]) -> None:
        for number, link in enumerate(self.links):
            with contextlib.suppress(StatestreamError):
                link.do(partial(self._end, number, end))

    def _make(self, number: int, make: Callable[[], OpenTicket]) -> OpenTicket:
        ticket = self._tickets[number] = make()
        return ticket

    def _end(self, number: int, end: Callable[[StreamCore, OpenTicket], None]) -> None:
        # Where the core may be touched, after what was asked of it before.
        ticket = self._tickets.get(number)
        if ticket is not None:
            end(self.links[number].core, ticket)


@dataclass(frozen=True, eq=False, slots=True)
class Opened(Generic[L]):
    """Sessions that are open for a caller.

    Attributes:
        layout: Their model's.
        ticket: What is known of them, by row.
        parts: What each shard has of them.
        openings: Lets them go.
    """

    layout: Layout
    ticket: OpenTicket
    parts: Sequence[Part[L]]
    openings: Openings[L]


def opened(
    count: int, asked: Sequence[tuple[L, Ints]], answers: Sequence[OpenTicket | StatestreamError]
) -> tuple[OpenTicket, list[Part[L]]]:
    """What became of `count` sessions that several shards were asked to open: one ticket by row, and the parts.

    Rows of a shard that could not be asked have its error.

    Raises:
        AlreadyOpen: One shard has some of them open, and will not have them as they were asked for.
        StatestreamError: No shard could be asked.
    """
    for answer in answers:
        if isinstance(answer, AlreadyOpen):
            raise answer
    parts = []
    for (link, rows), answer in zip(asked, answers, strict=True):
        if isinstance(answer, OpenTicket):
            parts.append(Part(link, rows, answer.handles))
    raise_if_all(answers)
    if len(answers) == 1 and isinstance(answers[0], OpenTicket):
        return answers[0], parts
    whole = OpenTicket(np.zeros(count, np.int64))
    for (_, rows), answer in zip(asked, answers, strict=True):
        if isinstance(answer, StatestreamError):
            whole.errors.update((row, again(answer)) for row in rows.tolist())
            continue
        whole.handles[rows] = answer.handles
        whole.created[rows] = answer.created
        whole.versions[rows] = answer.versions
        whole.errors.update((int(rows[row]), error) for row, error in answer.errors.items())
        whole.replies.update((int(rows[row]), replies) for row, replies in answer.replies.items())
    whole.finish()
    return whole, parts


def control_errors(
    parts: Sequence[Part[L]], answers: Sequence[ControlTicket | StatestreamError]
) -> dict[int, StatestreamError]:
    """What went wrong in a flush or a close, by row of the pool.

    Raises:
        StatestreamError: No shard could be asked.
    """
    raise_if_all(answers)
    found: dict[int, StatestreamError] = {}
    for part, answer in zip(parts, answers, strict=True):
        if isinstance(answer, StatestreamError):
            found.update((row, again(answer)) for row in part.rows.tolist())
        else:
            found.update(part.by_row(answer.errors))
    return found


def raise_if_all(answers: Iterable[object]) -> None:
    """Raises the first error where there is no other answer."""
    first = None
    for answer in answers:
        if not isinstance(answer, StatestreamError):
            return
        first = first or answer
    if first is not None:
        raise first


@dataclass(frozen=True, eq=False, slots=True)
class Share(Generic[L]):
    """What one shard has of a step.

    Attributes:
        link: The shard's link.
        rows: [n] the rows of the whole step; none are named where it has all of it.
        ticket: The step of those rows.
    """

    link: L
    rows: Ints
    ticket: PoolTicket


class Division(Generic[L]):
    """Which part each row of a pool belongs to."""

    def __init__(self, parts: Sequence[Part[L]]) -> None:
        count = sum(len(part.rows) for part in parts)
        self._links = [part.link for part in parts]
        self._owners = np.zeros(count, np.int64)
        self._handles = np.zeros(count, np.int64)
        for number, part in enumerate(parts):
            self._owners[part.rows] = number
            self._handles[part.rows] = part.handles

    def split(self, ticket: PoolTicket) -> list[Share[L]]:
        """The shares of a step whose `handles` are rows of the pool; a share has one row at least."""
        count = len(ticket.handles)
        owners, handles = self._owners[ticket.handles], self._handles[ticket.handles]
        shares = []
        for owner in np.unique(owners).tolist():
            rows = np.flatnonzero(owners == owner)
            inputs = tuple(np.frombuffer(data, np.uint8).reshape(count, -1)[rows].tobytes() for data in ticket.inputs)
            lengths = ticket.lengths if isinstance(ticket.lengths, int) else ticket.lengths[rows]
            feed = ticket.feed.part(owner) if ticket.feed is not None else None
            cursors = [ticket.cursors[row] for row in rows.tolist()] if ticket.cursors else ()
            part = PoolTicket(ticket.lane, handles[rows], inputs, lengths, ticket.steps, feed, cursors)
            shares.append(Share(self._links[owner], rows, part))
        return shares


def merge(ticket: PoolTicket, shares: Sequence[Share[L]]) -> None:
    """Puts outputs and errors of the shares, all done, into the ticket of the whole step.

    A share that failed as a whole fails its rows; where all did, the step fails with the first one's error. Where one
    shard has the whole step, its share is the step.
    """
    if len(shares) == 1 and shares[0].ticket is ticket:
        return
    failed = [share.ticket.error for share in shares if share.ticket.error is not None]
    if failed and len(failed) == len(shares):
        ticket.finish(error=failed[0])
        return
    value: dict[str, Array] = {}
    for share in shares:
        part = share.ticket
        if part.error is not None:
            ticket.errors.update((row, again(part.error)) for row in share.rows.tolist())
            continue
        ticket.errors.update((int(share.rows[row]), error) for row, error in part.errors.items())
        for name, array in part.value.items():
            if name not in value:
                value[name] = np.zeros((len(ticket.handles), *array.shape[1:]), array.dtype)
            value[name][share.rows] = array
    ticket.finish(value)
