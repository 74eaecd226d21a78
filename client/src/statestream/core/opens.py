"""Opening sessions: for the first time, anew, and again after a stream was lost; columnar, thousands in a frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat

import numpy as np

from statestream.contract import errors
from statestream.contract.errors import StatestreamError, from_status
from statestream.contract.tensors import (
    Array,
    Ints,
    handles_column,
    positions_column,
    read_handles,
    read_positions,
    to_tensor,
)
from statestream.core.departures import Departures
from statestream.core.log import Log
from statestream.core.opening import Opening, frames, indices, joined
from statestream.core.redelivery import Redelivery
from statestream.core.table import Group, State, Table
from statestream.core.tickets import JoinedTicket, OpenTicket, again
from statestream.v1.inference_pb2 import (
    OPEN_MODE_CREATE,
    OPEN_MODE_EITHER,
    OPEN_MODE_REPLACE,
    OPEN_MODE_RESUME,
    OpenedFrame,
    OpenFrame,
    OpenMode,
)

MAX_CLAIMS = 8
"""How often a first open is repeated with a higher incarnation."""

RETRIED = (errors.Unavailable, errors.Overloaded)
"""Refusals after which a session that was open before is tried again."""

TOGETHER = 3_600_000_000
"""Claims whose incarnations are of one hour, in microseconds, may share a frame when they are repeated.

