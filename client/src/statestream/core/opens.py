"""Opening sessions: for the first time, anew, and again after a stream was lost; columnar, thousands in a frame."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from statestream import errors
from statestream.core.chunks import Chunks
from statestream.core.opening import Opening, frames, indices, joined
from statestream.core.returned import Returned
from statestream.core.table import Group, State, Table
from statestream.core.tickets import OpenTicket, again
from statestream.errors import StatestreamError, from_status
from statestream.v1.inference_pb2 import (
    OPEN_MODE_CREATE,
    OPEN_MODE_EITHER,
    OPEN_MODE_REPLACE,
    OpenedFrame,
    OpenFrame,
    OpenMode,
)
from statestream.wire import Array, Ints, handles_column, positions_column, read_handles, read_positions, to_tensor

MAX_CLAIMS = 8
"""How often a first open is repeated with a higher incarnation."""

RETRIED = (errors.Unavailable, errors.Overloaded)
"""Refusals after which a session that was open before is tried again."""

MAX_REOPENS = 4
"""How often a live session is opened again without an answered chunk in between."""


class Opens:
    """Opens under way, and what their answers do to the table."""

    def __init__(self, table: Table, chunks: Chunks, writer: bytes, incarnation: int, retry_seconds: float) -> None:
        self.writer = writer
        self.clock = incarnation
        self.retry_seconds = retry_seconds
        self.waiting: list[Opening] = []
        self.in_flight: dict[int, Opening] = {}
        self.returned = Returned(table)
        self._table = table
        self._chunks = chunks
        self._reopened: list[tuple[Ints, Ints]] = []

    def open(
        self,
        handles: Ints,
        mode: OpenMode,
        ticket: OpenTicket,
        initial: dict[str, Array],
        *,
        replies: bool = False,
        upgrade: bool = False,
    ) -> None:
        """Asks for sessions for the first time, or anew (mode REPLACE); the ticket has their rows in this order."""
        self._table.incarnation[handles] = self.clock
        whole = Opening(handles, mode, ticket, np.arange(len(handles)), initial, replies=replies, upgrade=upgrade)
        if initial and mode != OPEN_MODE_REPLACE:
            for row, handle in enumerate(handles.tolist()):
                self._table.initial[handle] = {name: array[row] for name, array in initial.items()}
        self.waiting.extend(frames(whole))

    def reopen(self, handle: int, cause: StatestreamError, now: float) -> None:
        """Opens one session of a live stream again; after several times in vain it fails with the cause."""
        table = self._table
        if table.state[handle] == State.LOST:
            return
        if table.attempts[handle] >= MAX_REOPENS:
            self._chunks.fail(handle, cause)
            return
        self._chunks.unbind(handle)
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
        opening = self.returned.left(handle, error, again=elsewhere)
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
                rows = np.flatnonzero(np.isin(opening.handles, np.fromiter(opening.left, np.int64)))
                part = opening.part(rows)
                part.uncertain = True
                # The lost one may still arrive, after this one: it must count as the older claim.
                self._table.incarnation[part.handles] += 1
                waiting.append(part)
        waiting.extend(self.returned.lost(fault))
        waiting.extend(opening for opening in self.waiting if opening.ticket is not None)
        self.waiting = waiting
        self.in_flight.clear()
        self._reopened.clear()

    def ready(self, now: float) -> list[Opening]:
        """Takes those that may leave, in as few frames as possible."""
        due = [opening for opening in self.waiting if opening.not_before <= now]
        if due:
            self.waiting = [opening for opening in self.waiting if opening.not_before > now]
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
        if count:
            opening.left.difference_update(handles.tolist())
            table = self._table
            table.epoch[handles] = epochs
            table.durable[handles] = durable
            group = table.groups[int(table.group[handles[0]])]
            table.group[handles] = table.group_number(Group(group.model, message.version, group.ephemeral))
            if opening.ticket is None:
                self._bound_again(handles, positions)
            else:
                rows = self._bound(opening, opening.ticket, handles, positions, epochs, created != 0, message.version)
                if opening.replies and message.kept:
                    kept = read_handles(message.kept)
                    rows = self.returned.expect(frame, opening, handles, rows, kept)
                opening.ticket.count(rows)
        self._refused(opening, {error.handle: from_status(error.status) for error in message.errors}, now)
        if not opening.left:
            self.in_flight.pop(frame, None)
        self._replay()
        # Those whose replies are still to come are no answer yet.
        return opening.ticket is not None and frame not in self.returned

    def refuse_frame(self, frame: int, error: StatestreamError, now: float) -> bool:
        """Refuses every session of a frame; False where the frame opened none."""
        opening = self.in_flight.pop(frame, None)
        if opening is None:
            return False
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
        self.returned.give_up(error)
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
        for name in ("next", "sent", "answered", "floor", "acked"):
            getattr(table, name)[handles] = positions
        if opening.ticket is not None and opening.mode != OPEN_MODE_REPLACE:
            table.acked[handles] = 0
        for name in ("in_flight", "unacked", "stale", "attempts"):
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
                self._chunks.fail(handle, taken)
        return rows

    def _bound_again(self, handles: Ints, positions: Ints) -> None:
        table = self._table
        short = positions < table.floor[handles]
        ahead = positions > table.next[handles]
        for handle, position in zip(handles[short].tolist(), positions[short].tolist(), strict=True):
            self._chunks.fail(handle, _lost(table.ids[handle], position, int(table.floor[handle])))
        for handle, position in zip(handles[ahead].tolist(), positions[ahead].tolist(), strict=True):
            self._chunks.fail(
                handle,
                errors.SessionMoved(
                    f"session {table.ids[handle]!r} is at position {position}, this client sent steps up to "
                    f"{int(table.next[handle])}: another writer stepped it. Open it again to go on from there."
                ),
            )
        good = ~(short | ahead)
        self._reopened.append((handles[good], positions[good]))

    def _replay(self) -> None:
        # One pass over the buffer for all sessions of a reconnect, not one for every frame of it.
        if not self._reopened or any(opening.ticket is None for opening in self.in_flight.values()):
            return
        if any(opening.ticket is None and not opening.not_before for opening in self.waiting):
            return
        handles = np.concatenate([handles for handles, _ in self._reopened])
        positions = np.concatenate([positions for _, positions in self._reopened])
        self._reopened.clear()
        if handles.size:
            self._chunks.replay(handles, positions)

    def _refused(self, opening: Opening, refusals: dict[int, StatestreamError], now: float) -> None:
        """Tries refused sessions again, all of a frame together, or fails them."""
        opening.since = opening.since or now
        later: list[int] = []
        moved: list[int] = []
        done: list[int] = []
        wait = 0.0
        for handle, error in refusals.items():
            if handle not in opening.left:
                continue
            opening.left.discard(handle)
            first = opening.ticket is not None
            again_soon = opening.claims < MAX_CLAIMS if first else now - opening.since < self.retry_seconds
            if first and isinstance(error, errors.SessionMoved) and again_soon:
                # Somebody opened it since this client connected. The caller asks for it now, so it may have it.
                moved.append(handle)
                self.clock = max(self.clock, int(error.metadata.get("incarnation", "0")))
            elif first and opening.uncertain and error.metadata.get("untouched") and again_soon:
                done.append(handle)
            elif isinstance(error, errors.Unavailable if first else RETRIED) and again_soon:
                later.append(handle)
                wait = max(wait, error.retry_after or min(2.0, 0.1 * 2**opening.claims))
            elif first:
                self._fail_first(opening, handle, error)
            else:
                self._chunks.fail(handle, error)
        if moved:
            self.clock += 1
            self._table.incarnation[moved] = self.clock
            self._repeat(opening, moved, 0.0)
        if done:
            self._repeat(opening, done, 0.0, done=True)
        if later and opening.ticket is None:
            for waiting in self._again(np.array(later, np.int64), now + wait):
                waiting.claims = min(opening.claims + 1, MAX_CLAIMS)
                waiting.since = opening.since
                self.waiting.append(waiting)
        elif later:
            self._repeat(opening, later, now + wait)

    def _repeat(self, opening: Opening, handles: list[int], not_before: float, *, done: bool = False) -> None:
        part = opening.part(indices(opening.handles, np.array(handles, np.int64)))
        part.claims += 1
        part.not_before = not_before
        part.done = done
        self.waiting.append(part)

    def _fail_first(self, opening: Opening, handle: int, error: StatestreamError) -> None:
        ticket = opening.ticket
        assert ticket is not None
        rows = opening.rows[indices(opening.handles, np.array([handle]))]
        ticket.refuse(int(rows[0]), error)
        if opening.mode == OPEN_MODE_REPLACE:
            self._chunks.fail(handle, error)
        else:
            self._table.release(np.array([handle]))
        ticket.count(rows)

    def _again(self, handles: Ints, not_before: float) -> Iterator[Opening]:
        table = self._table
        if not handles.size:
            return
        kinds = np.stack([table.group[handles], table.incarnation[handles]], axis=1)
        with_initial = [handle for handle in handles.tolist() if handle in table.initial and not table.floor[handle]]
        plain = handles[~np.isin(handles, with_initial)] if with_initial else handles
        for handle in with_initial:
            # Found nowhere, it must start from the same values again.
            initial = {name: array[np.newaxis] for name, array in table.initial[handle].items()}
            yield Opening(np.array([handle]), OPEN_MODE_EITHER, initial=initial, not_before=not_before)
        if with_initial:
            kinds = np.stack([table.group[plain], table.incarnation[plain]], axis=1)
        for kind in np.unique(kinds, axis=0):
            chosen = plain[(kinds == kind).all(axis=1)]
            yield from frames(Opening(chosen, OPEN_MODE_EITHER, not_before=not_before))


def _lost(session_id: str, position: int, floor: int) -> errors.StateLost:
    return errors.StateLost(
        f"session {session_id!r} was found at position {position}; this client can replay from {floor} on, "
        "so steps between are lost. Open it again and feed it from there, or reset it.",
        metadata={"position": str(position)},
    )