The server refuses a frame whose incarnation is far ahead of its clock: who made it has not made that of the others.
"""

MAX_REOPENS = 4
"""How often a live session is opened again without an answered chunk in between."""


class Opens:
    """Opens under way, and what their answers do to the table."""

    def __init__(
        self, table: Table, log: Log, departures: Departures, writer: bytes, incarnation: int, retry_seconds: float
    ) -> None:
        self.writer = writer
        self.clock = incarnation
        self.retry_seconds = retry_seconds
        self.waiting: list[Opening] = []
        self.in_flight: dict[int, Opening] = {}
        self.redelivery = Redelivery(table)
        self._table = table
        self._log = log
        self._departures = departures
        self._reopened: list[tuple[Ints, Ints]] = []
        self.on_open: Callable[[Ints], None] = _nothing
        """Hears of sessions that are open for a caller."""
        self.on_refused: Callable[[int, Opening, Group, StatestreamError], None] = _nothing
        """Hears of a session that was refused to its caller, or could not be revived: when that is noted."""

    def open(
        self,
        handles: Ints,
        mode: OpenMode,
        ticket: OpenTicket,
        initial: dict[str, Array],
        *,
        rows: Ints | None = None,
        replies: bool = False,
        upgrade: bool = False,
    ) -> None:
        """Asks for sessions for the first time; they are these rows of the ticket, or all of them in this order."""
        rows = np.arange(len(handles)) if rows is None else rows
        self._table.incarnation[handles] = self.clock
        whole = Opening(handles, mode, ticket, rows, initial, replies=replies, upgrade=upgrade)
        if initial and mode != OPEN_MODE_REPLACE:
            for row, handle in enumerate(handles.tolist()):
                self._table.initial[handle] = {name: array[row] for name, array in initial.items()}
        self.waiting.extend(frames(whole))

    def revive(self, handles: Ints) -> None:
        """Asks for sessions that failed as they are on the server now; what is submitted meanwhile goes on from there.

        It waits for the late answers to what was sent before, which must not be taken for those to what is sent then.
        """
        table, ticket = self._table, OpenTicket(handles)
        ticket.dropped = True  # Its sessions are open whatever becomes of it.
        self._log.forget(handles)
        for handle in handles.tolist():
            for known in (table.failures, table.initial, table.untaken, table.unheard):
                known.pop(handle, None)
        table.state[handles] = State.OPENING
        table.incarnation[handles] = table.incarnation[handles].max(initial=0) + 1
        self.waiting.extend(frames(Opening(handles, OPEN_MODE_EITHER, ticket, np.arange(len(handles)), revival=True)))

    def withdraw(self, handles: Ints) -> Ints:
        """Asks no more for sessions whose callers have gone; returns those of which nothing is on its way.

        One that may have been opened on a stream that was lost is asked for again, so that it can be let go.
        """
        kept, gone = list[Opening](), [handles[:0]]
        for opening in self.waiting:
            unwanted = np.isin(opening.handles, handles)
            if opening.ticket is None or opening.uncertain or not unwanted.any():
                kept.append(opening)
                continue
            gone.append(opening.handles[unwanted])
            if not unwanted.all():
                kept.append(opening.part(np.flatnonzero(~unwanted)))
        self.waiting = kept
        return np.concatenate(gone)

    def fail(self, handle: int, error: StatestreamError) -> None:
        """Makes a session unusable."""
        self._log.fail(handle, error)

    def reopen(self, handle: int, cause: StatestreamError, now: float) -> None:
        """Opens one session of a live stream again; after several times in vain it fails with the cause."""
        table = self._table
        if table.state[handle] == State.LOST:
            return
        if table.attempts[handle] >= MAX_REOPENS:
            self._log.fail(handle, cause)
            return
        self._log.unbind(handle)
        table.state[handle] = State.LOST
        delay = cause.retry_after if cause.retry_after is not None else 0.05 * (2 ** int(table.attempts[handle]) - 1)
        table.attempts[handle] += 1
        table.incarnation[handle] += 1
        self.waiting.extend(self._again(np.array([handle]), now + delay))

    def connected(self) -> None:
        """Asks for every session that is open, in columns."""
        table = self._table
        handles = table.live()
        table.state[handles] = State.LOST
        table.incarnation[handles] += 1
        self.waiting.extend(self._again(handles, 0.0))

    def left(self, handle: int, error: StatestreamError, now: float) -> bool:
        """A session left the stream while its kept replies were on their way; False where they were not."""
        elsewhere = isinstance(error, errors.NotOwner | errors.Draining)
        opening = self.redelivery.left(handle, error, again=elsewhere)
        if isinstance(opening, Opening):
            self._table.incarnation[handle] += 1
            opening.not_before = now + (error.retry_after or 0.05)
            self.waiting.append(opening)
        return opening is not False

    def lost(self, fault: StatestreamError | None = None) -> None:
        """The stream is gone: first opens wait to be sent again; the others start anew with the next stream."""
        waiting = []
        for opening in self.in_flight.values():
            if opening.ticket is not None:
                left = np.isin(opening.handles, np.fromiter(opening.left, np.int64))
                part = opening.part(np.flatnonzero(left & (self._table.state[opening.handles] == State.OPENING)))
                if not len(part.handles):
                    continue
                part.uncertain = True
                # The lost one may still arrive, after this one: it must count as the older claim.
                self._table.incarnation[part.handles] += 1
                waiting.append(part)
        waiting.extend(self.redelivery.lost(fault))
        waiting.extend(opening for opening in self.waiting if opening.ticket is not None)
        self.waiting = waiting
        self.in_flight.clear()
        self._reopened.clear()

    def ready(self, now: float) -> list[Opening]:
        """Takes those that may leave, in as few frames as possible."""
        due, rest = list[Opening](), list[Opening]()
        for opening in self.waiting:
            late = opening.revival and self._table.in_flight[opening.handles].any()
            (rest if late or opening.not_before > now else due).append(opening)
        self.waiting = rest
        return joined(due, self._table)

    def sent(self, frame: int, opening: Opening) -> OpenFrame:
        """Notes the number under which it leaves; returns the frame."""
        table, handles = self._table, opening.handles
        opening.left = set(handles.tolist())
        self.in_flight[frame] = opening
        group = table.groups[int(table.group[handles[0]])]
        mode = opening.mode
        if opening.done and mode == OPEN_MODE_CREATE:
            mode = OPEN_MODE_EITHER
        message = OpenFrame(
            model=group.model,
            version=group.version,
            handles=handles_column(handles),
            ids=[table.ids[handle] for handle in handles.tolist()],
            mode=mode,
            writer=self.writer,
            incarnation=int(table.incarnation[handles[0]]),
            ephemeral=group.ephemeral,
            initial_states=[to_tensor(name, array) for name, array in opening.initial.items()],
            return_replies=opening.replies,
            # Only the caller's own opening moves a session. It is durable in the new version when the answer comes, so
            # that the library opens it there ever after; one whose answer was lost is sent again as it was.
            upgrade=opening.upgrade,
        )
        if table.epoch[handles].any():
            message.seen_epochs = positions_column(table.epoch[handles])
        if opening.ticket is None:
            message.replay_positions = positions_column(table.floor[handles])
            message.acked_positions = positions_column(table.acknowledgeable(handles))
        return message

    def opened(self, frame: int, message: OpenedFrame, now: float) -> bool:
        """Binds what was opened; refused ones are tried again, or fail. Whether a caller waited for it."""
        opening = self.in_flight.get(frame)
        if opening is None:
            return False
        handles = read_handles(message.handles)
        count = len(handles)
        epochs = read_positions(message.epochs, count)
        positions = read_positions(message.positions, count)
        durable = read_positions(message.durable_positions, count)
        created = np.frombuffer(message.created, np.uint8) if message.created else np.zeros(count, np.uint8)
        kept = read_handles(message.kept).astype(np.int64) if message.kept else np.zeros(count, np.int64)
        # One that waited too long, or whose caller learned of another end meanwhile, stays as it is.
        awaited = self._table.state[handles] == (State.LOST if opening.ticket is None else State.OPENING)
        if not awaited.all():
            opening.left.difference_update(handles.tolist())
            handles, epochs, positions = handles[awaited], epochs[awaited], positions[awaited]
            durable, created, kept = durable[awaited], created[awaited], kept[awaited]
            count = len(handles)
        if count:
            opening.left.difference_update(handles.tolist())
            table = self._table
            table.epoch[handles] = epochs
            table.durable[handles] = durable
            group = table.groups[int(table.group[handles[0]])]
            table.group[handles] = table.group_number(Group(group.model, message.version, group.ephemeral))
            self._log.windows.told(group.model, message.version, message.window_bytes)
            self._departures.max_kept = message.kept_window_bytes or self._departures.max_kept
            if opening.ticket is None:
                self._bound_again(handles, positions)
            else:
                rows = self._bound(opening, opening.ticket, handles, positions, epochs, created != 0, message.version)
                self._bound_history(message, handles)
                if opening.replies:
                    rows = self.redelivery.expect(frame, opening, handles, rows, kept)
                opening.ticket.count(rows)
                self.on_open(handles[self._table.state[handles] == State.OPEN])
        self._refused(opening, {error.handle: from_status(error.status) for error in message.errors}, now)
        if not opening.left:
            self.in_flight.pop(frame, None)
        self._replay()
        # Those whose replies are still to come are no answer yet.
        return opening.ticket is not None and frame not in self.redelivery

    def refuse_frame(self, frame: int, error: StatestreamError, now: float) -> bool:
        """Refuses every session of a frame; False where the frame opened none."""
        opening = self.in_flight.pop(frame, None)
        if opening is None:
            return False
        if not self._refused_apart(opening, error):
            self._refused(opening, {handle: again(error) for handle in sorted(opening.left)}, now)
        self._replay()
        return True

    def give_up(self, error: StatestreamError) -> None:
        """Fails every first open; the others are dropped until the next stream."""
        for opening in [*self.in_flight.values(), *self.waiting]:
            if opening.ticket is not None:
                left = opening.left or set(opening.handles.tolist())
                for handle in left:
                    self._fail_first(opening, handle, again(error))
        self.redelivery.give_up(error)
        self.in_flight.clear()
        self.waiting.clear()
        self._reopened.clear()

    def due(self) -> float | None:
        """When the next one may leave, of those that must wait."""
        return min((opening.not_before for opening in self.waiting if opening.not_before), default=None)

    def _bound(
        self,
        opening: Opening,
        ticket: OpenTicket,
        handles: Ints,
        positions: Ints,
        epochs: Ints,
        created: Array,
        version: int,
    ) -> Ints:
        """Enters what is known of sessions that were opened for a caller; returns their rows in the ticket."""
        table = self._table
        rows = opening.rows[indices(opening.handles, handles)]
        if opening.revival:
            self._log.rebase(handles, positions)
        else:
            table.next[handles] = positions
        for name in ("sent", "answered", "floor"):
            getattr(table, name)[handles] = positions
        for name in ("acked", "in_flight", "unacked", "stale", "attempts"):
            getattr(table, name)[handles] = 0
        table.state[handles] = State.OPEN
        ticket.opened(rows, created | (opening.done & (positions == 0)), version)
        if opening.done:
            for at in np.flatnonzero(~created & (positions > 0)).tolist():
                # Somebody else was quicker.
                handle = int(handles[at])
                taken = errors.SessionExists(
                    f"session {table.ids[handle]!r} exists already; choose another id, or open it with mode 'either'"
                )
                ticket.refuse(int(rows[at]), taken)
                table.holders[handle] = 0
        return rows

    def _bound_history(self, message: OpenedFrame, handles: Ints) -> None:
        """Enters where the histories of sessions began, and their callers' cursors."""
        table = self._table
        table.origin[handles] = 0
        if not (message.origins or message.cursors or table.cursors):
            return
        named = read_handles(message.handles).tolist()
        origins = read_positions(message.origins, len(named)).tolist() if message.origins else repeat(0)
        wanted = set(handles.tolist())
        for handle, origin, cursor in zip(named, origins, message.cursors or repeat(b""), strict=False):
            if handle in wanted:
                table.origin[handle] = origin
                table.cursors.pop(handle, None)
                if cursor:
                    table.cursors[handle] = cursor

    def _bound_again(self, handles: Ints, positions: Ints) -> None:
        table = self._table
        short = positions < table.floor[handles]
        ahead = positions > table.next[handles]
        for handle, position in zip(handles[short].tolist(), positions[short].tolist(), strict=True):
            self._log.fail(handle, _lost(table.ids[handle], position, int(table.floor[handle])))
        for handle, position in zip(handles[ahead].tolist(), positions[ahead].tolist(), strict=True):
            self._log.fail(
                handle,
                errors.SessionMoved(
                    f"session {table.ids[handle]!r} is at position {position}, this client sent steps up to "
                    f"{int(table.next[handle])}: another writer stepped it. Open it again to go on from there."
                ),
            )
        good = ~(short | ahead)
        self._reopened.append((handles[good], positions[good]))

    def go_on(self) -> None:
        """Has sessions that are bound again go on, whatever becomes of the others."""
        if self._reopened:
            self._replay_now()

    def _replay(self) -> None:
        # One pass over the buffer for all sessions of a reconnect, not one for every frame of it.
        if not self._reopened or any(opening.ticket is None for opening in self.in_flight.values()):
            return
        if any(opening.ticket is None and not opening.not_before for opening in self.waiting):
            return
        self._replay_now()

    def _replay_now(self) -> None:
        handles = np.concatenate([handles for handles, _ in self._reopened])
        positions = np.concatenate([positions for _, positions in self._reopened])
        self._reopened.clear()
        lost = self._table.state[handles] == State.LOST
        if lost.any():
            self._log.replay(handles[lost], positions[lost])

    def _refused(self, opening: Opening, refusals: dict[int, StatestreamError], now: float) -> None:
        """Tries refused sessions again, all of a frame together, or fails them."""
        table = self._table
        opening.since = opening.since or now
        later: list[int] = []
        moved: dict[int, list[int]] = {}
        done: list[int] = []
        wait = 0.0
        for handle, error in refusals.items():
            if handle not in opening.left:
                continue
            opening.left.discard(handle)
            first = opening.ticket is not None
            if table.state[handle] != (State.OPENING if first else State.LOST):
                continue  # It waited too long, and failed.
            again_soon = opening.claims < MAX_CLAIMS if first else now - opening.since < self.retry_seconds
            if first and not opening.revival and not table.holders[handle]:
                self._fail_first(opening, handle, error)  # Nobody waits for another try.
            elif first and isinstance(error, errors.SessionMoved) and again_soon:
                # Somebody opened it since this client connected. The caller asks for it now, so it may have it.
                newest = int(error.metadata.get("incarnation", "0"))
                table.incarnation[handle] = max(int(table.incarnation[handle]), newest) + 1
                moved.setdefault(newest // TOGETHER, []).append(handle)
            elif first and opening.uncertain and error.metadata.get("untouched") and again_soon:
                done.append(handle)
            elif isinstance(error, errors.Unavailable if first else RETRIED) and again_soon:
                later.append(handle)
                wait = max(wait, error.retry_after or min(2.0, 0.1 * 2**opening.claims))
            elif first:
                self._fail_first(opening, handle, error)
            else:
                self._log.fail(handle, error)
        for handles in moved.values():
            table.incarnation[handles] = table.incarnation[handles].max()
            # The first time nobody waits for nothing; again and again it is a fight, in which each side holds back.
            self._repeat(opening, handles, now + 0.05 * (2**opening.claims - 1))
        if done:
            self._repeat(opening, done, 0.0, done=True)
        if later and opening.ticket is None:
            for waiting in self._again(np.array(later, np.int64), now + wait):
                waiting.claims = min(opening.claims + 1, MAX_CLAIMS)
                waiting.since = opening.since
                self.waiting.append(waiting)
        elif later:
            self._repeat(opening, later, now + wait)

    def _refused_apart(self, opening: Opening, error: StatestreamError) -> bool:
        """Whether a frame that cannot be served as a whole is asked for in two parts: one may be what is wrong with it.

        It is another caller's, or another session's, and the others must not pay for it.
        """
        if opening.claims and isinstance(error, errors.BadFrame) and error.metadata.get("field") == "incarnation":
            for handle in sorted(opening.left):
                if opening.ticket is not None:
                    self._fail_first(opening, handle, _beyond(self._table, handle, error))
            return opening.ticket is not None
        several = len(opening.left) > 1 and (opening.ticket is None or isinstance(opening.ticket, JoinedTicket))
        if not several or not isinstance(error, errors.InvalidRequest | errors.TooManySessions):
            return False
        left = np.flatnonzero(np.isin(opening.handles, np.fromiter(opening.left, np.int64)))
        for half in (left[: len(left) // 2], left[len(left) // 2 :]):
            part = opening.part(half)
            part.apart, part.not_before = True, 0.0
            self.waiting.append(part)
        return True

    def _repeat(self, opening: Opening, handles: list[int], not_before: float, *, done: bool = False) -> None:
        part = opening.part(indices(opening.handles, np.array(handles, np.int64)))
        part.claims += 1
        part.not_before = not_before
        part.done = done
        self.waiting.append(part)

    def _fail_first(self, opening: Opening, handle: int, error: StatestreamError) -> None:
        ticket, table = opening.ticket, self._table
        assert ticket is not None
        rows = opening.rows[indices(opening.handles, np.array([handle]))]
        group = table.groups[table.group.item(handle)]
        ticket.refuse(int(rows[0]), error)
        if opening.revival:
            self._log.fail(handle, error, heard=True)
        else:
            table.release(np.array([handle]))
        ticket.count(rows)
        self.on_refused(handle, opening, group, error)

    def _again(self, handles: Ints, not_before: float) -> Iterator[Opening]:
        table = self._table
        if table.leaving:
            # One whose close was sent may have gone: it must not be made anew to leave once more.
            going = np.isin(handles, list(table.leaving))
            yield from self._alike(handles[going], OPEN_MODE_RESUME, not_before)
            handles = handles[~going]
        with_initial = [handle for handle in handles.tolist() if handle in table.initial and not table.floor[handle]]
        for handle in with_initial:
            # Found nowhere, it must start from the same values again.
            initial = {name: array[np.newaxis] for name, array in table.initial[handle].items()}
            yield Opening(np.array([handle]), OPEN_MODE_EITHER, initial=initial, not_before=not_before)
        plain = handles[~np.isin(handles, with_initial)] if with_initial else handles
        yield from self._alike(plain, OPEN_MODE_EITHER, not_before)

    def _alike(self, handles: Ints, mode: OpenMode, not_before: float) -> Iterator[Opening]:
        """Openings of sessions that may share a frame."""
        table = self._table
        kinds = np.stack([table.group[handles], table.incarnation[handles]], axis=1)
        for kind in np.unique(kinds, axis=0):
            yield from frames(Opening(handles[(kinds == kind).all(axis=1)], mode, not_before=not_before))


def _beyond(table: Table, handle: int, error: StatestreamError) -> errors.SessionMoved:
    return errors.SessionMoved(
        f"session {table.ids[handle]!r} was claimed with incarnation {int(table.incarnation[handle]) - 1}, so far "
        f"ahead that no caller can take it over: {error.message}. Whoever made that claim has a clock that is wrong; "
        "delete the session, or use another id",
        metadata={"incarnation": str(int(table.incarnation[handle]) - 1)},
    )


def _nothing(*_: object) -> None:
    """What nobody hears."""


def _lost(session_id: str, position: int, floor: int) -> errors.StateLost:
    return errors.StateLost(
        f"session {session_id!r} was found at position {position}; this client can replay from {floor} on, "
        "so steps between are lost. Open it again and feed it from there, or reset it.",
        metadata={"position": str(position)},
    )
